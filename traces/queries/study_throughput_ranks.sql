-- study_throughput_ranks.sql - tokens/s of phase ?1 against ranks, one series a gate, placement and replicas; the largest batch
SELECT CASE WHEN t.load = 'trace' THEN t.gate ELSE t.load || ' load' END || ', ' || t.placement || CASE WHEN t.replicas > 0 THEN ' +' || t.replicas ELSE '' END AS series,
       t.ranks, t.tokens_per_s, t.error_pct, t.extrapolated, t.cluster, t.load
  FROM throughput t WHERE t.layer IS NULL AND t.phase = ?1
   AND t.tokens_per_rank = (SELECT max(tokens_per_rank) FROM throughput WHERE phase = ?1)
   AND t.context IS (SELECT context FROM throughput ORDER BY cell LIMIT 1)
   AND t.learnt || coalesce(t.refresh, '') = (SELECT learnt || coalesce(refresh, '') FROM throughput ORDER BY cell LIMIT 1)
 ORDER BY t.load = 'trace' DESC, t.load, t.variant, t.placement, t.replicas, t.ranks;
