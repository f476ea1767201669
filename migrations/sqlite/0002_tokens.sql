-- One sign-in on one device each, with its family of refresh tokens.
CREATE TABLE sessions (
    user_id BLOB NOT NULL,
    id BLOB NOT NULL,
    revision INTEGER NOT NULL,
    device_name TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    address TEXT,
    client_id BLOB,
    credential_id BLOB NOT NULL,
    acr TEXT NOT NULL,
    -- JSON list.
    amr TEXT NOT NULL,
    auth_time INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    last_used_time INTEGER NOT NULL,
    idle_expire_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL,
    end_time INTEGER,
    end_reason TEXT,
    seed BLOB NOT NULL,
    generation INTEGER NOT NULL,
    rotate_time INTEGER NOT NULL,
    PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_expire_time ON sessions (expire_time);

-- Access tokens revoked one by one, until they would have expired.
CREATE TABLE revoked_tokens (
    jti BLOB NOT NULL PRIMARY KEY,
    expire_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX revoked_tokens_expire_time ON revoked_tokens (expire_time);

-- Private keys are encrypted under the master key.
CREATE TABLE signing_keys (
    kid TEXT NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL,
    algorithm TEXT NOT NULL,
    state TEXT NOT NULL,
    public_jwk TEXT NOT NULL,
    private_sealed BLOB NOT NULL,
    create_time INTEGER NOT NULL,
    activate_time INTEGER,
    retire_time INTEGER,
    revoke_time INTEGER
) STRICT;
-- One key signs.
CREATE UNIQUE INDEX signing_keys_state_key ON signing_keys (state) WHERE state = 'ACTIVE';
CREATE INDEX signing_keys_create_time ON signing_keys (create_time, kid);
