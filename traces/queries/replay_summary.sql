-- replay_summary.sql - measures of every variant; the mean over layers first
SELECT * FROM replay_summary ORDER BY variant, layer;
