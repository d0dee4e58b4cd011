-- Why a score is what it is, and what it was.

CREATE OR REPLACE FUNCTION check_trust_reader(scene_id uuid) RETURNS void
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    owner text;
BEGIN
    PERFORM require_argument(scene_id, 'scene_id');
    SELECT s.owner_did INTO owner FROM scenes s WHERE s.id = check_trust_reader.scene_id AND s.deleted_at IS NULL;
    PERFORM require_valid(FOUND, format('scene %s does not exist', scene_id), 'SELECT id, name FROM scenes WHERE deleted_at IS NULL lists the scenes.', 'undefined_object');
    PERFORM require_valid(owner = steward_user() OR pg_has_role(steward_caller(), 'steward_worker', 'USAGE') OR pg_has_role(steward_caller(), 'steward_admin', 'USAGE'),
        'the trust weights of a scene are for its owner only', 'Act as the owner: SET LOCAL pgsteward.user_id = ''did:...''; or as steward_worker or steward_admin. trust_score() tells the score.',
        'insufficient_privilege');
END $$;
COMMENT ON FUNCTION check_trust_reader(uuid) IS 'Raises 42501 unless the caller may see the trust weights of a scene: its owner, steward_worker and steward_admin. 42704 if there is no such scene. Internal.';

CREATE OR REPLACE FUNCTION trust_inputs(scene_id uuid)
RETURNS TABLE (kind text, id uuid, subject text, name text, role text, weight double precision, status text, stands boolean, since timestamptz, updated_at timestamptz)
LANGUAGE sql STABLE ROWS 100 SET search_path FROM CURRENT AS $$
    SELECT 'membership', m.id, m.user_did::text, NULL::text, m.role, m.trust_weight, m.status, true, m.since, m.updated_at
      FROM memberships m WHERE m.scene_id = trust_inputs.scene_id
    UNION ALL
    SELECT 'alliance', a.id, a.to_scene_id::text, CASE WHEN steward_user() IS NULL OR shown_scene(s.id) THEN s.name::text END, NULL, a.weight, a.status,
           s.deleted_at IS NULL AND s.moderation_status NOT IN ('hidden', 'suspended'), a.since, a.updated_at
      FROM alliances a JOIN scenes s ON s.id = a.to_scene_id
     WHERE a.from_scene_id = trust_inputs.scene_id AND a.deleted_at IS NULL
$$;
COMMENT ON FUNCTION trust_inputs(uuid) IS 'The memberships and alliances of a scene; those that are active and stand count for its trust. Internal.';

CREATE OR REPLACE FUNCTION trust_explain(scene_id uuid)
RETURNS TABLE (kind text, id uuid, subject text, name text, role text, weight double precision, share double precision, effect double precision,
               since timestamptz, updated_at timestamptz, pending boolean)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    computed timestamptz;
    dirty    boolean := EXISTS (SELECT FROM trust_dirty d WHERE d.scene_id = trust_explain.scene_id);
BEGIN
    PERFORM check_trust_reader(trust_explain.scene_id);
    SELECT t.computed_at INTO computed FROM trust_scores t WHERE t.scene_id = trust_explain.scene_id;
    RETURN QUERY
    WITH counted AS MATERIALIZED (
        SELECT i.*, i.weight * coalesce(trust_role_multiplier(i.role), 1) AS counts, row_number() OVER (ORDER BY i.kind DESC, i.id) AS n
          FROM trust_inputs(trust_explain.scene_id) i WHERE i.status = 'active' AND i.stands
    ), effects AS (
        SELECT e.effect, e.n
          FROM (SELECT array_agg(c.role ORDER BY c.n) FILTER (WHERE c.kind = 'membership') AS roles,
                       array_agg(c.weight ORDER BY c.n) FILTER (WHERE c.kind = 'membership') AS weights,
                       array_agg(c.weight ORDER BY c.n) FILTER (WHERE c.kind = 'alliance') AS alliances FROM counted c) a,
               unnest(trust_effects(a.roles, a.weights, a.alliances)) WITH ORDINALITY AS e (effect, n)
    )
    SELECT c.kind, c.id, c.subject, c.name, c.role, c.weight, coalesce(c.counts / nullif(sum(c.counts) OVER (PARTITION BY c.kind), 0), 0), e.effect,
           c.since, c.updated_at, dirty AND (computed IS NULL OR greatest(c.since, c.updated_at) > computed)
      FROM counted c JOIN effects e USING (n) ORDER BY abs(e.effect) DESC, c.kind DESC, c.subject;
