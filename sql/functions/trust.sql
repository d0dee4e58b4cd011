-- Marking scenes dirty in the transaction of the change, and reading trust. The recompute itself is in the extension.

CREATE OR REPLACE FUNCTION trust_mark(scene_ids uuid[], recount boolean DEFAULT true, alliances_changed boolean DEFAULT true,
                                      members_changes int[] DEFAULT NULL, points_changes bigint[] DEFAULT NULL, standing_changed boolean DEFAULT false) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    kept   uuid[] := '{}';
    marked bigint;
BEGIN
    -- A mark that nobody works on is kept, locked until this transaction ends: a recompute passes it over meanwhile and then
    -- sees this change. Whatever is locked by somebody else gets a second mark. So marking never waits for anybody.
    -- Under an older snapshot a mark could be gone without our seeing it, so there a new mark is always added.
    IF current_setting('transaction_isolation') = 'read committed' THEN
        WITH free AS MATERIALIZED (
            SELECT generation, scene_id, members_change, points_change FROM trust_dirty WHERE scene_id = ANY (scene_ids) FOR UPDATE SKIP LOCKED
        ), changed AS (
            UPDATE trust_dirty d
               SET recount = d.recount OR trust_mark.recount OR NOT c.fits, alliances_changed = d.alliances_changed OR trust_mark.alliances_changed,
                   standing_changed = d.standing_changed OR trust_mark.standing_changed,
                   members_change = d.members_change + CASE WHEN c.fits THEN c.members ELSE 0 END,
                   points_change = d.points_change + CASE WHEN c.fits THEN c.points ELSE 0 END,
                   attempts = 0, retry_at = '-infinity', quarantined_at = NULL, last_error = NULL
              FROM (SELECT o.generation, coalesce(n.members, 0) AS members, coalesce(n.points, 0) AS points,
                           abs(o.members_change) <= 1000000000 AND abs(coalesce(n.members, 0)) <= 1000000000
                           AND abs(o.points_change) <= 2e18 AND abs(coalesce(n.points, 0)) <= 2e18 AS fits
                      FROM (SELECT DISTINCT ON (scene_id) * FROM free ORDER BY scene_id, generation) AS o
                      JOIN unnest(scene_ids, members_changes, points_changes) AS n (scene_id, members, points) ON n.scene_id = o.scene_id) AS c
             WHERE d.generation = c.generation
               AND (d.attempts > 0 OR trust_mark.recount > d.recount OR trust_mark.alliances_changed > d.alliances_changed
                    OR trust_mark.standing_changed > d.standing_changed OR c.members <> 0 OR c.points <> 0)
        )
        SELECT coalesce(array_agg(DISTINCT scene_id), '{}') INTO kept FROM free;
    END IF;
    INSERT INTO trust_dirty (scene_id, recount, alliances_changed, members_change, points_change, standing_changed)
    SELECT DISTINCT ON (n.scene_id) n.scene_id, trust_mark.recount, trust_mark.alliances_changed, coalesce(n.members, 0), coalesce(n.points, 0), trust_mark.standing_changed
      FROM unnest(scene_ids, members_changes, points_changes) AS n (scene_id, members, points)
     WHERE n.scene_id IS NOT NULL AND NOT EXISTS (SELECT FROM unnest(kept) AS k (scene_id) WHERE k.scene_id = n.scene_id);
    GET DIAGNOSTICS marked = ROW_COUNT;
    IF marked > 0 THEN
        PERFORM wake_workers('trust');
    END IF;
    RETURN marked + cardinality(kept);
END $$;
COMMENT ON FUNCTION trust_mark(uuid[], boolean, boolean, int[], bigint[], boolean) IS
    'Marks scenes dirty without checking that they exist, and lifts their quarantine; returns how many are marked. recount: read everything anew; otherwise the changes, in step with the scenes, which are then all different, are added to the stored sums. Internal: used by the triggers.';

