-- Whom a letter goes to is fixed when it is posted: a thief who changes the address does not get it.
ALTER TABLE outbox ADD COLUMN recipient TEXT NOT NULL DEFAULT '';
-- The same in canonical form: so many letters of a kind go there in an hour, in whatever spelling.
ALTER TABLE outbox ADD COLUMN recipient_key TEXT NOT NULL DEFAULT '';
ALTER TABLE outbox ADD COLUMN created_at BIGINT NOT NULL DEFAULT 0;
-- NULL while it waits. Set when it has left, when a newer one took its place, or when it was given up.
ALTER TABLE outbox ADD COLUMN done_at BIGINT;
UPDATE outbox SET created_at = due_at, recipient = (SELECT email FROM users WHERE users.id = outbox.user_id),
  recipient_key = (SELECT email_canonical FROM users WHERE users.id = outbox.user_id);
CREATE INDEX outbox_waiting ON outbox (due_at, id) WHERE done_at IS NULL;
CREATE INDEX outbox_of_recipient ON outbox (recipient_key, kind, created_at);
CREATE INDEX outbox_by_age ON outbox (created_at);
DROP INDEX outbox_due;

CREATE TABLE letter_tokens (
  token_hash BYTEA NOT NULL PRIMARY KEY CHECK (length(token_hash) = 32),
  -- A letter that is delivered twice has two tokens: the use of one ends both.
  letter_id UUID NOT NULL,
  purpose TEXT NOT NULL,
  user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  -- Which session it ends. No foreign key: the link outlives the row.
  session_id UUID,
  -- The address that the letter went to: what it proves, or brings back.
  address TEXT NOT NULL,
  expires_at BIGINT NOT NULL,
  -- Wrong passwords that came with it.
  tries BIGINT NOT NULL
);
CREATE INDEX letter_tokens_of_user ON letter_tokens (user_id, purpose);
CREATE INDEX letter_tokens_of_letter ON letter_tokens (letter_id);
CREATE INDEX letter_tokens_by_age ON letter_tokens (expires_at);

-- When a letter that asks for the proof of the address has left: an account that was never asked is never removed for it.
ALTER TABLE users ADD COLUMN verification_sent_at BIGINT;
CREATE INDEX users_unverified ON users (created_at) WHERE email_verified = 0;

-- Which browser a session was opened on, so that it can be forgotten as known.
ALTER TABLE device_sessions ADD COLUMN device_hash BYTEA;
