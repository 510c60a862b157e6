CREATE TABLE guesses (
  -- SHA-256 of what is counted: an account's address, a browser of a user, a user's sessions, a network. None of these stands here.
  counter BYTEA NOT NULL PRIMARY KEY CHECK (length(counter) = 32),
  -- When the first of its failures was counted.
  begun_at BIGINT NOT NULL,
  failures BIGINT NOT NULL,
  -- 0 until the limit is reached.
  waits_until BIGINT NOT NULL,
  -- 1 once its user has been told that the limit was reached.
  told BIGINT NOT NULL,
  forgotten_at BIGINT NOT NULL
);
CREATE INDEX guesses_stale ON guesses (forgotten_at);

-- 0: a reset of the password gave the browser its name. It is ours, but nobody has signed in there yet, so the first sign-in is new.
ALTER TABLE known_devices ADD COLUMN signed_in BIGINT NOT NULL DEFAULT 1;
