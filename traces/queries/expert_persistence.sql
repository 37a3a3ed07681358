-- expert_persistence.sql - share of choices that the next token of the same window makes again, per layer
WITH picked AS MATERIALIZED
     (SELECT layer, token, expert, position FROM router_score WHERE chosen = 1)
SELECT a.layer, 1.0 * count(b.token) / count(*) AS kept
  FROM picked a LEFT JOIN picked b
    ON b.layer = a.layer AND b.token = a.token + 1 AND b.expert = a.expert AND b.position > 0
 GROUP BY a.layer ORDER BY a.layer;
