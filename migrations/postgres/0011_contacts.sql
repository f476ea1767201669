-- What a person was found by and has given up stays nobody's for a while: without a user, until
-- release_time, and for nobody but the former one.
ALTER TABLE login_identifiers ALTER COLUMN user_id DROP NOT NULL;
ALTER TABLE login_identifiers DROP CONSTRAINT login_identifiers_user_id_fkey;
ALTER TABLE login_identifiers ADD CONSTRAINT login_identifiers_user_id_fkey
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL;
ALTER TABLE login_identifiers ADD COLUMN former_user_id UUID;
ALTER TABLE login_identifiers ADD COLUMN release_time BIGINT;
CREATE INDEX login_identifiers_release_time ON login_identifiers (release_time) WHERE release_time IS NOT NULL;

-- Where accounts can be reached; of users and of system accounts.
CREATE TABLE contacts (
    account_id UUID NOT NULL,
    id UUID NOT NULL,
    account_kind TEXT NOT NULL,
    kind TEXT NOT NULL,
    revision BIGINT NOT NULL,
    -- An address as written, a number in E.164, or JSON.
    value TEXT NOT NULL,
    -- The canonical form, to be found by; here also of what nobody has proven.
    value_key TEXT,
    label TEXT NOT NULL,
    is_primary BOOLEAN NOT NULL,
    -- JSON list.
    purposes TEXT NOT NULL,
    proof_method TEXT,
    proof_time BIGINT,
    proof_by TEXT,
    -- What is to replace the value.
    pending_value TEXT,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    CONSTRAINT contacts_account_id_id_key PRIMARY KEY (account_id, id)
);
-- One of each kind comes first.
CREATE UNIQUE INDEX contacts_account_id_kind_key ON contacts (account_id, kind) WHERE is_primary;
CREATE UNIQUE INDEX contacts_account_id_kind_value_key_key ON contacts (account_id, kind, value_key) WHERE value_key IS NOT NULL;
CREATE INDEX contacts_value_key ON contacts (kind, value_key, account_id) WHERE value_key IS NOT NULL;

-- Codes that prove a contact, the last one of each; also a link, which is good for longer.
CREATE TABLE contact_codes (
    account_id UUID NOT NULL,
    contact_id UUID NOT NULL,
    code_digest BYTEA NOT NULL,
    link_digest BYTEA,
    returned BOOLEAN NOT NULL,
    answers BIGINT NOT NULL,
    expire_time BIGINT NOT NULL,
    link_expire_time BIGINT NOT NULL,
    CONSTRAINT contact_codes_account_id_contact_id_key PRIMARY KEY (account_id, contact_id)
);
CREATE INDEX contact_codes_link_expire_time ON contact_codes (link_expire_time);

-- The primary contacts of a person, to be read with the person.
ALTER TABLE users ADD COLUMN primary_email TEXT;
ALTER TABLE users ADD COLUMN primary_phone TEXT;
