-- contested_tokens.sql - tokens of layer ?1 with the smallest margin between the weakest chosen score and the best left out
-- scores without bias; a negative margin means that bias or groups decided against the score
SELECT token, document, position, text,
       min(CASE chosen WHEN 1 THEN score END) - max(CASE chosen WHEN 0 THEN score END) AS margin
  FROM router_score WHERE layer = ?1
 GROUP BY token ORDER BY abs(margin), token LIMIT 50;
