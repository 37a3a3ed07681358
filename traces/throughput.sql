-- throughput.sql - results of `steelyard throughput`: added to a trace or result database that has them
--
-- Not part of the trace schema: a database without these tables is complete. The views are the contract.
CREATE TABLE IF NOT EXISTS result_throughput_run ( -- the last run: at most one row
  run            INTEGER PRIMARY KEY CHECK (run = 1),
  cluster        TEXT NOT NULL, -- JSON text of the cluster, complete
  options        TEXT NOT NULL, -- as given, in canonical form
  trace_identity TEXT NOT NULL, -- capture.identity of the trace
  notes          TEXT NOT NULL  -- lines that a reader must see
) STRICT;

CREATE TABLE IF NOT EXISTS result_throughput ( -- one cell at one layer, or its whole step
  cell            INTEGER NOT NULL, -- from 1: variant x ranks x placement x replicas x phase x tokens_per_rank
  variant         INTEGER NOT NULL, -- from 1, in the order asked
  gate            TEXT NOT NULL,    -- short name of the variant
  cluster         TEXT NOT NULL,    -- its name
  ranks           INTEGER NOT NULL,
  placement       TEXT NOT NULL,
  replicas        INTEGER NOT NULL, -- redundant slots
  replica_choice  TEXT NOT NULL,
  learnt          TEXT NOT NULL,    -- on which tokens the placement was learnt
  phase           TEXT NOT NULL,    -- prefill, decode, train
  tokens_per_rank INTEGER NOT NULL,
  layer           INTEGER,          -- the model's own layer number; NULL = the step: all layers and the rest of the model
  time_ms         REAL NOT NULL,    -- mean over batches
  tokens_per_s    REAL,             -- of the whole group; NULL for single layers
  slowdown        REAL,             -- of the experts: time / time at even load with equally many activated experts
  against_balanced REAL,            -- of the experts: time / time under the balanced law of the same tokens over the experts (over the slots where ranks do not divide the experts)
  regime          TEXT NOT NULL,    -- skew-helps, skew-free, skew-costs: by against_balanced
  comm_share      REAL,             -- dispatch and combine / time (before overlap)
  error_pct       REAL NOT NULL,    -- validated median error of the layer time of this GPU, kernel and phase, per cent
  experts_ms      REAL NOT NULL,    -- experts of the slowest rank
  comm_ms         REAL NOT NULL,
  move_ms         REAL NOT NULL,    -- weights moved by refreshes, a batch's share
  rest_ms         REAL,             -- attention, dense layers, shared experts, router, head; NULL for single layers
  rank_max        REAL NOT NULL,    -- assignments of the hottest rank
  rank_mean       REAL NOT NULL,
  active_max      REAL NOT NULL,    -- activated experts of the rank that has most
  straggler       INTEGER,          -- rank that is slowest most often
  dropped         REAL NOT NULL,    -- share of assignments beyond the capacity
  batches         INTEGER NOT NULL, -- averaged over
  repeats         INTEGER NOT NULL, -- 1: the trace is shorter than a batch, tokens are used more than once
  extrapolated    INTEGER NOT NULL, -- 1: outside the shapes and sizes that the layer time was validated on
  refresh         INTEGER,          -- batches between refreshes of a placement learnt on previous ones; else NULL
  context         REAL,             -- tokens that attention looks at; NULL: not counted
  load            TEXT NOT NULL,    -- trace, or what its load is compared with: resampled, uniform, balanced, power_law_A
  load_distance   REAL,             -- share of the trace's choices that would have to go elsewhere to make this load; 0 = the trace
  bias_rule       TEXT NOT NULL,    -- of the variant
  bias_rate       REAL              -- NULL: the rule has none
) STRICT;

CREATE TABLE IF NOT EXISTS result_placement ( -- what lies where; cells and layers share maps
  map    INTEGER NOT NULL, -- from 1
  slot   INTEGER NOT NULL,
  rank   INTEGER NOT NULL,
  expert INTEGER NOT NULL,
  PRIMARY KEY (map, slot)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS result_placed ( -- the map of a cell at a layer, after the last refresh
  cell  INTEGER NOT NULL,
  layer INTEGER NOT NULL,
  map   INTEGER NOT NULL,
  PRIMARY KEY (cell, layer)
) STRICT, WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS result_traffic ( -- of the first cells, as many as fit into a million numbers
  cell      INTEGER NOT NULL,
  from_rank INTEGER NOT NULL,
  to_rank   INTEGER NOT NULL,
  from_node INTEGER NOT NULL,
  to_node   INTEGER NOT NULL,
  copies    REAL NOT NULL, -- tokens sent, one copy per distinct destination rank (the own one included): sum over layers, mean over batches
  mbytes    REAL NOT NULL, -- of dispatch
  PRIMARY KEY (cell, from_rank, to_rank)
) STRICT, WITHOUT ROWID;

CREATE VIEW IF NOT EXISTS throughput AS -- One row per cell and layer; layer NULL = the whole step.
  SELECT variant, cluster, ranks, placement, replicas, phase, tokens_per_rank, layer, time_ms, tokens_per_s,
         slowdown, regime, comm_share, error_pct, against_balanced, gate, replica_choice, learnt, experts_ms,
         comm_ms, move_ms, rest_ms, rank_max, rank_mean, active_max, straggler, dropped, batches, repeats,
         extrapolated, refresh, context, load, load_distance, bias_rule,
         bias_rate, cell
    FROM result_throughput;

CREATE VIEW IF NOT EXISTS placement_map AS -- Which expert each slot of each rank holds.
  SELECT t.variant, t.cluster, t.ranks, t.placement, t.replicas, t.phase, t.tokens_per_rank,
         l.layer, p.rank, p.slot, p.expert, l.cell
    FROM result_placed l JOIN result_placement p ON p.map = l.map
    JOIN result_throughput t ON t.cell = l.cell AND t.layer IS NULL;

CREATE VIEW IF NOT EXISTS traffic_map AS -- What each rank sends to each other in a batch.
  SELECT t.variant, t.cluster, t.ranks, t.placement, t.replicas, t.phase, t.tokens_per_rank, t.load,
         m.from_rank, m.to_rank, m.from_node, m.to_node, m.copies, m.mbytes, m.cell
    FROM result_traffic m JOIN result_throughput t ON t.cell = m.cell AND t.layer IS NULL;
