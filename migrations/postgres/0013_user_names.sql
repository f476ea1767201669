-- Names of people, folded, to search by.
CREATE TABLE user_names (
    -- display_name, given_name, family_name.
    kind TEXT NOT NULL,
    name_key TEXT COLLATE "C" NOT NULL,
    user_id UUID NOT NULL,
    CONSTRAINT user_names_kind_name_key_user_id_key PRIMARY KEY (kind, name_key, user_id),
    FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE
);
CREATE INDEX user_names_user_id ON user_names (user_id);

-- Messages of an account go with it.
CREATE INDEX messages_account_id ON messages (account_id) WHERE account_id IS NOT NULL;
