-- domain_drift.sql - total variation distance between the loads of two domains under variant ?1, mean over layers
WITH share AS (SELECT layer, domain, expert,
                      1.0 * tokens / sum(tokens) OVER (PARTITION BY layer, domain) AS p
                 FROM domain_load WHERE variant = ?1),
     pair AS (SELECT a.layer, a.domain, b.domain AS other, sum(abs(a.p - b.p)) / 2 AS variation
                FROM share a JOIN share b ON a.layer = b.layer AND a.expert = b.expert AND a.domain < b.domain
               GROUP BY a.layer, a.domain, b.domain)
SELECT domain, other, avg(variation) AS variation, max(variation) AS largest
  FROM pair GROUP BY domain, other ORDER BY domain, other;
