-- Each look-up of a token asks whether an older one of its session still waits for the first use of its successor. Nearly none
-- does, and whoever rotates often must not make the look-up walk through all the others.
CREATE INDEX retired_tokens_unproved ON retired_tokens (session_id) WHERE successor_used = 0;

-- The newest of a session are kept.
DROP INDEX retired_tokens_of_session;
CREATE INDEX retired_tokens_by_age ON retired_tokens (session_id, retired_at);
