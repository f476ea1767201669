-- One sign-in on one device each, with its family of refresh tokens.
CREATE TABLE sessions (
    user_id UUID NOT NULL,
    id UUID NOT NULL,
    revision BIGINT NOT NULL,
    device_name TEXT NOT NULL,
    user_agent TEXT NOT NULL,
    address TEXT,
    client_id UUID,
    credential_id UUID NOT NULL,
    acr TEXT NOT NULL,
    -- JSON list.
    amr TEXT NOT NULL,
    auth_time BIGINT NOT NULL,
    create_time BIGINT NOT NULL,
    last_used_time BIGINT NOT NULL,
    idle_expire_time BIGINT NOT NULL,
    expire_time BIGINT NOT NULL,
    end_time BIGINT,
    end_reason TEXT,
    seed BYTEA NOT NULL,
    generation BIGINT NOT NULL,
    rotate_time BIGINT NOT NULL,
    CONSTRAINT sessions_user_id_id_key PRIMARY KEY (user_id, id),
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX sessions_expire_time ON sessions (expire_time);

-- Access tokens revoked one by one, until they would have expired.
CREATE TABLE revoked_tokens (
    jti UUID NOT NULL CONSTRAINT revoked_tokens_jti_key PRIMARY KEY,
    expire_time BIGINT NOT NULL
);
CREATE INDEX revoked_tokens_expire_time ON revoked_tokens (expire_time);

-- Private keys are encrypted under the master key.
CREATE TABLE signing_keys (
    kid TEXT NOT NULL CONSTRAINT signing_keys_kid_key PRIMARY KEY,
    revision BIGINT NOT NULL,
    algorithm TEXT NOT NULL,
    state TEXT NOT NULL,
    public_jwk TEXT NOT NULL,
    private_sealed BYTEA NOT NULL,
    create_time BIGINT NOT NULL,
    activate_time BIGINT,
    retire_time BIGINT,
    revoke_time BIGINT
);
-- One key signs.
CREATE UNIQUE INDEX signing_keys_state_key ON signing_keys (state) WHERE state = 'ACTIVE';
CREATE INDEX signing_keys_create_time ON signing_keys (create_time, kid);
