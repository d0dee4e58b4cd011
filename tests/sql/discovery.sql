-- The discovery tables, rules and views, as SQL sees them.
BEGIN;
SELECT plan(75);

SELECT has_table(name::name) FROM unnest(ARRAY['interest_catalog', 'marketplace_categories', 'marketplace_interest_map', 'user_interests', 'marketplace_listings', 'marketplace_gaps']) AS name;
SELECT col_default_is('interest_catalog', 'locale', 'en-US');
SELECT col_default_is('marketplace_listings', 'status', 'draft');
SELECT col_default_is('user_interests', 'affinity', '0.8');
SELECT col_type_is('user_interests', 'affinity', 'double precision');
SELECT col_is_pk('user_interests', ARRAY['user_id', 'interest_id']);
SELECT col_is_pk('marketplace_interest_map', ARRAY['interest_id', 'category_id']);
SELECT col_is_unique('interest_catalog', ARRAY['domain', 'category', 'tag', 'locale']);
SELECT col_is_unique('marketplace_categories', 'slug');
SELECT col_is_unique('marketplace_gaps', ARRAY['interest_id', 'category_id']);
SELECT columns_are('vw_gap_severity', ARRAY['domain', 'category', 'gap_level', 'ct', 'avg_inventory', 'demand', 'severity']);
SELECT is_empty($$
    SELECT a.attrelid::regclass, a.attname FROM pg_attribute a
     WHERE a.attrelid = ANY ('{interest_catalog,marketplace_categories,marketplace_interest_map,user_interests,marketplace_listings,marketplace_gaps,vw_gap_severity}'::regclass[])
       AND a.attnum > 0 AND NOT a.attisdropped AND col_description(a.attrelid, a.attnum) IS NULL$$, 'every column has a comment');

-- The vectors of the rules, through SQL.
SELECT is(discovery_gap_level(inventory), level, format('gap level of %s', inventory))
  FROM (VALUES (0::bigint, 'critical'), (1, 'low'), (2, 'low'), (4, 'low'), (5, 'none'), (6, 'none'), (9223372036854775807, 'none')) AS v (inventory, level);
SELECT is(discovery_gap_severity(level, demand), severity, format('severity of %s with %s users', level, demand))
  FROM (VALUES ('none', 0::bigint, 0::double precision), ('low', 0, 1), ('critical', 0, 2), ('none', 1, 0.5), ('low', 3, 1.75), ('critical', 1, 2.5)) AS v (level, demand, severity);
SELECT ok(discovery_gap_severity('low', 9223372036854775807) < discovery_gap_severity('critical', 0), 'no demand lifts a gap above a worse level');
SELECT is(discovery_gap_level(NULL), NULL, 'no inventory, no level');
SELECT throws_ok('SELECT discovery_gap_level(-1)', '22003', 'inventory -1 is negative', 'negative inventory');
SELECT throws_ok('SELECT discovery_gap_severity(''low'', -1)', '22003', 'demand -1 is negative', 'negative demand');
SELECT throws_ok('SELECT discovery_gap_severity(''LOW'', 1)', '22023', 'gap level "LOW" does not exist', 'unknown level');
SELECT volatility_is(name::name, 'immutable') FROM unnest(ARRAY['discovery_gap_level', 'discovery_gap_severity']) AS name;
SELECT is_strict(name::name) FROM unnest(ARRAY['discovery_gap_level', 'discovery_gap_severity']) AS name;
SELECT is(proparallel, 's', proname || ' is parallel safe') FROM pg_proc WHERE proname IN ('discovery_gap_level', 'discovery_gap_severity') ORDER BY proname;

