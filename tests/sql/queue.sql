-- Both queues as SQL sees them: words, states, and the rule of retries.
BEGIN;
SELECT plan(47);

SELECT has_column(queue::name, name::name, queue || ' has ' || name)
  FROM unnest(ARRAY['id', 'topic', 'status', 'attempts', 'max_attempts', 'priority', 'run_at', 'lease_token', 'lease_expires_at', 'last_error', 'updated_at', 'idempotency_key']) AS name,
       unnest(ARRAY['events_queue', 'marketplace_discovery_queue']) AS queue;
SELECT has_column('events_queue', 'payload', 'events_queue has payload');
SELECT has_column('marketplace_discovery_queue', name::name, 'marketplace_discovery_queue has ' || name) FROM unnest(ARRAY['interest_id', 'category_id', 'reason']) AS name;
SELECT col_default_is(queue::name, 'status', 'queued', queue || ' begins with queued') FROM unnest(ARRAY['events_queue', 'marketplace_discovery_queue']) AS queue;
SELECT throws_ok($$INSERT INTO events_queue (topic, status) VALUES ('t', 'processing')$$, '23514', NULL, 'an unknown status of an event is refused');
SELECT throws_ok($$INSERT INTO events_queue (topic, status) VALUES ('t', 'leased')$$, '23514', NULL, 'a lease needs a token and an end');
SELECT throws_ok($$INSERT INTO events_queue (topic) VALUES ('Not A Topic')$$, '23514', NULL, 'a bad topic is refused');
SELECT throws_ok($$INSERT INTO events_queue (topic, payload) VALUES ('t', '[]')$$, '23514', NULL, 'a payload that is no object is refused');
SELECT throws_ok($$INSERT INTO events_queue (topic, priority) VALUES ('t', 101)$$, '23514', NULL, 'a priority out of range is refused');
INSERT INTO interest_catalog (id, domain, category, tag) VALUES ('00000000-0000-0000-0000-000000000001', 'd', 'c', 't');
SELECT throws_ok($$INSERT INTO marketplace_discovery_queue (interest_id, reason, status) VALUES ('00000000-0000-0000-0000-000000000001', 'r', 'leased')$$, '23514', NULL,
    'an unknown status of a discovery item is refused');
SELECT throws_ok($$INSERT INTO marketplace_discovery_queue (interest_id, reason) VALUES ('00000000-0000-0000-0000-000000000002', 'r')$$, '23503', NULL,
    'an unknown interest is refused');

SELECT is(extract(epoch FROM queue_retry_delay(attempt, 0.5))::float8, wait::float8, format('attempt %s waits %s s', attempt, wait))
  FROM (VALUES (1, 2), (2, 4), (5, 32), (30, 3600)) AS rule (attempt, wait);
SELECT is(extract(epoch FROM queue_retry_delay(3, random, '10 s', 3, '1 day', 0.1))::float8, wait::float8, format('a policy of one''s own, random %s', random))
  FROM (VALUES (0.0, 81), (0.5, 90), (1.0, 99)) AS rule (random, wait);
SELECT is(queue_retry_delay(20, 0.5, '1 month', 1, '1 month', 0), '30 days', 'a month is 30 days');
SELECT is(queue_retry_delay(NULL, 0.5), NULL, 'no attempt, no wait');
SELECT is((SELECT array_agg(topic ORDER BY topic) FROM event_topics), ARRAY['discovery.new-interest', 'discovery.user-signup', 'learning.reward', 'marketplace.discovery', 'telemetry.signal']::text[] COLLATE "C",
    'the topics of the runbook are registered');

SELECT * FROM finish();
ROLLBACK;
