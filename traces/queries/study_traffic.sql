-- study_traffic.sql - copies from rank to rank of one cell: that of the time per layer where it has them, else the most ranks
SELECT from_rank, to_rank, from_node, to_node, copies, mbytes, ranks, phase, placement, cluster, tokens_per_rank
  FROM traffic_map WHERE cell = (
       SELECT cell FROM throughput WHERE layer IS NULL AND cell IN (SELECT cell FROM result_traffic)
        ORDER BY phase = 'prefill' DESC, 2 * ranks <= (SELECT count(DISTINCT expert) FROM result_placement) DESC,
                 ranks DESC, tokens_per_rank DESC, cell LIMIT 1)
 ORDER BY from_rank, to_rank;
