-- Who may hold which scopes, and when. Either role or scope is set.
CREATE TABLE grants (
    id BLOB NOT NULL PRIMARY KEY,
    principal_id BLOB NOT NULL,
    principal_kind TEXT NOT NULL,
    role TEXT,
    scope TEXT,
    reason TEXT NOT NULL,
    granted_by TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    start_time INTEGER,
    expire_time INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX grants_principal_id ON grants (principal_id, id);
CREATE INDEX grants_role ON grants (role, id);
CREATE INDEX grants_scope ON grants (scope, id);
CREATE INDEX grants_expire_time ON grants (expire_time) WHERE expire_time IS NOT NULL;
