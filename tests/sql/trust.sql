-- The trust tables and formula, as SQL sees them.
BEGIN;
SELECT plan(35);

SELECT has_table(name::name) FROM unnest(ARRAY['scenes', 'memberships', 'alliances', 'trust_scores', 'trust_dirty', 'trust_recompute_runs']) AS name;
SELECT col_is_pk('trust_scores', 'scene_id');
SELECT col_not_null('memberships', 'trust_weight');
SELECT col_default_is('memberships', 'trust_weight', '0.5');
SELECT col_default_is('memberships', 'role', 'member');
SELECT col_default_is('memberships', 'status', 'pending');
SELECT col_default_is('alliances', 'weight', '1.0');
SELECT col_default_is('alliances', 'status', 'active');
SELECT has_trigger(t::name, g::name) FROM unnest(ARRAY['memberships', 'alliances']) t, unnest(ARRAY['trust_insert', 'trust_update', 'trust_delete', 'trust_truncate']) g;

-- The golden vectors of the formula, through SQL.
SELECT ok(abs(trust_formula(roles, weights, alliances) - expected) < 1e-9, format('formula of %s %s %s', roles, weights, alliances))
  FROM (VALUES
    ('{}'::text[], '{}'::float8[], '{}'::float8[], 0.0::float8), ('{member}', '{0.8}', '{}', 0.4), ('{curator}', '{0.8}', '{}', 0.64),
    ('{owner}', '{0.5}', '{}', 0.5), ('{owner}', '{0.8}', '{}', 0.8), ('{guest}', '{1.0}', '{}', 0.3),
    ('{member,curator,owner}', '{0.6,0.8,1.0}', '{}', 1.94 / 3), ('{member}', '{1.0}', '{0.5}', 0.25), ('{member}', '{1.0}', '{0.4,0.6,0.8}', 0.3),
    ('{owner,curator,member,guest}', '{0.9,0.7,0.5,0.8}', '{0.9,0.7}', 0.39), ('{curator}', '{0.8}', '{0.6,0.8}', 0.448),
    ('{unknown_role}', '{0.5}', '{}', 0.25), ('{member}', '{0.0}', '{}', 0.0), ('{member}', '{1.0}', '{0.0}', 0.0)
  ) AS vector (roles, weights, alliances, expected);

SELECT * FROM finish();
ROLLBACK;
