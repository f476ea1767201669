-- The newest challenges of a person could not be found by this index.
DROP INDEX challenges_user_id;
CREATE INDEX challenges_user_id ON challenges (user_id, create_time, digest) WHERE user_id IS NOT NULL;
