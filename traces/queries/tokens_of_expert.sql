-- tokens_of_expert.sql - texts of the tokens that chose expert ?2 of layer ?1, most frequent first
SELECT id, text, count(*) AS tokens, avg(weight) AS mean_weight
  FROM router_score WHERE layer = ?1 AND expert = ?2 AND chosen = 1
 GROUP BY id, text ORDER BY tokens DESC, id;