CREATE OR REPLACE FUNCTION trust_mark_dirty(scene_ids uuid[]) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    unknown uuid;
BEGIN
    PERFORM require_argument(scene_ids, 'scene_ids');
    SELECT id INTO unknown FROM unnest(scene_ids) AS id WHERE NOT EXISTS (SELECT FROM scenes s WHERE s.id = id.id) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('scene %s does not exist', coalesce(unknown::text, 'NULL')),
            HINT = 'SELECT id, name FROM scenes lists the scenes.';
    END IF;
    RETURN trust_mark(scene_ids);
END $$;
COMMENT ON FUNCTION trust_mark_dirty(uuid[]) IS
    'Marks scenes to be recomputed, and gives quarantined ones another try. Returns how many are marked; an unknown scene is an error (42704) and nothing is marked.';

CREATE OR REPLACE FUNCTION trust_mark_allies(scene_ids uuid[], but_for uuid[] DEFAULT '{}') RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT trust_mark(ARRAY(SELECT a.from_scene_id FROM alliances a WHERE a.to_scene_id = ANY (scene_ids)
                            EXCEPT SELECT unnest(but_for)), recount => false)
$$;
COMMENT ON FUNCTION trust_mark_allies(uuid[], uuid[]) IS 'Marks the scenes that vouch for these, but for some, to have their alliances read again. Internal: used by the trigger and by trust_recompute().';

CREATE OR REPLACE FUNCTION trust_mark_all_dirty() RETURNS bigint
LANGUAGE sql SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT trust_mark(ARRAY(SELECT id FROM scenes UNION SELECT scene_id FROM trust_scores))
$$;
COMMENT ON FUNCTION trust_mark_all_dirty() IS 'Marks every scene to be recomputed, and every score whose scene is gone. Returns how many are marked.';

CREATE OR REPLACE FUNCTION trust_score(scene_id uuid)
RETURNS TABLE (scene uuid, score double precision, alliance_factor double precision, membership_mean double precision,
               memberships int, alliances int, stale boolean, computed_at timestamptz, last_run_at timestamptz)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    last_run timestamptz := (SELECT r.started_at FROM trust_recompute_runs r ORDER BY r.started_at DESC LIMIT 1);
BEGIN
    PERFORM require_argument(trust_score.scene_id, 'scene_id');
    IF NOT EXISTS (SELECT FROM scenes s WHERE s.id = trust_score.scene_id AND s.deleted_at IS NULL) THEN
        RAISE EXCEPTION USING ERRCODE = 'undefined_object', MESSAGE = format('scene %s does not exist', trust_score.scene_id),
            HINT = 'SELECT id, name FROM scenes WHERE deleted_at IS NULL lists the scenes.';
    END IF;
    RETURN QUERY
    SELECT t.scene_id, t.score, t.alliance_factor, t.membership_mean, t.memberships, t.alliances,
           EXISTS (SELECT FROM trust_dirty d WHERE d.scene_id = t.scene_id), t.computed_at, last_run
      FROM trust_scores t WHERE t.scene_id = trust_score.scene_id;
    IF NOT FOUND THEN
        RETURN QUERY
        SELECT c.scene_id, c.score, c.alliance_factor, c.membership_mean, c.memberships, c.alliances, true, NULL::timestamptz, last_run
          FROM trust_compute(ARRAY[trust_score.scene_id]) c;
    END IF;
END $$;
COMMENT ON FUNCTION trust_score(uuid) IS
    'The trust score of a scene, 0 to 1, with the parts that multiply to it: score = alliance_factor x membership_mean. stale is true while a change waits to be recomputed. A score that was never stored is computed now, with computed_at NULL. last_run_at is when trust_recompute() last had something to do. An unknown or deleted scene is an error (42704).';

