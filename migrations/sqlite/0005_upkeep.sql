-- Work that one process does at a time.
CREATE TABLE IF NOT EXISTS leases (
    name TEXT NOT NULL PRIMARY KEY,
    holder TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    expire_time INTEGER NOT NULL
) STRICT;

-- Failed attempts to prove an identity, by a keyed hash of what is counted.
CREATE TABLE throttles (
    key BLOB NOT NULL PRIMARY KEY,
    failures INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    next_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX throttles_last_time ON throttles (last_time);

-- First answers to requests with a request_id, for retries.
CREATE TABLE requests (
    caller_id BLOB NOT NULL,
    rpc TEXT NOT NULL,
    request_id BLOB NOT NULL,
    body_mac BLOB NOT NULL,
    answer BLOB NOT NULL,
    create_time INTEGER NOT NULL,
    PRIMARY KEY (caller_id, rpc, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX requests_create_time ON requests (create_time);
