-- study_load_curve.sql - sorted load of variant ?1, relative to the mean; mean over layers at each place
SELECT place, avg(load) AS load
  FROM (SELECT row_number() OVER (PARTITION BY layer ORDER BY tokens DESC) AS place,
               tokens / nullif(avg(tokens) OVER (PARTITION BY layer), 0) AS load
          FROM expert_load WHERE variant = ?1)
 GROUP BY place ORDER BY place;