-- What the tables refuse.
INSERT INTO interest_catalog (id, domain, category, tag) VALUES ('00000000-0000-0000-0000-00000000000a', 'music', 'records', 'jazz');
INSERT INTO marketplace_categories (id, slug, name, domain, category) VALUES ('00000000-0000-0000-0000-00000000000c', 'jazz', 'Jazz', 'music', 'records');
SELECT throws_ok(statement, code, NULL, format('%s: %s', code, statement)) FROM (VALUES
    ('23505', 'INSERT INTO interest_catalog (domain, category, tag) VALUES (''music'', ''records'', ''jazz'')'),
    ('23514', 'INSERT INTO interest_catalog (domain, category, tag) VALUES ('' '', ''records'', ''jazz'')'),
    ('23514', 'INSERT INTO interest_catalog (domain, category, tag) VALUES (''music'', '''', ''jazz'')'),
    ('23514', 'INSERT INTO interest_catalog (domain, category, tag) VALUES (''music'', ''records'', repeat(''x'', 101))'),
    ('23514', 'INSERT INTO interest_catalog (domain, category, tag, locale) VALUES (''music'', ''records'', ''jazz'', ''english'' || chr(10))'),
    ('23505', 'INSERT INTO marketplace_categories (slug, name, domain, category) VALUES (''jazz'', ''n'', ''d'', ''c'')'),
    ('23514', 'INSERT INTO marketplace_categories (slug, name, domain, category) VALUES (''Jazz'', ''n'', ''d'', ''c'')'),
    ('23514', 'INSERT INTO marketplace_categories (slug, name, domain, category) VALUES (''j'', E''\t'', ''d'', ''c'')'),
    ('23514', 'INSERT INTO marketplace_categories (slug, name, domain, category, tags) VALUES (''j'', ''n'', ''d'', ''c'', ''{a,NULL}'')'),
    ('23514', 'INSERT INTO marketplace_interest_map (interest_id, category_id, confidence) VALUES (''00000000-0000-0000-0000-00000000000a'', ''00000000-0000-0000-0000-00000000000c'', 1.01)'),
    ('23503', 'INSERT INTO marketplace_interest_map (interest_id, category_id) VALUES (''00000000-0000-0000-0000-00000000000a'', ''00000000-0000-0000-0000-00000000000a'')'),
    ('23514', 'INSERT INTO user_interests (user_id, interest_id, affinity) VALUES (gen_random_uuid(), ''00000000-0000-0000-0000-00000000000a'', ''NaN'')'),
    ('23514', 'INSERT INTO user_interests (user_id, interest_id, affinity) VALUES (gen_random_uuid(), ''00000000-0000-0000-0000-00000000000a'', -0.1)'),
    ('23514', 'INSERT INTO user_interests (user_id, interest_id, confidence) VALUES (gen_random_uuid(), ''00000000-0000-0000-0000-00000000000a'', ''guessed'')'),
    ('23503', 'INSERT INTO user_interests (user_id, interest_id) VALUES (gen_random_uuid(), gen_random_uuid())'),
    ('23514', 'INSERT INTO marketplace_listings (seller_profile_id, title, price_cents) VALUES (gen_random_uuid(), ''t'', -1)'),
    ('23514', 'INSERT INTO marketplace_listings (seller_profile_id, title, price_cents, stock_quantity) VALUES (gen_random_uuid(), ''t'', 1, -1)'),
    ('23514', 'INSERT INTO marketplace_listings (seller_profile_id, title, price_cents, status) VALUES (gen_random_uuid(), ''t'', 1, ''gone'')'),
    ('23514', 'INSERT INTO marketplace_listings (seller_profile_id, title, price_cents, currency) VALUES (gen_random_uuid(), ''t'', 1, ''usd'')'),
    ('23514', 'INSERT INTO marketplace_listings (seller_profile_id, title, price_cents, media) VALUES (gen_random_uuid(), ''t'', 1, ''{}'')'),
    ('23502', 'INSERT INTO marketplace_listings (seller_profile_id, price_cents) VALUES (gen_random_uuid(), 1)'),
    ('23514', 'INSERT INTO marketplace_gaps (interest_id, gap_level) VALUES (''00000000-0000-0000-0000-00000000000a'', ''severe'')'),
    ('23514', 'INSERT INTO marketplace_gaps (interest_id, inventory_ct) VALUES (''00000000-0000-0000-0000-00000000000a'', -1)')
  ) AS refused (code, statement);
INSERT INTO marketplace_gaps (interest_id) VALUES ('00000000-0000-0000-0000-00000000000a');
SELECT throws_ok('INSERT INTO marketplace_gaps (interest_id) VALUES (''00000000-0000-0000-0000-00000000000a'')', '23505', NULL, 'one gap without category per interest');
SELECT lives_ok('INSERT INTO marketplace_gaps (interest_id, category_id) VALUES (''00000000-0000-0000-0000-00000000000a'', ''00000000-0000-0000-0000-00000000000c'')', 'and one per category');
SELECT is(gap_level, discovery_gap_level(inventory_ct), 'a new gap row agrees with its inventory') FROM marketplace_gaps WHERE category_id IS NULL;

-- Errors of refresh_gaps().
SELECT throws_ok('SELECT * FROM refresh_gaps(NULL)', '22004', 'interest_ids must not be NULL', 'no interests');
SELECT throws_ok('SELECT * FROM refresh_gaps(ARRAY[NULL]::uuid[])', '22004', 'interest_ids must not contain NULL', 'an interest is missing');
SELECT throws_ok('SELECT * FROM refresh_gaps(''{00000000-0000-0000-0000-00000000000a}'', ''{}'')', '2202E', '0 categories for 1 interests', 'another number of categories');
SELECT is_empty('SELECT * FROM refresh_gaps(''{}'')', 'nothing asked, nothing done');

-- Counting uses the index that holds only what counts.
SELECT has_index('marketplace_listings', 'marketplace_listings_in_stock_idx', 'category_id');

-- Rows go with what they are about; a listing outlives its category.
INSERT INTO marketplace_listings (category_id, seller_profile_id, title, price_cents) VALUES ('00000000-0000-0000-0000-00000000000c', gen_random_uuid(), 't', 1);
DELETE FROM marketplace_categories WHERE slug = 'jazz';
SELECT results_eq('SELECT category_id FROM marketplace_listings WHERE title = ''t''', 'SELECT NULL::uuid', 'a listing outlives its category');
SELECT is((SELECT count(*) FROM marketplace_gaps), 1::bigint, 'a gap goes with its category');
DELETE FROM interest_catalog;
SELECT is_empty('SELECT * FROM marketplace_gaps', 'a gap goes with its interest');

SELECT * FROM finish();
ROLLBACK;
