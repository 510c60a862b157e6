CREATE TABLE users (
  id UUID NOT NULL PRIMARY KEY,
  email TEXT NOT NULL,
  email_canonical TEXT NOT NULL UNIQUE,
  email_verified BIGINT NOT NULL,
  name TEXT NOT NULL,
  role TEXT NOT NULL,
  disabled_at BIGINT,
  -- NULL: this account has no password.
  password_hash TEXT,
  -- Rises with every change of password, role or standing: a sign-in that began before one of these opens nothing.
  security_version BIGINT NOT NULL,
  -- NULL until the first sign-in, which is never "new".
  first_signed_in_at BIGINT,
  created_at BIGINT NOT NULL
);
CREATE INDEX users_by_role ON users (role);

CREATE TABLE device_sessions (
  id UUID NOT NULL PRIMARY KEY,
  user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  token_hash BYTEA NOT NULL UNIQUE CHECK (length(token_hash) = 32),
  created_at BIGINT NOT NULL,
  authenticated_at BIGINT NOT NULL,
  auth_methods TEXT NOT NULL,
  -- May be older than the truth by 1/30 of the idle timeout: the truth is in memory until it is written back.
  last_active_at BIGINT NOT NULL,
  -- The limits are fixed when the session opens. NULL: no idle timeout.
  idle_timeout_ms BIGINT,
  expires_at BIGINT NOT NULL,
  remember BIGINT NOT NULL,
  ip TEXT NOT NULL,
  user_agent TEXT NOT NULL,
  device_name TEXT NOT NULL,
  device_type TEXT NOT NULL,
  new_ip BIGINT NOT NULL,
  new_device BIGINT NOT NULL,
  ended_at BIGINT,
  ended_reason TEXT,
  CHECK ((ended_at IS NULL) = (ended_reason IS NULL))
);
CREATE INDEX device_sessions_of_user ON device_sessions (user_id, ended_at);
CREATE INDEX device_sessions_ended ON device_sessions (ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX device_sessions_due ON device_sessions (expires_at) WHERE ended_at IS NULL;

CREATE TABLE retired_tokens (
  token_hash BYTEA NOT NULL PRIMARY KEY CHECK (length(token_hash) = 32),
  session_id UUID NOT NULL REFERENCES device_sessions (id) ON DELETE CASCADE,
  retired_at BIGINT NOT NULL,
  -- 1 once a request has come with a later token of the session: from then on this one can only be a copy.
  successor_used BIGINT NOT NULL,
  -- Set once, by the report of its reuse.
  reuse_seen_at BIGINT
);
CREATE INDEX retired_tokens_of_session ON retired_tokens (session_id);

CREATE TABLE known_ips (
  user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  -- An IPv4 address, or the /64 of an IPv6 one.
  network TEXT NOT NULL,
  last_seen_at BIGINT NOT NULL,
  PRIMARY KEY (user_id, network)
);
CREATE INDEX known_ips_stale ON known_ips (last_seen_at);

CREATE TABLE known_devices (
  user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  device_hash BYTEA NOT NULL CHECK (length(device_hash) = 32),
  last_seen_at BIGINT NOT NULL,
  PRIMARY KEY (user_id, device_hash)
);
CREATE INDEX known_devices_by_hash ON known_devices (device_hash);
CREATE INDEX known_devices_stale ON known_devices (last_seen_at);

CREATE TABLE events (
  id UUID NOT NULL PRIMARY KEY,
  at BIGINT NOT NULL,
  kind TEXT NOT NULL,
  -- No foreign keys: what happened outlives whom it happened to.
  user_id UUID,
  -- The administrator who did it to the user.
  actor_id UUID,
  session_id UUID,
  ip TEXT,
  device_name TEXT,
  detail TEXT NOT NULL
);
CREATE INDEX events_of_user ON events (user_id, id);
CREATE INDEX events_of_kind ON events (kind, id);


CREATE TABLE outbox (
  id UUID NOT NULL PRIMARY KEY,
  event_id UUID NOT NULL,
  kind TEXT NOT NULL,
  user_id UUID NOT NULL REFERENCES users (id) ON DELETE CASCADE,
  session_id UUID,
  due_at BIGINT NOT NULL,
  leased_until BIGINT NOT NULL,
  attempts BIGINT NOT NULL
);
CREATE INDEX outbox_of_user ON outbox (user_id);
CREATE INDEX outbox_due ON outbox (due_at, id);
