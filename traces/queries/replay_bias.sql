-- replay_bias.sql - final bias of variant ?1
SELECT layer, expert, bias FROM replay_bias WHERE variant = ?1 ORDER BY layer, expert;
