-- domain_tokens.sql - documents and tokens per domain, in order of appearance
SELECT domain, count(*) AS documents, sum(tokens) AS tokens, sum(bytes) AS bytes FROM document
 GROUP BY domain ORDER BY min(document);
