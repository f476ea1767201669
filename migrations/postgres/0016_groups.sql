-- What is granted to a group reaches all in it.
CREATE TABLE groups (
    id UUID NOT NULL CONSTRAINT groups_id_key PRIMARY KEY,
    revision BIGINT NOT NULL,
    display_name TEXT NOT NULL,
    description TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL
);

-- Who is in which group directly; a member may be a group.
CREATE TABLE group_members (
    member_id UUID NOT NULL,
    member_kind TEXT NOT NULL,
    group_id UUID NOT NULL,
    start_time BIGINT,
    expire_time BIGINT,
    added_by TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    CONSTRAINT group_members_member_id_member_kind_group_id_key PRIMARY KEY (member_id, member_kind, group_id),
    FOREIGN KEY (group_id) REFERENCES groups (id) ON DELETE CASCADE
);
CREATE INDEX group_members_group_id ON group_members (group_id, member_id);
CREATE INDEX group_members_expire_time ON group_members (expire_time) WHERE expire_time IS NOT NULL;

-- Counts the changes of a grant.
ALTER TABLE grants ADD COLUMN revision BIGINT NOT NULL DEFAULT 1;
