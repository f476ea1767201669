-- Work that one process does at a time.
CREATE TABLE IF NOT EXISTS leases (
    name TEXT NOT NULL CONSTRAINT leases_name_key PRIMARY KEY,
    holder TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    expire_time BIGINT NOT NULL
);

-- Failed attempts to prove an identity, by a keyed hash of what is counted.
CREATE TABLE throttles (
    key BYTEA NOT NULL CONSTRAINT throttles_key_key PRIMARY KEY,
    failures BIGINT NOT NULL,
    last_time BIGINT NOT NULL,
    next_time BIGINT NOT NULL
);
CREATE INDEX throttles_last_time ON throttles (last_time);

-- First answers to requests with a request_id, for retries.
CREATE TABLE requests (
    caller_id UUID NOT NULL,
    rpc TEXT NOT NULL,
    request_id UUID NOT NULL,
    body_mac BYTEA NOT NULL,
    answer BYTEA NOT NULL,
    create_time BIGINT NOT NULL,
    CONSTRAINT requests_caller_id_rpc_request_id_key PRIMARY KEY (caller_id, rpc, request_id)
);
CREATE INDEX requests_create_time ON requests (create_time);
