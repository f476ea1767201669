-- Accounts for emergencies are sealed until two people open them: who has asked for it (JSON), and until
-- when it is open.
ALTER TABLE system_accounts ADD COLUMN unseal_request TEXT;
ALTER TABLE system_accounts ADD COLUMN unsealed_until_time BIGINT;
CREATE INDEX system_accounts_unsealed_until_time ON system_accounts (unsealed_until_time) WHERE unsealed_until_time IS NOT NULL;

-- Whoever has left leaves programs behind for which nobody answers.
CREATE INDEX users_delete_time ON users (delete_time) WHERE delete_time IS NOT NULL;
CREATE INDEX users_expire_time ON users (expire_time) WHERE expire_time IS NOT NULL;
