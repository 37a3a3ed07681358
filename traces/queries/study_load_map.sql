-- study_load_map.sql - load of every expert of variant ?1 relative to the mean of its layer
SELECT layer, expert, tokens, tokens / nullif(avg(tokens) OVER (PARTITION BY layer), 0) AS load
  FROM expert_load WHERE variant = ?1 ORDER BY layer, expert;
