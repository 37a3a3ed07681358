-- load_by_domain.sql - tokens of each domain that chose each expert of layer ?1, and their share of the domain
SELECT domain, expert, count(*) AS tokens,
       1.0 * count(*) / (SELECT sum(d.tokens) FROM document d WHERE d.domain = r.domain) AS share
  FROM router_score r WHERE layer = ?1 AND chosen = 1
 GROUP BY domain, expert ORDER BY domain, tokens DESC, expert;
