-- events_queue as SQL sees it: words, states, and the rule of retries.
BEGIN;
SELECT plan(21);

SELECT has_column('events_queue', name::name, 'events_queue has ' || name)
  FROM unnest(ARRAY['id', 'topic', 'payload', 'status', 'attempts', 'max_attempts', 'priority', 'run_at', 'lease_token', 'lease_expires_at', 'last_error', 'idempotency_key']) AS name;
SELECT col_default_is('events_queue', 'status', 'queued');
SELECT throws_ok($$INSERT INTO events_queue (topic, status) VALUES ('t', 'processing')$$, '23514', NULL, 'an unknown status is refused');
SELECT throws_ok($$INSERT INTO events_queue (topic, status) VALUES ('t', 'leased')$$, '23514', NULL, 'a lease needs a token and an end');
SELECT throws_ok($$INSERT INTO events_queue (topic) VALUES ('Not A Topic')$$, '23514', NULL, 'a bad topic is refused');

SELECT is(extract(epoch FROM queue_retry_delay(attempt, 0.5))::float8, wait::float8, format('attempt %s waits %s s', attempt, wait))
  FROM (VALUES (1, 2), (2, 4), (5, 32), (30, 3600)) AS rule (attempt, wait);
SELECT is(queue_retry_delay(NULL, 0.5), NULL, 'no attempt, no wait');

SELECT * FROM finish();
ROLLBACK;
