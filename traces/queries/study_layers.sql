-- study_layers.sql - measures of variant ?1 per layer
SELECT layer, maxvio_global, maxvio_batch, agreement, mass_retained, rank_maxvio, efficiency
  FROM replay_summary WHERE variant = ?1 AND layer IS NOT NULL ORDER BY layer;
