-- replay_dynamics.sql - how the load of each variant moved over balance batches: means over layers
SELECT variant, label, batch_tokens, batches, start, level, settling_batches, settled, overshoot, amplitude,
       period
  FROM replay_dynamics WHERE layer IS NULL ORDER BY variant;
