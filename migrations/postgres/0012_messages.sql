-- Messages to people, written in the transaction that causes them. What they say is encrypted under the
-- master key, and gone once they are sent.
CREATE TABLE messages (
    id UUID NOT NULL CONSTRAINT messages_id_key PRIMARY KEY,
    -- QUEUED, SENT, DEAD, or VOID: for nobody.
    state TEXT NOT NULL,
    kind TEXT NOT NULL,
    account_kind TEXT,
    account_id UUID,
    body BYTEA,
    attempts BIGINT NOT NULL,
    -- When it is looked at next; whoever is at it has moved this ahead.
    next_time BIGINT NOT NULL,
    create_time BIGINT NOT NULL,
    -- From when on it is of no use any more.
    expire_time BIGINT NOT NULL,
    finish_time BIGINT,
    error TEXT
);
CREATE INDEX messages_next_time ON messages (next_time) WHERE state = 'QUEUED';
CREATE INDEX messages_finish_time ON messages (finish_time) WHERE finish_time IS NOT NULL;

-- How a contact was before somebody changed it: for its owner, who may take that back.
CREATE TABLE contact_changes (
    digest BYTEA NOT NULL CONSTRAINT contact_changes_digest_key PRIMARY KEY,
    account_id UUID NOT NULL,
    contact_id UUID NOT NULL,
    account_kind TEXT NOT NULL,
    -- JSON; NULL where there was none.
    before TEXT,
    create_time BIGINT NOT NULL,
    expire_time BIGINT NOT NULL
);
CREATE INDEX contact_changes_account_id ON contact_changes (account_id, contact_id);
CREATE INDEX contact_changes_expire_time ON contact_changes (expire_time);
