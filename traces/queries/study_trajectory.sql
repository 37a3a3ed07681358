-- study_trajectory.sql - MaxVio of each full balance batch of variant ?1, mean over layers
SELECT b.batch, avg(b.maxvio) AS maxvio
  FROM replay_batch b JOIN result_variant v USING (variant)
 WHERE b.variant = ?1 AND b.tokens = v.batch_tokens GROUP BY b.batch ORDER BY b.batch;
