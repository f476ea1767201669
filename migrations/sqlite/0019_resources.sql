-- What a grant is for, and what is below that; empty for everything.
ALTER TABLE grants ADD COLUMN resource TEXT NOT NULL DEFAULT '';
CREATE INDEX grants_resource ON grants (resource, id) WHERE resource <> '';
