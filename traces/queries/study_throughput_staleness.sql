-- study_throughput_staleness.sql - gain over contiguous experts in the same batches, per cent, of placements learnt on earlier batches, by batches between refreshes, the moving of weights left out; pays_after: batches that pay for one refresh; what was learnt otherwise as a level
WITH asked AS (
  SELECT *, CASE WHEN replicas > 0 THEN ' +' || replicas ELSE '' END AS more FROM throughput
   WHERE layer IS NULL AND load = 'trace' AND context IS (SELECT context FROM throughput ORDER BY cell LIMIT 1)
     AND ranks = (SELECT max(ranks) FROM throughput WHERE learnt = 'previous')),
largest AS (SELECT phase, max(tokens_per_rank) AS tokens FROM asked GROUP BY phase),
intervals AS (SELECT DISTINCT refresh FROM asked WHERE refresh IS NOT NULL),
base AS (SELECT variant, phase, tokens_per_rank, learnt, refresh, min(time_ms) AS time_ms FROM asked
          WHERE placement = 'contiguous' AND replicas = 0 GROUP BY 1, 2, 3, 4, 5)
SELECT t.phase || ', ' || t.gate || ', ' || t.placement || t.more || ', ' || t.learnt AS series, t.phase, t.learnt,
       coalesce(t.refresh, i.refresh) AS refresh, 100 * (b.time_ms / (t.time_ms - t.move_ms) - 1) AS gain_pct,
       CASE WHEN t.move_ms > 0 AND b.time_ms > t.time_ms - t.move_ms AND t.batches > t.refresh
            THEN t.move_ms * t.batches / ((t.batches - 1) / t.refresh) / (b.time_ms - t.time_ms + t.move_ms) END AS pays_after,
       t.ranks, t.cluster, t.error_pct, t.extrapolated
  FROM asked t JOIN largest l ON l.phase = t.phase AND l.tokens = t.tokens_per_rank
  JOIN base b ON b.variant = t.variant AND b.phase = t.phase AND b.tokens_per_rank = t.tokens_per_rank
   AND b.learnt = t.learnt AND b.refresh IS t.refresh
  JOIN intervals i ON t.refresh IS NULL OR i.refresh = t.refresh
 WHERE t.placement <> 'contiguous'
 ORDER BY t.variant, t.placement, t.replicas, t.phase DESC, t.learnt DESC, 4;
