-- schema.sql - the Steelyard trace database, user_version 2
--
-- One file is one trace: a model, its documents and tokens, its routers and, per router and block of
-- tokens, the raw router logits. The tables result_* hold the last replay (in a RESULT.db there are no
-- tokens and chunks, only what a report needs). Read through the views; they are the contract.
-- The same text makes RUN.db and RESULT.db. 16 KiB pages, 64 KiB in large traces; WAL while a capture writes, one file after.
PRAGMA application_id = 1398033497; -- 'STLY'
PRAGMA user_version = 2;

CREATE TABLE capture ( -- who made the trace, of what, how: one row
  capture        INTEGER PRIMARY KEY CHECK (capture = 1),
  identity       TEXT NOT NULL,    -- sha256 over this row, the layers and the documents: equal for equal captures
  kind           TEXT NOT NULL CHECK (kind IN ('trace', 'result')), -- result: a RESULT.db, without tokens and chunks
  model          TEXT NOT NULL,    -- name of the model
  family         TEXT NOT NULL,    -- model_type of its config.json; '' when unknown
  model_id       TEXT NOT NULL,    -- identity of its weights; '' when unknown
  config         TEXT NOT NULL,    -- text of config.json; '' when unknown
  source         TEXT NOT NULL,    -- 'capture', or the name of the importer
  compute        TEXT NOT NULL,    -- arithmetic of the forward pass: f32, bf16; '' when unknown
  kernels        TEXT NOT NULL,    -- kernel level of the engine; '' when unknown
  store          TEXT NOT NULL CHECK (store IN ('f32', 'bf16', 'f16')), -- logits in this file; bf16 and f16 are lossy
  parameters     INTEGER NOT NULL, -- of the model; 0 when unknown
  context_tokens INTEGER NOT NULL, -- longest window; 0 when unknown
  pass_tokens    INTEGER NOT NULL, -- tokens of a pass, at most: where commits fall; 0 for imports
  options        TEXT NOT NULL,    -- other options that decide the content
  lacks          TEXT NOT NULL,    -- what the source did not have; '' when nothing
  vocabulary     TEXT NOT NULL     -- where the tokenizer came from; '' when ids were given
) STRICT;

CREATE TABLE document ( -- one text, or one line of an ids file
  document    INTEGER PRIMARY KEY, -- from 0, in capture order
  source      TEXT NOT NULL,       -- file name as given
  domain      TEXT NOT NULL,       -- label for comparisons
  sha256      TEXT NOT NULL,       -- of its bytes; '' when unknown
  bytes       INTEGER NOT NULL,    -- of its text; 0 when ids were given
  first_token INTEGER NOT NULL,    -- its tokens are first_token .. first_token + tokens - 1
  tokens      INTEGER NOT NULL
) STRICT;

CREATE TABLE token ( -- one row per token of the trace
  token    INTEGER PRIMARY KEY, -- from 0, in capture order
  document INTEGER NOT NULL REFERENCES document,
  position INTEGER NOT NULL,    -- within its window, from 0
  id       INTEGER,             -- in the vocabulary; NULL when the source did not say
  nll      REAL                 -- nats, of the NEXT token given the window so far; NULL at a window's last token
) STRICT;

CREATE TABLE piece ( -- text of the token ids that occur
  id   INTEGER PRIMARY KEY,
  text ANY NOT NULL -- TEXT when it is valid UTF-8, else a BLOB of its bytes
) STRICT;

CREATE TABLE layer ( -- one router of the model
  router  INTEGER PRIMARY KEY,     -- index from 0, by rising layer
  layer   INTEGER NOT NULL UNIQUE, -- the model's own layer number
  experts INTEGER NOT NULL,        -- E
  topk    INTEGER NOT NULL,        -- k
  holds   TEXT NOT NULL CHECK (holds IN ('scores', 'ids', 'counts')), -- what its chunks hold
  weights INTEGER NOT NULL,        -- 1: chunks of ids hold the gate weights too
  gate    TEXT,                    -- the native gate's specification; NULL when unknown
  bias    BLOB                     -- f32[E], the correction bias; NULL when there is none
) STRICT;

