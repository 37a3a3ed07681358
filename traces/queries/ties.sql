-- ties.sql - per layer, tokens whose weakest chosen and best left-out logits are equal: the lower index decided
SELECT layer, sum(low = high) AS ties, count(*) AS tokens
  FROM (SELECT layer, token, min(CASE chosen WHEN 1 THEN logit END) AS low,
               max(CASE chosen WHEN 0 THEN logit END) AS high
          FROM router_score GROUP BY layer, token)
 GROUP BY layer ORDER BY layer;
