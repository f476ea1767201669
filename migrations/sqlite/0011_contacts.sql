-- What a person was found by and has given up stays nobody's for a while: without a user, until
-- release_time, and for nobody but the former one.
CREATE TABLE new_login_identifiers (
    kind TEXT NOT NULL,
    value_key TEXT NOT NULL,
    user_id BLOB,
    former_user_id BLOB,
    release_time INTEGER,
    PRIMARY KEY (kind, value_key),
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE SET NULL
) STRICT, WITHOUT ROWID;
INSERT INTO new_login_identifiers (kind, value_key, user_id) SELECT kind, value_key, user_id FROM login_identifiers;
DROP TABLE login_identifiers;
ALTER TABLE new_login_identifiers RENAME TO login_identifiers;
CREATE INDEX login_identifiers_user_id ON login_identifiers (user_id);
CREATE INDEX login_identifiers_release_time ON login_identifiers (release_time) WHERE release_time IS NOT NULL;

-- Where accounts can be reached; of users and of system accounts.
CREATE TABLE contacts (
    account_id BLOB NOT NULL,
    id BLOB NOT NULL,
    account_kind TEXT NOT NULL,
    kind TEXT NOT NULL,
    revision INTEGER NOT NULL,
    -- An address as written, a number in E.164, or JSON.
    value TEXT NOT NULL,
    -- The canonical form, to be found by; here also of what nobody has proven.
    value_key TEXT,
    label TEXT NOT NULL,
    is_primary INTEGER NOT NULL,
    -- JSON list.
    purposes TEXT NOT NULL,
    proof_method TEXT,
    proof_time INTEGER,
    proof_by TEXT,
    -- What is to replace the value.
    pending_value TEXT,
    create_time INTEGER NOT NULL,
    update_time INTEGER NOT NULL,
    PRIMARY KEY (account_id, id)
) STRICT, WITHOUT ROWID;
-- One of each kind comes first.
CREATE UNIQUE INDEX contacts_account_id_kind_key ON contacts (account_id, kind) WHERE is_primary;
CREATE UNIQUE INDEX contacts_account_id_kind_value_key_key ON contacts (account_id, kind, value_key) WHERE value_key IS NOT NULL;
CREATE INDEX contacts_value_key ON contacts (kind, value_key, account_id) WHERE value_key IS NOT NULL;

-- Codes that prove a contact, the last one of each; also a link, which is good for longer.
CREATE TABLE contact_codes (
    account_id BLOB NOT NULL,
    contact_id BLOB NOT NULL,
    code_digest BLOB NOT NULL,
    link_digest BLOB,
    returned INTEGER NOT NULL,
    answers INTEGER NOT NULL,
    expire_time INTEGER NOT NULL,
    link_expire_time INTEGER NOT NULL,
    PRIMARY KEY (account_id, contact_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX contact_codes_link_expire_time ON contact_codes (link_expire_time);

-- The primary contacts of a person, to be read with the person.
ALTER TABLE users ADD COLUMN primary_email TEXT;
ALTER TABLE users ADD COLUMN primary_phone TEXT;
