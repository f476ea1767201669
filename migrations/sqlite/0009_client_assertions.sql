-- Signed assertions of programs that were used, until their time is over (RFC 7523 section 3).
CREATE TABLE used_assertions (
    account_id BLOB NOT NULL,
    digest BLOB NOT NULL,
    forget_time INTEGER NOT NULL,
    PRIMARY KEY (account_id, digest)
) STRICT, WITHOUT ROWID;
CREATE INDEX used_assertions_forget_time ON used_assertions (forget_time);
