-- Second factors of people. What is public of one is JSON in `parameters`; `material` is what answers are
-- checked with: a secret, encrypted under the master key, or a public key. Of a TOTP generator the last
-- step of time whose code was accepted; of recovery codes how many are left.
ALTER TABLE credentials ADD COLUMN parameters TEXT;
ALTER TABLE credentials ADD COLUMN material BLOB;
ALTER TABLE credentials ADD COLUMN used_step INTEGER;
ALTER TABLE credentials ADD COLUMN codes_left INTEGER;
-- The id that an authenticator gave a passkey: of one person only.
ALTER TABLE credentials ADD COLUMN passkey_id BLOB;
CREATE UNIQUE INDEX credentials_passkey_id_key ON credentials (passkey_id) WHERE passkey_id IS NOT NULL;

-- Codes that stand in for a factor that is lost, each used once.
CREATE TABLE recovery_codes (
    account_id BLOB NOT NULL,
    digest BLOB NOT NULL,
    credential_id BLOB NOT NULL,
    PRIMARY KEY (account_id, digest),
    FOREIGN KEY (account_id) REFERENCES users (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- Open questions to people. No user: nobody, or whoever shows a passkey.
CREATE TABLE challenges (
    digest BLOB NOT NULL PRIMARY KEY,
    opener_id BLOB NOT NULL,
    user_id BLOB,
    network TEXT,
    -- JSON.
    question TEXT NOT NULL,
    answers INTEGER NOT NULL,
    create_time INTEGER NOT NULL,
    expire_time INTEGER NOT NULL,
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX challenges_expire_time ON challenges (expire_time);
CREATE INDEX challenges_user_id ON challenges (user_id, create_time, digest) WHERE user_id IS NOT NULL;
CREATE INDEX challenges_network ON challenges (network, expire_time) WHERE network IS NOT NULL;
