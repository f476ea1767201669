-- Calls that wait until a second person has agreed, or did.
CREATE TABLE changes (
    id BLOB NOT NULL PRIMARY KEY,
    revision INTEGER NOT NULL,
    rpc TEXT NOT NULL,
    -- Encrypted under the master key.
    request BLOB NOT NULL,
    fingerprint BLOB NOT NULL,
    claims TEXT NOT NULL,
    proposer_id BLOB NOT NULL,
    proposer_kind TEXT NOT NULL,
    address TEXT,
    state TEXT NOT NULL,
    create_time INTEGER NOT NULL,
    -- When it lapses, while it waits.
    next_time INTEGER,
    first_approver TEXT NOT NULL,
    decided_by TEXT NOT NULL,
    decide_reason TEXT NOT NULL,
    end_time INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX changes_proposer_id ON changes (proposer_id, id);
CREATE INDEX changes_next_time ON changes (next_time) WHERE next_time IS NOT NULL;
CREATE INDEX changes_end_time ON changes (end_time) WHERE end_time IS NOT NULL;
