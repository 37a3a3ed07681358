-- hash_table.sql - experts by token id, of routers whose gate is fn=hash-table (tid2eid of DeepSeek-V4)
--
-- Made where a router has such a table: traces without hash layers do not have it.
CREATE TABLE IF NOT EXISTS hash_table ( -- the table of one hash layer
  router  INTEGER PRIMARY KEY REFERENCES layer,
  ids     INTEGER NOT NULL, -- vocabulary ids 0 .. ids - 1 have a row
  experts BLOB NOT NULL     -- u16 [ids][k], distinct within a row, in order of selection
) STRICT;
