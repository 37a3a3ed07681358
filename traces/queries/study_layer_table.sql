-- study_layer_table.sql - every measure of variant ?1 per layer, the mean over layers last
SELECT coalesce(CAST(layer AS TEXT), 'mean') AS layer, maxvio_global, maxvio_batch, cv, gini, entropy,
       load_min, load_max, ties, group_escapes, agreement, mass_retained, rank_maxvio, efficiency
  FROM replay_summary WHERE variant = ?1 ORDER BY replay_summary.layer IS NULL, replay_summary.layer;
