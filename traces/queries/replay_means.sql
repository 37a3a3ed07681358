-- replay_means.sql - one row per variant: means over layers (ties and escapes: sums)
SELECT * FROM replay_summary WHERE layer IS NULL ORDER BY variant;
