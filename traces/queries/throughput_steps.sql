-- throughput_steps.sql - the whole step of every cell, in the order asked
SELECT variant, gate, ranks, placement, replicas, phase, tokens_per_rank, time_ms, tokens_per_s, slowdown,
       against_balanced, regime, comm_share, error_pct, extrapolated, repeats
  FROM throughput WHERE layer IS NULL ORDER BY cell;
