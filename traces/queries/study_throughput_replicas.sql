-- study_throughput_replicas.sql - gain of redundant experts over none, per cent, on the most ranks that have some; first context and learning, largest batch
WITH asked AS (
  SELECT * FROM throughput WHERE layer IS NULL AND load = 'trace'
     AND context IS (SELECT context FROM throughput ORDER BY cell LIMIT 1)
     AND learnt || coalesce(refresh, '') = (SELECT learnt || coalesce(refresh, '') FROM throughput ORDER BY cell LIMIT 1)
     AND ranks = (SELECT max(ranks) FROM throughput WHERE replicas > 0)),
largest AS (SELECT phase, max(tokens_per_rank) AS tokens FROM asked GROUP BY phase)
SELECT t.phase || ', ' || t.gate || ', ' || t.placement AS series, t.phase, t.replicas,
       100 * (t.tokens_per_s / b.tokens_per_s - 1) AS gain_pct, t.ranks, t.cluster, t.error_pct, t.extrapolated
  FROM asked t JOIN largest l ON l.phase = t.phase AND l.tokens = t.tokens_per_rank
  JOIN asked b ON b.variant = t.variant AND b.phase = t.phase AND b.placement = t.placement
   AND b.tokens_per_rank = t.tokens_per_rank AND b.replicas = 0
 WHERE (SELECT count(DISTINCT replicas) FROM asked) > 1
 ORDER BY t.variant, t.phase DESC, t.placement DESC, t.replicas;
