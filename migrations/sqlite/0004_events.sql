-- The one log. Ids are made from the time, so their order is the order of time.
CREATE TABLE events (
    id BLOB NOT NULL PRIMARY KEY,
    time INTEGER NOT NULL,
    kind TEXT NOT NULL,
    rpc TEXT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id BLOB,
    actor_proof TEXT NOT NULL,
    target TEXT NOT NULL,
    account_kind TEXT,
    account_id BLOB,
    refusal TEXT,
    -- JSON list and map.
    changed_fields TEXT NOT NULL,
    details TEXT NOT NULL,
    request_id BLOB,
    address TEXT
) STRICT, WITHOUT ROWID;
CREATE INDEX events_account_id ON events (account_id, id);
CREATE INDEX events_actor_id ON events (actor_id, id);
CREATE INDEX events_kind ON events (kind, id);
