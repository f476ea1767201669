-- A counter goes when it says nothing any more by its own rule, not when the longest of all rules says so.
ALTER TABLE throttles ADD COLUMN forget_time BIGINT NOT NULL DEFAULT 0;
UPDATE throttles SET forget_time = last_time + 2592000000000;
DROP INDEX throttles_last_time;
CREATE INDEX throttles_forget_time ON throttles (forget_time);

-- What usernames looked like is freed with them.
CREATE INDEX login_identifiers_former_user_id ON login_identifiers (former_user_id)
    WHERE former_user_id IS NOT NULL;
