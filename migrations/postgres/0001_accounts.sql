-- Facts about this database, such as which master key it belongs to.
CREATE TABLE meta (
    name TEXT NOT NULL CONSTRAINT meta_name_key PRIMARY KEY,
    value TEXT NOT NULL
);

-- People.
CREATE TABLE users (
    id UUID NOT NULL CONSTRAINT users_id_key PRIMARY KEY,
    revision BIGINT NOT NULL,
    state TEXT NOT NULL,
    state_reason TEXT NOT NULL,
    state_until_time BIGINT,
    expire_time BIGINT,
    delete_time BIGINT,
    purge_time BIGINT,
    username TEXT,
    -- The canonical form, as in login_identifiers; here to list by.
    username_key TEXT COLLATE "C",
    display_name TEXT NOT NULL,
    given_name TEXT NOT NULL,
    family_name TEXT NOT NULL,
    language_code TEXT NOT NULL,
    time_zone TEXT NOT NULL,
    -- JSON: source to id.
    external_ids TEXT NOT NULL,
    -- A JSON object, or empty; likewise admin_attributes.
    attributes TEXT NOT NULL,
    admin_attributes TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    last_sign_in_time BIGINT
);
CREATE INDEX users_create_time ON users (create_time, id);
CREATE INDEX users_state ON users (state, create_time, id);
CREATE INDEX users_state_until_time ON users (state_until_time) WHERE state_until_time IS NOT NULL;
CREATE INDEX users_username_key ON users (username_key, id) WHERE username_key IS NOT NULL;
CREATE INDEX users_purge_time ON users (purge_time) WHERE purge_time IS NOT NULL;

-- What a person can be found by. Unique by construction: username, external_id.
CREATE TABLE login_identifiers (
    kind TEXT NOT NULL,
    value_key TEXT NOT NULL,
    user_id UUID NOT NULL,
    CONSTRAINT login_identifiers_kind_value_key_key PRIMARY KEY (kind, value_key),
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX login_identifiers_user_id ON login_identifiers (user_id);

-- Programs.
CREATE TABLE system_accounts (
    id UUID NOT NULL CONSTRAINT system_accounts_id_key PRIMARY KEY,
    revision BIGINT NOT NULL,
    state TEXT NOT NULL,
    state_reason TEXT NOT NULL,
    state_until_time BIGINT,
    expire_time BIGINT,
    delete_time BIGINT,
    purge_time BIGINT,
    kind TEXT NOT NULL,
    -- NULL for accountd's own.
    owner_id UUID,
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    -- JSON lists.
    scope_ceiling TEXT NOT NULL,
    audiences TEXT NOT NULL,
    allowed_cidrs TEXT NOT NULL,
    tokens_not_before BIGINT,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    last_used_time BIGINT
);
CREATE INDEX system_accounts_create_time ON system_accounts (create_time, id);
CREATE INDEX system_accounts_state_until_time ON system_accounts (state_until_time) WHERE state_until_time IS NOT NULL;
CREATE INDEX system_accounts_owner_id ON system_accounts (owner_id, create_time, id);
CREATE INDEX system_accounts_purge_time ON system_accounts (purge_time) WHERE purge_time IS NOT NULL;

-- What proves who an account is; of users and of system accounts.
CREATE TABLE credentials (
    account_id UUID NOT NULL,
    id UUID NOT NULL,
    account_kind TEXT NOT NULL,
    kind TEXT NOT NULL,
    revision BIGINT NOT NULL,
    label TEXT NOT NULL,
    hint TEXT NOT NULL,
    -- Of a password: a PHC string.
    password_hash TEXT,
    -- Of a generated secret: SHA-256.
    secret_digest BYTEA,
    -- JSON lists.
    scope_ceiling TEXT NOT NULL,
    allowed_cidrs TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    change_time BIGINT NOT NULL,
    expire_time BIGINT,
    last_used_time BIGINT,
    CONSTRAINT credentials_account_id_id_key PRIMARY KEY (account_id, id)
);
CREATE UNIQUE INDEX credentials_secret_digest_key ON credentials (secret_digest);
-- A person has one password.
CREATE UNIQUE INDEX credentials_account_id_key ON credentials (account_id) WHERE kind = 'password';

-- One-time codes for setting a new password.
CREATE TABLE password_resets (
    digest BYTEA NOT NULL CONSTRAINT password_resets_digest_key PRIMARY KEY,
    user_id UUID NOT NULL,
    create_time BIGINT NOT NULL,
    expire_time BIGINT NOT NULL,
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX password_resets_user_id ON password_resets (user_id);
CREATE INDEX password_resets_expire_time ON password_resets (expire_time);