CREATE TABLE block ( -- consecutive tokens that share a chunk at every router
  block       INTEGER PRIMARY KEY, -- from 0
  first_token INTEGER NOT NULL,
  tokens      INTEGER NOT NULL     -- n
) STRICT;

CREATE TABLE chunk ( -- one block at one router: the measured data
  chunk       INTEGER PRIMARY KEY, -- block * (number of routers) + router
  choice_hash INTEGER,             -- 64-bit hash of the live choices and weights (trace.h); NULL when not recorded
  scores      BLOB,                -- logits before activation, [n][E], little-endian, element type capture.store
  ids         BLOB,                -- u16 [n][k], chosen experts in order of selection, where there are no scores
  weights     BLOB                 -- f32 [n][k], their gate weights; NULL when unknown
) STRICT;

CREATE TABLE expert_count ( -- of routers that hold counts only
  router   INTEGER NOT NULL REFERENCES layer,
  document INTEGER NOT NULL REFERENCES document,
  counts   BLOB NOT NULL, -- i64[E], tokens of the document that chose each expert
  PRIMARY KEY (router, document)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_experiment ( -- the last replay: at most one row
  experiment     INTEGER PRIMARY KEY CHECK (experiment = 1),
  options        TEXT NOT NULL,    -- as given, in canonical form
  token_order    TEXT NOT NULL CHECK (token_order IN ('captured', 'shuffled')),
  seed           TEXT NOT NULL,    -- of the shuffle, unsigned decimal
  tokens         INTEGER NOT NULL, -- replayed
  trace          TEXT NOT NULL,    -- path of the trace as given
  trace_identity TEXT NOT NULL,    -- capture.identity of the trace
  warnings       TEXT NOT NULL     -- lines that a reader must see; '' when none
) STRICT;

CREATE TABLE result_variant ( -- one gate with one bias rule, batch size and number of ranks
  variant      INTEGER PRIMARY KEY, -- from 1, in the order asked
  gate         TEXT NOT NULL,       -- canonical specification
  label        TEXT NOT NULL,       -- short name for legends
  bias_rule    TEXT NOT NULL,
  bias_rate    REAL,                -- NULL when the rule has none
  bias_start   TEXT NOT NULL,       -- 'zero', 'captured', or '' without a bias
  batch_tokens INTEGER NOT NULL,    -- of a balance batch
  ranks        INTEGER,             -- NULL when not asked
  same_as      INTEGER,             -- smaller variant that this one provably equals in load; else NULL
  same_why     TEXT NOT NULL,       -- the proof in words; '' when same_as is NULL
  causal       INTEGER NOT NULL     -- 0: a token's experts depend on later tokens of its balance batch
) STRICT;

CREATE TABLE result_layer ( -- measures of a variant at a layer; definitions in the manual, "Measures"
  variant       INTEGER NOT NULL REFERENCES result_variant,
  layer         INTEGER NOT NULL, -- the model's own layer number
  maxvio_global REAL,    -- max load / mean load - 1, over all tokens
  maxvio_batch  REAL,    -- mean over batches of the same within a batch
  cv            REAL,    -- standard deviation / mean of the load over experts
  gini          REAL,    -- of the load over experts
  entropy       REAL,    -- of the load, nats; ln E = balanced
  load_min      INTEGER, -- tokens of the least loaded expert
  load_max      INTEGER, -- tokens of the most loaded expert
  ties          INTEGER, -- tokens whose k-th and (k+1)-th choice scores are equal
  group_escapes INTEGER, -- chosen experts of dropped groups
  agreement     REAL,    -- share of choices that the native gate makes too
  mass_retained REAL,    -- sum of chosen scores / sum of the k highest scores, mean over tokens
  rank_maxvio   REAL,    -- max / mean - 1 of the load of ranks; NULL without ranks
  efficiency    REAL,    -- mean over batches of mean / max load of ranks; NULL without ranks
  dropped       REAL,    -- share of the k T choices that a capacity dropped; load counts what was kept
  unrouted      REAL,    -- share of tokens without any expert
  experts_mean  REAL,    -- experts of a token, mean over tokens
  experts_max   INTEGER, -- experts of the token that has most
  PRIMARY KEY (variant, layer)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_expert ( -- load of an expert
  variant INTEGER NOT NULL REFERENCES result_variant,
  layer   INTEGER NOT NULL,
  expert  INTEGER NOT NULL,
  tokens  INTEGER NOT NULL, -- that chose it
  weight  REAL,             -- sum of the gate weights that it received
  PRIMARY KEY (variant, layer, expert)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_batch ( -- trajectory over balance batches
  variant    INTEGER NOT NULL REFERENCES result_variant,
  layer      INTEGER NOT NULL,
  batch      INTEGER NOT NULL, -- from 0, in replay order
  tokens     INTEGER NOT NULL, -- of the batch: the last may be shorter
  maxvio     REAL NOT NULL,    -- within the batch
  efficiency REAL,             -- mean / max load of ranks; NULL without ranks
  PRIMARY KEY (variant, layer, batch)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_dynamics ( -- how the load moved over full balance batches; definitions in analysis/dynamics.h
  variant          INTEGER NOT NULL REFERENCES result_variant,
  layer            INTEGER NOT NULL,
  batches          INTEGER NOT NULL, -- full ones
  start            REAL, -- maxvio of the first batch
  level            REAL, -- mean maxvio of the second half
  settling_batches REAL, -- until maxvio stays within a band above the level; NULL: it does not settle
  overshoot        REAL, -- how far loads swing to the other side, as a share of the first batch's
  amplitude        REAL, -- of an expert's load / mean - 1 in the second half, noise included
  period           REAL, -- in batches; 2: every batch turns the load over, 4: noise; NULL: no oscillation
  PRIMARY KEY (variant, layer)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_loss ( -- what a training loss would be worth on these choices, coefficient 1
  variant INTEGER NOT NULL REFERENCES result_variant,
  layer   INTEGER NOT NULL,
  loss    TEXT NOT NULL, -- switch, gshard, hf, sequence, device, communication, z: formulas in sim/losses.h
  value   REAL,
  PRIMARY KEY (variant, layer, loss)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_optimum ( -- the last full balance batch against the best that equal loads allow
  variant INTEGER NOT NULL REFERENCES result_variant,
  layer   INTEGER NOT NULL,
  batch   INTEGER NOT NULL, -- from 0
  maxvio  REAL, -- of the batch
  mass    REAL, -- share of the score mass of the k highest that the variant keeps in it
  optimum REAL, -- the largest such share with loads of at most ceil(kT/E): exact assignment
  PRIMARY KEY (variant, layer)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_bias ( -- bias after the last update
  variant INTEGER NOT NULL REFERENCES result_variant,
  layer   INTEGER NOT NULL,
  expert  INTEGER NOT NULL,
  bias    REAL NOT NULL,
  PRIMARY KEY (variant, layer, expert)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_document ( -- load per document, for slices by domain and intervals over documents
  variant  INTEGER NOT NULL REFERENCES result_variant,
  layer    INTEGER NOT NULL,
  document INTEGER NOT NULL REFERENCES document,
  counts   BLOB NOT NULL, -- i64[E], little-endian
  PRIMARY KEY (variant, layer, document)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_domain ( -- load per domain: sums of result_document
  variant INTEGER NOT NULL REFERENCES result_variant,
  layer   INTEGER NOT NULL,
  domain  TEXT NOT NULL,
  expert  INTEGER NOT NULL,
  tokens  INTEGER NOT NULL, -- of the domain that chose it
  PRIMARY KEY (variant, layer, domain, expert)
) STRICT, WITHOUT ROWID;

CREATE TABLE result_rank_weight ( -- gate weights by rank of selection
  variant INTEGER NOT NULL REFERENCES result_variant,
  layer   INTEGER NOT NULL,
  rank    INTEGER NOT NULL, -- from 0: the first chosen
  mean    REAL NOT NULL,    -- over tokens
  sd      REAL NOT NULL,    -- over tokens, population
  PRIMARY KEY (variant, layer, rank)
) STRICT, WITHOUT ROWID;

CREATE VIEW replay_summary AS -- One row per variant and layer; layer NULL = mean over layers (ties, group_escapes: sum; experts_max: max).
  SELECT v.variant, v.gate, v.bias_rule, v.bias_rate, v.batch_tokens, v.ranks, l.layer,
         l.maxvio_global, l.maxvio_batch, l.cv, l.gini, l.entropy, l.load_min, l.load_max,
         l.ties, l.group_escapes, l.agreement, l.mass_retained, l.rank_maxvio, l.efficiency, v.same_as,
         l.dropped, l.unrouted, l.experts_mean, l.experts_max, v.causal
    FROM result_variant v JOIN result_layer l USING (variant)
  UNION ALL
  SELECT v.variant, v.gate, v.bias_rule, v.bias_rate, v.batch_tokens, v.ranks, NULL,
         avg(l.maxvio_global), avg(l.maxvio_batch), avg(l.cv), avg(l.gini), avg(l.entropy),
         avg(l.load_min), avg(l.load_max), sum(l.ties), sum(l.group_escapes), avg(l.agreement),
         avg(l.mass_retained), avg(l.rank_maxvio), avg(l.efficiency), v.same_as,
         avg(l.dropped), avg(l.unrouted), avg(l.experts_mean), max(l.experts_max), v.causal
    FROM result_variant v JOIN result_layer l USING (variant) GROUP BY v.variant;

CREATE VIEW expert_load AS -- Load and gate weight of every expert.
  SELECT variant, layer, expert, tokens, weight FROM result_expert;

CREATE VIEW replay_batch AS -- One row per balance batch: the trajectory of a bias rule.
  SELECT variant, layer, batch, tokens, maxvio, efficiency FROM result_batch;

CREATE VIEW replay_bias AS -- The bias after the last update.
  SELECT variant, layer, expert, bias FROM result_bias;

CREATE VIEW replay_dynamics AS -- Settling and oscillation; layer NULL = mean over layers, settled = layers that settle.
  SELECT v.variant, v.label, v.bias_rule, v.bias_rate, v.batch_tokens, d.layer, d.batches, d.start, d.level,
         d.settling_batches, d.settling_batches IS NOT NULL AS settled, d.overshoot, d.amplitude, d.period
    FROM result_variant v JOIN result_dynamics d USING (variant)
  UNION ALL
  SELECT v.variant, v.label, v.bias_rule, v.bias_rate, v.batch_tokens, NULL, max(d.batches), avg(d.start), avg(d.level),
         avg(d.settling_batches), count(d.settling_batches), avg(d.overshoot), avg(d.amplitude), avg(d.period)
    FROM result_variant v JOIN result_dynamics d USING (variant) GROUP BY v.variant;

CREATE VIEW replay_loss AS -- Values of training losses; layer NULL = mean over layers.
  SELECT variant, layer, loss, value FROM result_loss
  UNION ALL SELECT variant, NULL, loss, avg(value) FROM result_loss GROUP BY variant, loss;

CREATE VIEW replay_optimum AS -- Score mass kept in the last batch and at exact balance; layer NULL = mean over layers.
  SELECT variant, layer, batch, maxvio, mass, optimum, mass - optimum AS above FROM result_optimum
  UNION ALL SELECT variant, NULL, max(batch), avg(maxvio), avg(mass), avg(optimum), avg(mass - optimum)
    FROM result_optimum GROUP BY variant;

CREATE VIEW domain_load AS -- Load of every expert within each domain.
  SELECT variant, layer, domain, expert, tokens FROM result_domain;

CREATE VIEW token_text AS -- Tokens with their text and document.
  SELECT t.token, t.document, d.domain, t.position, t.id, p.text, t.nll
    FROM token t JOIN document d USING (document) LEFT JOIN piece p ON p.id = t.id;
