-- replay_losses.sql - training losses of each variant, one column a loss: means over layers
SELECT variant, label,
       max(value) FILTER (WHERE loss = 'switch') AS switch, max(value) FILTER (WHERE loss = 'gshard') AS gshard,
       max(value) FILTER (WHERE loss = 'hf') AS hf, max(value) FILTER (WHERE loss = 'sequence') AS sequence,
       max(value) FILTER (WHERE loss = 'device') AS device,
       max(value) FILTER (WHERE loss = 'communication') AS communication, max(value) FILTER (WHERE loss = 'z') AS z
  FROM replay_loss JOIN result_variant USING (variant) WHERE layer IS NULL GROUP BY variant ORDER BY variant;
