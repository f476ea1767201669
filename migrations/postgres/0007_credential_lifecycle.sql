-- A secret that has been replaced works on until nobody has used it for a while.
ALTER TABLE credentials ADD COLUMN state TEXT NOT NULL DEFAULT 'ACTIVE';
ALTER TABLE credentials ADD COLUMN replaced_by UUID;
ALTER TABLE credentials ADD COLUMN overlap_s BIGINT;
ALTER TABLE credentials ADD COLUMN retire_time BIGINT;
ALTER TABLE credentials ADD COLUMN revoke_time BIGINT;
CREATE INDEX credentials_retire_time ON credentials (retire_time) WHERE state = 'RETIRING';
CREATE INDEX credentials_revoke_time ON credentials (revoke_time) WHERE revoke_time IS NOT NULL;

-- Whoever answers for a credential is told before it expires: which of the notices was the last.
ALTER TABLE credentials ADD COLUMN expiry_notice_d BIGINT;
CREATE INDEX credentials_expire_time ON credentials (expire_time) WHERE expire_time IS NOT NULL;
