-- experts_for_share.sql - per layer, the busiest experts that together take a share of at least ?1 (0 to 1) of all choices: ESFT's choice of experts by token score, whose scores are rounded to 4 decimals
WITH load AS (SELECT layer, expert, count(*) AS tokens FROM router_score WHERE chosen = 1 GROUP BY layer, expert),
     score AS (SELECT layer, expert, tokens, round(1.0 * tokens / sum(tokens) OVER (PARTITION BY layer), 4) AS share FROM load),
     run AS (SELECT layer, expert, tokens, share,
                    sum(share) OVER (PARTITION BY layer ORDER BY share DESC, expert ROWS UNBOUNDED PRECEDING) AS together
               FROM score)
SELECT layer, expert, tokens, share, together FROM run WHERE together - share < ?1 - 1e-9 ORDER BY layer, share DESC, expert;
