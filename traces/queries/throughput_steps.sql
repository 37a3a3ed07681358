-- throughput_steps.sql - the whole step of every cell, in the order asked
SELECT variant, gate, load, load_distance, ranks, placement, replicas, phase, tokens_per_rank, context, learnt, refresh, time_ms, tokens_per_s, slowdown,
       against_balanced, regime, comm_share, error_pct, extrapolated, repeats
  FROM throughput WHERE layer IS NULL ORDER BY cell;
