CREATE UNLOGGED TABLE next AS
WITH flow AS (
    SELECT s.target AS node, sum(s.share * r.rank) AS flow FROM shares s JOIN ranks r ON r.node = s.source GROUP BY s.target
), teleported AS (
    SELECT (1 - 0.85 + 0.85 * coalesce((SELECT sum(r.rank) FROM ranks r JOIN stuck USING (node)), 0)) / (SELECT count(*) FROM ranks) AS part
)
SELECT r.node, 0.85 * coalesce(f.flow, 0) + t.part AS rank
  FROM ranks r LEFT JOIN flow f USING (node) CROSS JOIN teleported t;
SELECT sum(abs(n.rank - r.rank)) FROM next n JOIN ranks r USING (node);
DROP TABLE ranks;
ALTER TABLE next RENAME TO ranks;
ANALYZE ranks
