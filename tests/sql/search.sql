-- Search and settings, as SQL sees them.
BEGIN;
SELECT plan(36);

SELECT has_table(name::name) FROM unnest(ARRAY['settings', 'setting_keys']) AS name;
SELECT col_is_pk('settings', ARRAY['key', 'version']);
SELECT has_index('scenes', 'scenes_words_idx', ARRAY['words']);
SELECT index_is_type('scenes', 'scenes_words_idx', 'gin');
SELECT has_trigger('scenes', 'search_words');
SELECT volatility_is(name::name, 'stable') FROM unnest(ARRAY['search_scenes', 'search_candidates', 'trust_explain', 'trust_simulate', 'trust_history', 'setting']) AS name;
SELECT volatility_is(name::name, 'immutable') FROM unnest(ARRAY['search_score', 'search_distance', 'search_place', 'trust_effects']) AS name;

-- The formulas, through SQL.
SELECT ok(abs(search_distance(a, b) - km) < 0.1, format('%s to %s is %s km', a, b, km))
  FROM (VALUES (point(13.405, 52.52), point(2.3522, 48.8566), 877.5), (point(0, 0), point(180, 0), 20015.1), (point(7, 7), point(7, 7), 0)) AS v (a, b, km);
SELECT ok(search_place(hash) IS NULL, format('"%s" is no place', hash)) FROM unnest(ARRAY['', 's00000', 'a', 'u33db2!', '🦀']) AS hash;
SELECT ok(search_place('u4pruydqqvj') <@ circle '((10.40744,57.64911),0.00001)', 'a geohash is a place');
SELECT is(search_proximity(km), expected, format('proximity of %s km', km)) FROM (VALUES (0::float8, 1::float8), (1, 0.5), (NULL, 0), ('NaN', 0)) AS v (km, expected);
SELECT is(search_score(1, 1, 1, 1, '{0.5,0.25,0.125,0.125}'), 1::float8, 'all parts make a whole score');
SELECT throws_ok($$SELECT search_score(1, 1, 1, 1, '{1}')$$, '22023', NULL, 'a weight is missing');
SELECT throws_ok($$SELECT search_score(1, 1, 1, 1, '{0.1,0.1,0.1,1.1}')$$, '22023', NULL, 'a weight is too large');
SELECT throws_ok($$SELECT search_distance(point(0, 91), point(0, 0))$$, '22023', NULL, 'a latitude is too large');
SELECT throws_ok($$SELECT search_recency(1, 0)$$, '22023', NULL, 'no half-life is 0');

-- What a member or ally does to a score.
SELECT is(trust_effects('{owner,owner}', '{1,0.5}', '{0.5}'), '{0.125,-0.125,-0.375}'::float8[], 'effects of two members and an alliance');
SELECT is(trust_effects(), '{}'::float8[], 'nothing has no effect');

SELECT * FROM finish();
ROLLBACK;
