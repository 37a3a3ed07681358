-- study_variant_table.sql - every variant with its measures: means over layers (ties, escapes: sums)
SELECT variant, gate, bias_rule, bias_rate, batch_tokens, ranks, maxvio_global, maxvio_batch, cv, gini,
       entropy, load_min, load_max, ties, group_escapes, agreement, mass_retained, rank_maxvio, efficiency,
       same_as
  FROM replay_summary WHERE layer IS NULL ORDER BY variant;
