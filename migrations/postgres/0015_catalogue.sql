-- What downstream systems permit; the scopes of accountd itself are in its policies.
CREATE TABLE scopes (
    audience TEXT COLLATE "C" NOT NULL,
    scope TEXT COLLATE "C" NOT NULL,
    revision BIGINT NOT NULL,
    description TEXT NOT NULL,
    sensitive BOOLEAN NOT NULL,
    -- JSON list of names.
    grantable_by TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    CONSTRAINT scopes_audience_scope_key PRIMARY KEY (audience, scope)
);

-- Named sets of scopes; the built-in ones are in the code.
CREATE TABLE roles (
    id TEXT COLLATE "C" NOT NULL CONSTRAINT roles_id_key PRIMARY KEY,
    revision BIGINT NOT NULL,
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL
);

-- Scopes of audience accountd are here without being in the catalogue.
CREATE TABLE role_scopes (
    role TEXT COLLATE "C" NOT NULL,
    audience TEXT COLLATE "C" NOT NULL,
    scope TEXT COLLATE "C" NOT NULL,
    CONSTRAINT role_scopes_role_audience_scope_key PRIMARY KEY (role, audience, scope),
    FOREIGN KEY (role) REFERENCES roles (id) ON DELETE CASCADE
);
CREATE INDEX role_scopes_audience_scope ON role_scopes (audience, scope);

-- Whose scopes a grant comes to; empty for a role that may have some of any audience. All that earlier builds
-- grant is of accountd itself.
ALTER TABLE grants ADD COLUMN audience TEXT COLLATE "C" NOT NULL DEFAULT 'accountd';
CREATE INDEX grants_principal_id_audience ON grants (principal_id, audience);
