-- What is granted to a group reaches all in it.
CREATE TABLE groups (
    id BLOB NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL,
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    update_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Who is in which group directly; a member may be a group.
CREATE TABLE group_members (
    member_id BLOB NOT NULL,
    member_kind TEXT NOT NULL,
    group_id BLOB NOT NULL,
    start_time INTEGER,
    expire_time INTEGER,
    added_by TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    PRIMARY KEY (member_id, member_kind, group_id),
    FOREIGN KEY (group_id) REFERENCES groups (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX group_members_group_id ON group_members (group_id, member_id);
CREATE INDEX group_members_expire_time ON group_members (expire_time) WHERE expire_time IS NOT NULL;

-- Counts the changes of a grant.
ALTER TABLE grants ADD COLUMN revision INTEGER NOT NULL DEFAULT 1;
