-- study_weights.sql - gate weight of variant ?1 at each place of selection: mean over layers of the mean
-- and of the standard deviation over tokens
SELECT rank + 1 AS place, avg(mean) AS mean, avg(sd) AS sd
  FROM result_rank_weight WHERE variant = ?1 GROUP BY rank ORDER BY rank;
