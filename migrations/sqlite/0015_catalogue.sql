-- What downstream systems permit; the scopes of accountd itself are in its policies.
CREATE TABLE scopes (
    audience TEXT NOT NULL,
    scope TEXT NOT NULL,
    revision INTEGER NOT NULL,
    description TEXT NOT NULL,
    sensitive INTEGER NOT NULL,
    -- JSON list of names.
    grantable_by TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    update_time INTEGER NOT NULL,
    PRIMARY KEY (audience, scope)
) STRICT, WITHOUT ROWID;

-- Named sets of scopes; the built-in ones are in the code.
CREATE TABLE roles (
    id TEXT NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL,
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    update_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Scopes of audience accountd are here without being in the catalogue.
CREATE TABLE role_scopes (
    role TEXT NOT NULL,
    audience TEXT NOT NULL,
    scope TEXT NOT NULL,
    PRIMARY KEY (role, audience, scope),
    FOREIGN KEY (role) REFERENCES roles (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX role_scopes_audience_scope ON role_scopes (audience, scope);

-- Whose scopes a grant comes to; empty for a role that may have some of any audience. All that earlier builds
-- grant is of accountd itself.
ALTER TABLE grants ADD COLUMN audience TEXT NOT NULL DEFAULT 'accountd';
CREATE INDEX grants_principal_id_audience ON grants (principal_id, audience);
