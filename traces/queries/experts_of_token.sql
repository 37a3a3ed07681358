-- experts_of_token.sql - where token ?1 went: its experts at every layer, in order of selection
SELECT layer, rank, expert, logit, score, weight, text
  FROM router_score WHERE token = ?1 AND chosen = 1 ORDER BY layer, rank;
