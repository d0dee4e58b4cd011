-- Gaps of the marketplace, worst first.

CREATE OR REPLACE VIEW vw_gap_severity AS
WITH grouped AS (
    SELECT i.domain, i.category, g.gap_level, count(*) AS ct, avg(g.inventory_ct)::double precision AS avg_inventory, array_agg(DISTINCT g.interest_id) AS interests
      FROM marketplace_gaps g
      JOIN interest_catalog i ON i.id = g.interest_id AND i.is_active
      LEFT JOIN marketplace_categories c ON c.id = g.category_id
     WHERE c.is_active IS NOT FALSE
     GROUP BY i.domain, i.category, g.gap_level
)
SELECT g.domain, g.category, g.gap_level, g.ct, g.avg_inventory, d.demand, discovery_gap_severity(g.gap_level, d.demand) AS severity
  FROM grouped g CROSS JOIN LATERAL (
        SELECT count(*) AS demand FROM (SELECT DISTINCT u.user_id FROM user_interests u WHERE u.interest_id = ANY (g.interests)) AS users) AS d
 ORDER BY severity DESC, demand DESC, avg_inventory, domain, category;
COMMENT ON VIEW vw_gap_severity IS
    'The gaps of active interests by domain, category and level, worst first: by level, then by the users who want it, then by the least inventory.';
COMMENT ON COLUMN vw_gap_severity.domain IS 'Domain of the interests';
COMMENT ON COLUMN vw_gap_severity.category IS 'Category of the interests';
COMMENT ON COLUMN vw_gap_severity.gap_level IS 'none, low or critical';
COMMENT ON COLUMN vw_gap_severity.ct IS 'Rows of marketplace_gaps: pairs of an interest and a category that serves it';
COMMENT ON COLUMN vw_gap_severity.avg_inventory IS 'Mean number of active listings in stock';
COMMENT ON COLUMN vw_gap_severity.demand IS 'Users with at least one of the interests';
COMMENT ON COLUMN vw_gap_severity.severity IS 'discovery_gap_severity(): none 0 to 1, low 1 to 2, critical 2 to 3';

-- What sellers do not offer is news for the business, not a fault of the system.
CREATE OR REPLACE VIEW health_discovery (check_name, level, subject, value, threshold, detail, hint) AS
SELECT 'discovery.unserved', 'ok', 'interest_catalog', count(*)::double precision, NULL::double precision,
       format('%s interests that users have are not served at all', count(*)),
       CASE WHEN count(*) > 0 THEN 'SELECT * FROM vw_gap_severity LIMIT 20;' END
  FROM interest_catalog i
 WHERE i.is_active
   AND EXISTS (SELECT FROM marketplace_gaps g LEFT JOIN marketplace_categories c ON c.id = g.category_id
                WHERE g.interest_id = i.id AND g.gap_level = 'critical' AND c.is_active IS NOT FALSE)
   AND NOT EXISTS (SELECT FROM marketplace_gaps g JOIN marketplace_categories c ON c.id = g.category_id
                    WHERE g.interest_id = i.id AND g.gap_level <> 'critical' AND c.is_active)
   AND EXISTS (SELECT FROM user_interests u WHERE u.interest_id = i.id);
COMMENT ON VIEW health_discovery IS 'The checks of discovery, for steward_health';