CREATE OR REPLACE FUNCTION trust_compute(scene_ids uuid[])
RETURNS TABLE (scene_id uuid, score double precision, alliance_factor double precision, membership_mean double precision, memberships int, alliances int)
LANGUAGE sql STABLE ROWS 100 SET search_path FROM CURRENT AS $$
    SELECT i.id, a.factor * m.mean, a.factor, m.mean, m.ct, a.ct
      FROM unnest(scene_ids) AS i(id)
     CROSS JOIN LATERAL (
        SELECT coalesce(avg(m.trust_weight * trust_role_multiplier(m.role)), 0) AS mean, count(*)::int AS ct
          FROM memberships m WHERE m.scene_id = i.id AND m.status = 'active') AS m
     CROSS JOIN LATERAL (
        SELECT coalesce(avg(a.weight), 1) AS factor, count(*)::int AS ct
          FROM alliances a
         WHERE a.from_scene_id = i.id AND a.status = 'active' AND a.deleted_at IS NULL
           AND NOT EXISTS (SELECT FROM scenes s WHERE s.id = a.to_scene_id
                              AND (s.deleted_at IS NOT NULL OR s.moderation_status IN ('hidden', 'suspended')))) AS a
$$;
COMMENT ON FUNCTION trust_compute(uuid[]) IS
    'The trust of scenes computed from scratch in plain SQL, without reading or writing stored scores: the definition that trust_recompute() must agree with.';

CREATE OR REPLACE FUNCTION trust_verify(scene_ids uuid[] DEFAULT NULL)
RETURNS TABLE (scene_id uuid, stored_points bigint, pending_points numeric, counted_points numeric, stored_members bigint, pending_members bigint, counted_members bigint)
LANGUAGE sql STABLE ROWS 10 SET search_path FROM CURRENT AS $$
    WITH pending AS (
        SELECT d.scene_id, bool_or(d.recount) AS recount, sum(d.points_change) AS points, sum(d.members_change) AS members
          FROM trust_dirty d WHERE trust_verify.scene_ids IS NULL OR d.scene_id = ANY (trust_verify.scene_ids) GROUP BY d.scene_id
    ), counted AS (
        SELECT m.scene_id, sum(trust_membership_points(m.role, m.trust_weight)) AS points, count(*) AS members
          FROM memberships m WHERE m.status = 'active' AND (trust_verify.scene_ids IS NULL OR m.scene_id = ANY (trust_verify.scene_ids)) GROUP BY m.scene_id
    ), sums AS (
        SELECT t.scene_id, t.membership_points AS stored_points, coalesce(p.points, 0) AS pending_points, coalesce(c.points, 0) AS counted_points,
               t.memberships::bigint AS stored_members, coalesce(p.members, 0) AS pending_members, coalesce(c.members, 0) AS counted_members
          FROM trust_scores t LEFT JOIN pending p USING (scene_id) LEFT JOIN counted c USING (scene_id)
         WHERE t.membership_points IS NOT NULL AND p.recount IS NOT TRUE
           AND (trust_verify.scene_ids IS NULL OR t.scene_id = ANY (trust_verify.scene_ids))
    )
    SELECT * FROM sums s WHERE s.stored_points + s.pending_points <> s.counted_points OR s.stored_members + s.pending_members <> s.counted_members
$$;
COMMENT ON FUNCTION trust_verify(uuid[]) IS
    'A full recount beside the stored sums: scenes whose stored points and members, and what waits to be added to them, are not what their memberships add up to. No row is the proof that nothing was lost, at any moment and whatever else goes on. NULL: all scenes. trust_mark_dirty() mends a scene that is listed.';

CREATE OR REPLACE FUNCTION trust_memberships_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    scenes  uuid[];
    members int[];
    points  numeric[];
