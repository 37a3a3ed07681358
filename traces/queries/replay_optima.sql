-- replay_optima.sql - score mass kept in the last batch against the best at exact balance: means over layers
SELECT variant, label, batch, maxvio, mass, optimum, above
  FROM replay_optimum JOIN result_variant USING (variant) WHERE layer IS NULL ORDER BY variant;
