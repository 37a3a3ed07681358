-- expert_load.sql - load of every expert of variant ?1
SELECT layer, expert, tokens, weight FROM expert_load WHERE variant = ?1 ORDER BY layer, expert;