END $$;
COMMENT ON FUNCTION trust_explain(uuid) IS
    'What a score is made of: a row per membership and alliance that counts, the one with most effect first. share: its part of the mean weight of its kind; effect: the score minus the score without it; pending: it changed after the stored score. For the owner of the scene, steward_worker and steward_admin (else 42501); an unknown or deleted scene is 42704.';

CREATE OR REPLACE FUNCTION trust_history(scene_id uuid, since timestamptz DEFAULT NULL, most int DEFAULT 100)
RETURNS TABLE (changed_at timestamptz, score double precision, change double precision, alliance_factor double precision, membership_mean double precision,
               memberships int, alliances int)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 100 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
BEGIN
    PERFORM require_argument(trust_history.scene_id, 'scene_id'), require_argument(most, 'most');
    PERFORM require_valid(most BETWEEN 1 AND 100000, format('most %s is out of range', most), 'Ask for 1 to 100000 changes.');
    PERFORM require_valid(EXISTS (SELECT FROM scenes s WHERE s.id = trust_history.scene_id) OR EXISTS (SELECT FROM trust_score_history h WHERE h.scene_id = trust_history.scene_id),
        format('scene %s does not exist', trust_history.scene_id), 'SELECT id, name FROM scenes lists the scenes.', 'undefined_object');
    RETURN QUERY
    SELECT h.changed_at, h.score, h.score - h.before, h.alliance_factor, h.membership_mean, h.memberships, h.alliances
      FROM (SELECT k.*, lag(k.score) OVER (ORDER BY k.changed_at) AS before FROM trust_score_history k WHERE k.scene_id = trust_history.scene_id) h
     WHERE trust_history.since IS NULL OR h.changed_at >= trust_history.since
     ORDER BY h.changed_at DESC LIMIT most;
END $$;
COMMENT ON FUNCTION trust_history(uuid, timestamptz, int) IS
    'The changes of a score, newest first, since a time and at most so many; change is the difference to the one before (NULL for the first that is kept, and around a removal). score NULL: it was removed with its scene. An unknown scene is an error (42704).';

CREATE OR REPLACE FUNCTION expire_trust_history(most int DEFAULT 10000, keep interval DEFAULT '90 days') RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    expired bigint;
BEGIN
    PERFORM require_argument(most, 'most'), require_argument(keep, 'keep');
    PERFORM require_valid(most BETWEEN 1 AND 1000000, format('most %s is out of range', most), 'Delete 1 to 1000000 at a time.');
    PERFORM require_valid(keep BETWEEN '0' AND interval '1000 years', format('keep %s is out of range', keep), 'Keep 0 to 1000 years, such as ''90 days''.');
    DELETE FROM trust_score_history h
     WHERE h.ctid = ANY (ARRAY(SELECT o.ctid FROM trust_score_history o WHERE o.changed_at < clock_timestamp() - keep LIMIT most FOR UPDATE SKIP LOCKED));
    GET DIAGNOSTICS expired = ROW_COUNT;
    RETURN expired;
END $$;
COMMENT ON FUNCTION expire_trust_history(int, interval) IS 'Deletes up to so many changes of scores that are older than they are kept, and returns how many. Call it again until it returns less; workers do.';