BEGIN
    -- What the active memberships of each scene have gained and lost; a scene of which both cancel out keeps its score.
    IF TG_OP = 'INSERT' THEN
        SELECT array_agg(scene_id), array_agg(ct), array_agg(sum) INTO scenes, members, points
          FROM (SELECT scene_id, count(*) AS ct, sum(trust_membership_points(role, trust_weight)) AS sum
                  FROM new_rows WHERE status = 'active' GROUP BY scene_id) AS gained;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT array_agg(scene_id), array_agg(-ct), array_agg(-sum) INTO scenes, members, points
          FROM (SELECT scene_id, count(*) AS ct, sum(trust_membership_points(role, trust_weight)) AS sum
                  FROM old_rows WHERE status = 'active' GROUP BY scene_id) AS lost;
    ELSE
        SELECT array_agg(scene_id), array_agg(ct), array_agg(sum) INTO scenes, members, points
          FROM (SELECT scene_id, sum(ct) AS ct, sum(part) AS sum
                  FROM (SELECT scene_id, 1 AS ct, trust_membership_points(role, trust_weight) AS part FROM new_rows WHERE status = 'active'
                         UNION ALL
                        SELECT scene_id, -1, -trust_membership_points(role, trust_weight) FROM old_rows WHERE status = 'active') AS parts
                 GROUP BY scene_id HAVING sum(ct) <> 0 OR sum(part) <> 0) AS both_ways;
    END IF;
    IF scenes IS NULL THEN
        RETURN NULL;
    END IF;
    IF (SELECT max(abs(p)) FROM unnest(points) AS p) > 2e18 THEN
        PERFORM trust_mark(scenes);
    ELSE
        PERFORM trust_mark(scenes, false, false, members, points::bigint[]);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION trust_memberships_changed() IS
    'Trigger: marks the scenes whose active members have gained or lost weight, with how much; a moved membership marks both its scenes. What cannot move a score marks nothing.';

CREATE OR REPLACE FUNCTION trust_alliances_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    changed uuid[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        changed := ARRAY(SELECT DISTINCT from_scene_id FROM new_rows);
    ELSIF TG_OP = 'DELETE' THEN
        changed := ARRAY(SELECT DISTINCT from_scene_id FROM old_rows);
    ELSE
        changed := ARRAY(
            SELECT unnest(ARRAY[o.from_scene_id, n.from_scene_id]) FROM old_rows o FULL JOIN new_rows n USING (id)
             WHERE (o.from_scene_id, o.to_scene_id, o.weight, o.status, o.deleted_at)
                   IS DISTINCT FROM (n.from_scene_id, n.to_scene_id, n.weight, n.status, n.deleted_at));
    END IF;
    IF changed <> '{}' THEN
        PERFORM trust_mark(changed, recount => false);
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION trust_alliances_changed() IS 'Trigger: marks the scenes whose alliances changed, were deleted softly or came back.';

CREATE OR REPLACE FUNCTION trust_scenes_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    changed uuid[];
BEGIN
    IF TG_OP = 'INSERT' THEN
        changed := ARRAY(SELECT id FROM new_rows);
    ELSIF TG_OP = 'DELETE' THEN
        changed := ARRAY(SELECT id FROM old_rows);
    ELSE
        changed := ARRAY(
            SELECT unnest(ARRAY[o.id, n.id]) FROM old_rows o FULL JOIN new_rows n USING (id)
             WHERE (o.deleted_at, o.moderation_status) IS DISTINCT FROM (n.deleted_at, n.moderation_status));
        PERFORM trust_mark_allies(changed);
    END IF;
    IF changed <> '{}' THEN
        PERFORM trust_mark(changed, standing_changed => TG_OP = 'UPDATE');
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION trust_scenes_changed() IS 'Trigger: marks scenes that are new, deleted, restored or moderated, and the scenes that vouch for them.';

CREATE OR REPLACE FUNCTION trust_inputs_truncated() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM trust_mark_all_dirty();
    RETURN NULL;
END $$;
COMMENT ON FUNCTION trust_inputs_truncated() IS 'Trigger: marks every scene after TRUNCATE of scenes, memberships or alliances.';

DO $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY ARRAY['scenes', 'memberships', 'alliances'] LOOP
        EXECUTE format('CREATE OR REPLACE TRIGGER trust_insert AFTER INSERT ON %I REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION %I()', table_name, format('trust_%s_changed', table_name));
        EXECUTE format('CREATE OR REPLACE TRIGGER trust_update AFTER UPDATE ON %I REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION %I()', table_name, format('trust_%s_changed', table_name));
        EXECUTE format('CREATE OR REPLACE TRIGGER trust_delete AFTER DELETE ON %I REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION %I()', table_name, format('trust_%s_changed', table_name));
        EXECUTE format('CREATE OR REPLACE TRIGGER trust_truncate AFTER TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION trust_inputs_truncated()', table_name);
    END LOOP;
END $$;
