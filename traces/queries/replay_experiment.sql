-- replay_experiment.sql - how the last replay was made; no row when there was none
SELECT options, (SELECT count(*) FROM result_variant) AS variants, trace, warnings, token_order, seed, tokens
  FROM result_experiment;
