-- Every role, grant and policy. Applied again whenever it changes, after all functions and views.

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['steward_readonly', 'steward_app', 'steward_worker', 'steward_admin'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- another database of the cluster is being migrated at this moment
            END;
        END IF;
    END LOOP;
END $$;

-- Nothing is executable or readable by PUBLIC; what each role may do is listed below and nowhere else.
DO $$
DECLARE
    object record;
BEGIN
    FOR object IN
        SELECT p.oid::regprocedure AS name, 'FUNCTION' AS kind FROM pg_proc p
          LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
          LEFT JOIN pg_extension e ON e.oid = d.refobjid
         WHERE p.pronamespace = quote_ident(current_schema)::regnamespace AND (e.extname = 'pgsteward' OR p.oid IN (SELECT steward_schema_functions()))
    LOOP
        EXECUTE format('REVOKE ALL ON %s %s FROM PUBLIC, steward_readonly, steward_app, steward_worker, steward_admin', object.kind, object.name);
    END LOOP;
    EXECUTE format('GRANT USAGE ON SCHEMA %I TO steward_readonly, steward_app, steward_worker, steward_admin', current_schema);
END $$;

GRANT EXECUTE ON FUNCTION
    steward_version(), trust_role_multiplier(text), trust_membership_points(text, double precision), trust_formula(text[], double precision[], double precision[]),
    queue_retry_delay(int, double precision, interval, double precision, interval, double precision), require_valid(boolean, text, text, text), require_argument(anyelement, text),
    steward_user(), steward_user_id(), steward_caller(), trust_score(uuid), trust_rank(uuid), trust_history(uuid, timestamptz, int),
    trust_effects(text[], double precision[], double precision[]), trust_ranking_enabled(), search_place(text), search_distance(point, point),
    search_proximity(double precision), search_recency(double precision, double precision),
    search_score(double precision, double precision, double precision, double precision, double precision[]), discovery_gap_level(bigint), discovery_gap_severity(text, bigint)
    TO steward_readonly, steward_app, steward_worker, steward_admin;

GRANT EXECUTE ON FUNCTION
    enqueue_event(text, jsonb, text, int, timestamptz, int, text, bigint[]), enqueue_events(text, jsonb[], text[], int, timestamptz, int, text[]),
    enqueue_discovery_item(uuid, uuid, text, int, timestamptz), enqueue_discovery_items(uuid[], uuid[], text[], int, timestamptz),
    owns_scene(uuid), joined_scene(uuid), shown_scene(uuid), trust_explain(uuid), trust_simulate(uuid, jsonb),
    search_scenes(text, point, int, text, timestamptz), search_candidates(tsquery, point, int, boolean, timestamptz), search_cursor(text), setting_version(text, timestamptz)
    TO steward_app, steward_worker, steward_admin;

-- Users act through the application.
GRANT EXECUTE ON FUNCTION
    request_membership(uuid), approve_membership(uuid, text), reject_membership(uuid, text),
    create_alliance(uuid, uuid, double precision, text), update_alliance(uuid, double precision, text), dissolve_alliance(uuid)
    TO steward_app, steward_admin;

GRANT EXECUTE ON FUNCTION
    lease_events(text, int, int, text), hold_events(bigint[], uuid, timestamptz),
    ack_events(bigint[], uuid, jsonb[], timestamptz), fail_events(bigint[], uuid, text, boolean, timestamptz),
    extend_events(bigint[], uuid, int, timestamptz), release_events(bigint[], uuid, timestamptz), expire_events(int, timestamptz),
    check_lease_arguments(bigint[], uuid), check_ids(bigint[]), lock_order(bigint[]), run_handler(text, bigint[], jsonb[]), process_events(bigint[], uuid),
    lease_discovery_items(int, int, text), hold_discovery_items(bigint[], uuid, timestamptz),
    ack_discovery_items(bigint[], uuid, jsonb[], timestamptz), fail_discovery_items(bigint[], uuid, text, boolean, timestamptz),
    extend_discovery_items(bigint[], uuid, int, timestamptz), release_discovery_items(bigint[], uuid, timestamptz), expire_discovery_items(int, timestamptz),
    refresh_gaps(uuid[], uuid[]), check_discovery_items(bigint[], jsonb[]), process_discovery_items(bigint[], uuid),
    worker_beat(text, text, int, text, timestamptz, text, boolean, int, bigint, text, int, int, int, int, double precision, int, text, timestamptz),
    record_trust_run(timestamptz, double precision, bigint, bigint, bigint, bigint, double precision, boolean, text),
    expire_trust_runs(int, interval), expire_trust_history(int, interval),
    trust_recompute(int, interval, bigint, text, uuid, uuid), trust_recompute_scene(uuid), trust_mark_dirty(uuid[]), trust_mark_allies(uuid[], uuid[]), trust_compute(uuid[]), trust_verify(uuid[])
    TO steward_worker, steward_admin;

-- A propagation runs with the rights of its owner, so that it reads the tables in one pass; row security would not let it.
GRANT EXECUTE ON FUNCTION
    trust_propagate(double precision, uuid[], int, double precision, interval),
    trust_propagate_edges(text[], text[], double precision[], double precision, text[], int, double precision),
    expire_trust_propagation_runs(int, interval)
    TO steward_worker, steward_admin;
GRANT SELECT ON trust_ranks, trust_propagation_runs TO steward_readonly, steward_worker, steward_admin;

GRANT EXECUTE ON FUNCTION
    steward_schema(), steward_schema_status(), steward_files(), trust_timeout_sec(), setting(text, timestamptz)
    TO steward_readonly, steward_worker, steward_admin;

GRANT EXECUTE ON FUNCTION
    set_setting(text, jsonb, text), register_topic(text, regproc, int, text), configure_topic(text, jsonb), pause_topic(text), resume_topic(text), drain_topic(text),
    requeue_events(bigint[]), cancel_events(bigint[], text), discard_events(bigint[], text),
    requeue_discovery_items(bigint[]), cancel_discovery_items(bigint[], text), discard_discovery_items(bigint[], text), trust_mark_all_dirty(), wake_workers(text),
    steward_schema_functions(), steward_catalogue(), steward_catalogue_expected(),
    steward_schema_validate(), steward_schema_report(), steward_schema_stats()
    TO steward_admin;

GRANT SELECT ON vw_events_queue_health, vw_discovery_queue_health, vw_dead_letter_queue, vw_xmin_horizon, vw_gap_severity,
    vw_trust_health, trust_size, vw_trust_metrics, vw_trust_slo, vw_trust_timeouts, vw_worker_health, steward_health
    TO steward_readonly, steward_worker, steward_admin;
GRANT INSERT (topic, payload, idempotency_key, ordering_key, priority, run_at, max_attempts) ON events_inbox TO steward_app, steward_worker, steward_admin;
GRANT SELECT ON schema_migrations, trust_scores, trust_score_history, trust_recompute_runs, event_topics, settings, setting_keys
    TO steward_readonly, steward_worker, steward_admin;

-- The worker reads what trust is computed from and writes what follows from it.
GRANT SELECT ON scenes, memberships, alliances TO steward_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON trust_scores, trust_dirty TO steward_worker;
GRANT SELECT ON trust_recompute_runs TO steward_worker;
GRANT SELECT, INSERT ON trust_score_history TO steward_worker;
GRANT USAGE ON SEQUENCE trust_dirty_generation_seq TO steward_worker;

-- Administrators do by hand what the documents' runbooks do by hand.
GRANT SELECT, INSERT, UPDATE, DELETE ON
    scenes, memberships, alliances, trust_scores, trust_score_history, trust_dirty, trust_recompute_runs,
    events_queue, marketplace_discovery_queue, event_keys,
    interest_catalog, marketplace_categories, marketplace_interest_map, user_interests, marketplace_listings, marketplace_gaps TO steward_admin;
GRANT SELECT ON audit_log, event_tally, trust_tally, event_topics, event_parents, topic_usage, topic_slots, key_pace, worker_heartbeats,
    events_queue_live, events_queue_done, events_queue_error,
    marketplace_discovery_queue_live, marketplace_discovery_queue_done, marketplace_discovery_queue_error TO steward_admin;
GRANT USAGE ON SEQUENCE trust_dirty_generation_seq, queue_id_seq TO steward_admin;

GRANT SELECT ON interest_catalog, marketplace_categories, marketplace_interest_map TO steward_readonly, steward_app, steward_worker, steward_admin;
GRANT SELECT ON marketplace_gaps TO steward_readonly, steward_worker, steward_admin;

-- Applications read through row-level security.
GRANT SELECT ON scenes, memberships, alliances, marketplace_listings TO steward_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON user_interests TO steward_app;

ALTER TABLE scenes ENABLE ROW LEVEL SECURITY;
ALTER TABLE memberships ENABLE ROW LEVEL SECURITY;
ALTER TABLE alliances ENABLE ROW LEVEL SECURITY;
ALTER TABLE events_queue ENABLE ROW LEVEL SECURITY;
ALTER TABLE events_queue_live ENABLE ROW LEVEL SECURITY;
ALTER TABLE events_queue_done ENABLE ROW LEVEL SECURITY;
ALTER TABLE events_queue_error ENABLE ROW LEVEL SECURITY;
ALTER TABLE marketplace_discovery_queue ENABLE ROW LEVEL SECURITY;
ALTER TABLE marketplace_discovery_queue_live ENABLE ROW LEVEL SECURITY;
ALTER TABLE marketplace_discovery_queue_done ENABLE ROW LEVEL SECURITY;
ALTER TABLE marketplace_discovery_queue_error ENABLE ROW LEVEL SECURITY;
ALTER TABLE event_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE user_interests ENABLE ROW LEVEL SECURITY;
ALTER TABLE marketplace_listings ENABLE ROW LEVEL SECURITY;

DO $$
DECLARE
    policy record;
BEGIN
    FOR policy IN
        SELECT * FROM (VALUES
            ('scenes',             'worker_reads',    'SELECT', 'steward_worker', 'true'),
            ('memberships',        'worker_reads',    'SELECT', 'steward_worker', 'true'),
            ('alliances',          'worker_reads',    'SELECT', 'steward_worker', 'true'),
            ('scenes',             'admin_all',       'ALL',    'steward_admin',  'true'),
            ('memberships',        'admin_all',       'ALL',    'steward_admin',  'true'),
            ('alliances',          'admin_all',       'ALL',    'steward_admin',  'true'),
            ('events_queue',       'admin_all',       'ALL',    'steward_admin',  'true'),
            ('events_queue_live',  'admin_all',       'ALL',    'steward_admin',  'true'),
            ('events_queue_done',  'admin_all',       'ALL',    'steward_admin',  'true'),
            ('events_queue_error', 'admin_all',       'ALL',    'steward_admin',  'true'),
            ('event_keys',         'admin_all',       'ALL',    'steward_admin',  'true'),
            ('marketplace_discovery_queue',       'admin_all', 'ALL',    'steward_admin', 'true'),
            ('marketplace_discovery_queue_live',  'admin_all', 'ALL',    'steward_admin', 'true'),
            ('marketplace_discovery_queue_done',  'admin_all', 'ALL',    'steward_admin', 'true'),
            ('marketplace_discovery_queue_error', 'admin_all', 'ALL',    'steward_admin', 'true'),
            ('user_interests',       'admin_all',       'ALL',    'steward_admin',  'true'),
            ('marketplace_listings', 'admin_all',       'ALL',    'steward_admin',  'true'),
            ('user_interests',       'app_has_own',     'ALL',    'steward_app',    'user_id = (SELECT steward_user_id())'),
            ('marketplace_listings', 'app_reads_shown', 'SELECT', 'steward_app',
                'status = ''active'' OR seller_profile_id = (SELECT steward_user_id())'),
            ('scenes',             'app_reads_shown', 'SELECT', 'steward_app',
                'deleted_at IS NULL AND (owner_did = (SELECT steward_user()) OR (moderation_status IN (''visible'', ''flagged'') AND (visibility = ''public'' OR joined_scene(id))))'),
            ('memberships',        'app_reads_own',   'SELECT', 'steward_app', 'user_did = (SELECT steward_user()) OR owns_scene(scene_id)'),
            ('alliances',          'app_reads_live',  'SELECT', 'steward_app', 'deleted_at IS NULL')
        ) AS p (table_name, name, command, role_name, rows)
    LOOP
        EXECUTE format('DROP POLICY IF EXISTS %I ON %I', policy.name, policy.table_name);
        EXECUTE format('CREATE POLICY %I ON %I FOR %s TO %I USING (%s)', policy.name, policy.table_name, policy.command, policy.role_name, policy.rows);
    END LOOP;
END $$;
