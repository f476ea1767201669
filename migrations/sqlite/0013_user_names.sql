-- Names of people, folded, to search by.
CREATE TABLE user_names (
    -- display_name, given_name, family_name.
    kind TEXT NOT NULL,
    name_key TEXT NOT NULL,
    user_id BLOB NOT NULL,
    PRIMARY KEY (kind, name_key, user_id),
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;
CREATE INDEX user_names_user_id ON user_names (user_id);

-- Messages of an account go with it.
CREATE INDEX messages_account_id ON messages (account_id) WHERE account_id IS NOT NULL;
