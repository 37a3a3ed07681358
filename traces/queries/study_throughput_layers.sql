-- study_throughput_layers.sql - time per layer of one cell, with its straggler: prefill where there is, most ranks of two experts, largest batch
SELECT layer, experts_ms, comm_ms, experts_ms / slowdown AS even_ms, straggler, gate, placement, ranks, phase, cluster, error_pct, extrapolated
  FROM throughput WHERE layer IS NOT NULL AND cell = (
       SELECT cell FROM throughput WHERE layer IS NULL
        ORDER BY phase = 'prefill' DESC, 2 * ranks <= (SELECT count(DISTINCT expert) FROM result_placement) DESC,
                 ranks DESC, tokens_per_rank DESC, cell LIMIT 1)
 ORDER BY layer;
