-- Who may ask for which role, for how long, and who has to agree.
CREATE TABLE entitlements (
    id UUID NOT NULL CONSTRAINT entitlements_id_key PRIMARY KEY,
    revision BIGINT NOT NULL,
    principal_id UUID NOT NULL,
    principal_kind TEXT NOT NULL,
    role TEXT NOT NULL,
    max_duration_s BIGINT NOT NULL,
    needs_ticket BOOLEAN NOT NULL,
    needs_step_up BOOLEAN NOT NULL,
    description TEXT NOT NULL,
    created_by TEXT NOT NULL,
    create_time BIGINT NOT NULL,
    update_time BIGINT NOT NULL,
    expire_time BIGINT
);
CREATE INDEX entitlements_principal_id ON entitlements (principal_id, id);
CREATE INDEX entitlements_role ON entitlements (role, id);

-- One row for each of those who may agree; without any nobody has to.
CREATE TABLE entitlement_approvers (
    entitlement_id UUID NOT NULL,
    principal_id UUID NOT NULL,
    principal_kind TEXT NOT NULL,
    CONSTRAINT entitlement_approvers_entitlement_id_principal_id_key PRIMARY KEY (entitlement_id, principal_id),
    FOREIGN KEY (entitlement_id) REFERENCES entitlements (id) ON DELETE CASCADE
);
CREATE INDEX entitlement_approvers_principal_id ON entitlement_approvers (principal_id, entitlement_id);

-- What was asked for, and what became of it.
CREATE TABLE elevations (
    id UUID NOT NULL CONSTRAINT elevations_id_key PRIMARY KEY,
    revision BIGINT NOT NULL,
    entitlement_id UUID NOT NULL,
    requester_id UUID NOT NULL,
    requester_kind TEXT NOT NULL,
    role TEXT NOT NULL,
    state TEXT NOT NULL,
    justification TEXT NOT NULL,
    ticket TEXT NOT NULL,
    duration_s BIGINT NOT NULL,
    create_time BIGINT NOT NULL,
    -- When the state ends by itself, if it does: unanswered, or as granted.
    next_time BIGINT,
    decided_by TEXT NOT NULL,
    decide_reason TEXT NOT NULL,
    decide_time BIGINT,
    grant_id UUID,
    end_time BIGINT
);
CREATE INDEX elevations_requester_id ON elevations (requester_id, id);
CREATE INDEX elevations_entitlement_id ON elevations (entitlement_id, id);
CREATE INDEX elevations_next_time ON elevations (next_time) WHERE next_time IS NOT NULL;
CREATE INDEX elevations_end_time ON elevations (end_time) WHERE end_time IS NOT NULL;

-- What a grant came about by, if somebody was elevated.
ALTER TABLE grants ADD COLUMN elevation_id UUID;

-- Tokens of the session issued up to then are worthless: they may have what was given back since.
ALTER TABLE sessions ADD COLUMN tokens_not_before BIGINT;
