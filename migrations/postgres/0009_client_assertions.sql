-- Signed assertions of programs that were used, until their time is over (RFC 7523 section 3).
CREATE TABLE used_assertions (
    account_id UUID NOT NULL,
    digest BYTEA NOT NULL,
    forget_time BIGINT NOT NULL,
    CONSTRAINT used_assertions_account_id_digest_key PRIMARY KEY (account_id, digest)
);
CREATE INDEX used_assertions_forget_time ON used_assertions (forget_time);
