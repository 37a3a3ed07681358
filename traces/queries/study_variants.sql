-- study_variants.sql - what was replayed, with its means over layers
SELECT v.variant, v.gate, v.label, v.bias_rule, v.bias_rate, v.bias_start, v.batch_tokens, v.ranks,
       v.same_as, v.same_why, s.maxvio_global, s.maxvio_batch, s.cv, s.gini, s.entropy, s.load_min,
       s.load_max, s.ties, s.group_escapes, s.agreement, s.mass_retained, s.rank_maxvio, s.efficiency
  FROM result_variant v LEFT JOIN replay_summary s ON s.variant = v.variant AND s.layer IS NULL
 ORDER BY v.variant;
