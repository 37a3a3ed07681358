-- capture_nll.sql - mean NLL over predicted tokens (nats), and bits per byte of their text
-- token t holds the NLL of token t+1; bytes are known when every predicted token has a piece
SELECT count(t.nll) AS predicted, avg(t.nll) AS nll,
       CASE WHEN count(p.id) = count(t.nll)
            THEN sum(t.nll) / 0.69314718055994531 / nullif(sum(length(CAST(p.text AS BLOB))), 0)
       END AS bits_per_byte
  FROM token t JOIN token next ON next.token = t.token + 1 LEFT JOIN piece p ON p.id = next.id
 WHERE t.nll IS NOT NULL;
