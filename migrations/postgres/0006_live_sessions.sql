-- A sign-in looks at the sessions of a user that are not over, however many there have been.
CREATE INDEX sessions_user_id_end_time_id ON sessions (user_id, end_time, id) WHERE end_time IS NULL;
