-- Calls that wait until a second person has agreed, or did.
CREATE TABLE changes (
    id UUID NOT NULL CONSTRAINT changes_id_key PRIMARY KEY,
    revision BIGINT NOT NULL,
    rpc TEXT NOT NULL,
    -- Encrypted under the master key.
    request BYTEA NOT NULL,
    fingerprint BYTEA NOT NULL,
    claims TEXT NOT NULL,
    proposer_id UUID NOT NULL,
    proposer_kind TEXT NOT NULL,
    address TEXT,
    state TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    -- When it lapses, while it waits.
    next_time BIGINT,
    first_approver TEXT NOT NULL,
    decided_by TEXT NOT NULL,
    decide_reason TEXT NOT NULL,
    end_time BIGINT
);
CREATE INDEX changes_proposer_id ON changes (proposer_id, id);
CREATE INDEX changes_next_time ON changes (next_time) WHERE next_time IS NOT NULL;
CREATE INDEX changes_end_time ON changes (end_time) WHERE end_time IS NOT NULL;
