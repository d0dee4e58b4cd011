-- Everything that need not be done in each iteration: small numbers in place of UUIDs, shares in place of weights.
CREATE UNLOGGED TABLE nodes AS
SELECT (row_number() OVER ())::int AS node, id AS scene_id FROM scenes
 WHERE deleted_at IS NULL AND moderation_status NOT IN ('hidden', 'suspended');
ANALYZE nodes;
CREATE UNLOGGED TABLE shares AS
SELECT f.node AS source, t.node AS target, a.weight / sum(a.weight) OVER (PARTITION BY f.node) AS share
  FROM alliances a JOIN nodes f ON f.scene_id = a.from_scene_id JOIN nodes t ON t.scene_id = a.to_scene_id
 WHERE a.status = 'active' AND a.deleted_at IS NULL;
CREATE INDEX ON shares (target) INCLUDE (source, share);
CREATE UNLOGGED TABLE stuck AS
SELECT node FROM nodes n WHERE NOT EXISTS (SELECT FROM shares s WHERE s.source = n.node);
CREATE UNLOGGED TABLE ranks AS
SELECT node, 1.0::float8 / count(*) OVER () AS rank FROM nodes;
CREATE UNIQUE INDEX ON ranks (node);
VACUUM ANALYZE shares;
ANALYZE stuck;
ANALYZE ranks
