-- throughput_worth.sql - the steps of phase ?1 that can be set side by side: most ranks of two experts, largest batch, first context
SELECT variant, gate, bias_rule, bias_rate, placement, replicas, learnt, coalesce(refresh, 0) AS refresh, tokens_per_s,
       error_pct, extrapolated, regime, against_balanced, cluster, ranks, tokens_per_rank
  FROM throughput WHERE layer IS NULL AND load = 'trace' AND phase = ?1
   AND context IS (SELECT context FROM throughput ORDER BY cell LIMIT 1)
   AND tokens_per_rank = (SELECT max(tokens_per_rank) FROM throughput WHERE phase = ?1)
   AND ranks = coalesce((SELECT max(ranks) FROM throughput
                          WHERE 2 * ranks <= (SELECT count(DISTINCT expert) FROM result_placement)),
                        (SELECT max(ranks) FROM throughput))
 ORDER BY cell;
