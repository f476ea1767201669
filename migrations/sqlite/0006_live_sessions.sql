-- A sign-in looks at the sessions of a user that are not over, however many there have been.
CREATE INDEX sessions_user_id_end_time_id ON sessions (user_id, end_time, id) WHERE end_time IS NULL;
-- The planner takes users to have ten sessions and so few for no reason to leave the primary key: this
-- says that there may be thousands, of which few are not over. Nothing ever measures it anew.
ANALYZE sqlite_schema;
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('sessions', 'sessions', '1000000 1000 1'),
    ('sessions', 'sessions_user_id_end_time_id', '10000 10 10 1');
