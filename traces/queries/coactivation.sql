-- coactivation.sql - pairs of experts of layer ?1 that most often serve the same token, against chance
WITH picked AS MATERIALIZED (SELECT token, expert FROM router_score WHERE layer = ?1 AND chosen = 1),
     load AS (SELECT expert, count(*) AS n FROM picked GROUP BY expert),
     total AS (SELECT count(DISTINCT token) AS t FROM picked)
SELECT a.expert AS expert, b.expert AS other, count(*) AS tokens,
       1.0 * count(*) * (SELECT t FROM total) / (x.n * y.n) AS lift
  FROM picked a JOIN picked b ON b.token = a.token AND b.expert > a.expert
  JOIN load x ON x.expert = a.expert JOIN load y ON y.expert = b.expert
 GROUP BY a.expert, b.expert ORDER BY tokens DESC, a.expert, b.expert LIMIT 50;
