-- weight_by_rank.sql - gate weight at each rank of selection, per layer
SELECT layer, rank, avg(weight) AS mean, min(weight) AS min, max(weight) AS max
  FROM router_score WHERE chosen = 1 GROUP BY layer, rank ORDER BY layer, rank;
