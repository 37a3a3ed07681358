-- study_throughput_ranks.sql - tokens/s of phase ?1 against ranks, one series a gate, placement and replicas; the largest batch
SELECT t.gate || ', ' || t.placement || CASE WHEN t.replicas > 0 THEN ' +' || t.replicas ELSE '' END AS series,
       t.ranks, t.tokens_per_s, t.error_pct, t.cluster
  FROM throughput t WHERE t.layer IS NULL AND t.phase = ?1
   AND t.tokens_per_rank = (SELECT max(tokens_per_rank) FROM throughput WHERE phase = ?1)
 ORDER BY t.variant, t.placement, t.replicas, t.ranks;
