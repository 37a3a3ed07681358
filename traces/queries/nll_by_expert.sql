-- nll_by_expert.sql - load of each expert of layer ?1 against the mean NLL (nats) of the tokens that it served
SELECT expert, count(*) AS tokens, avg(nll) AS mean_nll, avg(weight) AS mean_weight
  FROM router_score WHERE layer = ?1 AND chosen = 1 GROUP BY expert ORDER BY tokens DESC, expert;
