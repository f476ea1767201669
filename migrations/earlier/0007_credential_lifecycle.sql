-- The overlap was in microseconds for a day of development, under a name that said so.
ALTER TABLE credentials RENAME COLUMN overlap_us TO overlap_s;
UPDATE credentials SET overlap_s = overlap_s / 1000000 WHERE overlap_s IS NOT NULL;
