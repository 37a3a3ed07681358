-- replay_batch.sql - trajectory of variant ?1 at every layer
SELECT layer, batch, tokens, maxvio, efficiency FROM replay_batch WHERE variant = ?1 ORDER BY layer, batch;
