-- Whether a grant counts for those only who have shown what the entitlement it is of asks for.
ALTER TABLE grants ADD COLUMN needs_step_up INTEGER NOT NULL DEFAULT 0;
UPDATE grants SET needs_step_up = 1 WHERE elevation_id IN (
    SELECT e.id FROM elevations e JOIN entitlements n ON n.id = e.entitlement_id WHERE n.needs_step_up = 1);

-- The token of the first of two who agree. Who agreed before there was this is asked again.
ALTER TABLE changes ADD COLUMN first_claims TEXT;
UPDATE changes SET first_approver = '' WHERE state = 'PENDING';
