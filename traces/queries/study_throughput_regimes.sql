-- study_throughput_regimes.sql - time of the experts against a balanced load, by tokens per expert; steps without replicas on the most ranks of two experts
SELECT CASE WHEN t.load = 'trace' THEN t.gate ELSE t.load || ' load' END || ', ' || t.placement AS series, t.ranks, t.phase, t.against_balanced, t.regime, t.cluster, t.error_pct, t.extrapolated,
       t.rank_mean * t.ranks / (SELECT count(DISTINCT p.expert) FROM result_placed l JOIN result_placement p ON p.map = l.map WHERE l.cell = t.cell)
         AS tokens_per_expert
  FROM throughput t WHERE t.layer IS NULL AND t.replicas = 0 AND t.ranks = coalesce(
       (SELECT max(ranks) FROM throughput WHERE 2 * ranks <= (SELECT count(DISTINCT expert) FROM result_placement)),
       (SELECT max(ranks) FROM throughput))
   AND t.context IS (SELECT context FROM throughput ORDER BY cell LIMIT 1)
   AND t.learnt || coalesce(t.refresh, '') = (SELECT learnt || coalesce(refresh, '') FROM throughput ORDER BY cell LIMIT 1)
 ORDER BY t.load = 'trace' DESC, t.load, t.variant, t.placement, tokens_per_expert;
