-- unused_experts.sql - experts that no token chose
SELECT layer, expert, max(logit) AS highest_logit
  FROM router_score GROUP BY layer, expert HAVING sum(chosen) = 0 ORDER BY layer, expert;
