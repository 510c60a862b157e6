CREATE TABLE leases (
  -- The work that only one instance does at a time.
  name TEXT NOT NULL PRIMARY KEY,
  holder UUID NOT NULL,
  leased_until BIGINT NOT NULL
);
