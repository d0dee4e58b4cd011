-- What a score would be if memberships and alliances were different.

CREATE OR REPLACE FUNCTION check_trust_change(change jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT AS $$
DECLARE
    verbs    jsonb := '{"add_membership": ["role", "trust_weight", "status"], "membership": ["role", "trust_weight", "status"], "remove_membership": [],
                        "alliance": ["weight", "status"], "remove_alliance": []}';
    roles    text[] := '{owner,curator,member,guest}';
    statuses text[] := '{pending,active,rejected}';
    shown    text := left(change::text, 200);
    verb     text;
    wrong    text;
BEGIN
    PERFORM require_argument(change, 'change');
    PERFORM require_valid(jsonb_typeof(change) = 'object', format('%s is not a change', shown), 'A change is an object, such as {"membership": "did:...", "trust_weight": 0.8}.');
    SELECT min(k) INTO verb FROM jsonb_object_keys(change) k WHERE verbs ? k HAVING count(*) = 1;
    PERFORM require_valid(verb IS NOT NULL, format('%s does not say what to change', shown), 'Each change has just one of: add_membership, membership, remove_membership, alliance, remove_alliance.');
    PERFORM require_valid(jsonb_typeof(change -> verb) = 'string' AND change ->> verb ~ '\S' AND length(change ->> verb) <= 255, format('%s does not say whose', shown),
        CASE WHEN verb LIKE '%alliance' THEN format('"%s" takes the id of the other scene.', verb) ELSE format('"%s" takes the user, such as "did:...".', verb) END);
    SELECT k INTO wrong FROM jsonb_object_keys(change - verb) k WHERE NOT verbs -> verb ? k LIMIT 1;
    PERFORM require_valid(wrong IS NULL, format('"%s" has no "%s"', verb, left(wrong, 200)), CASE verbs -> verb WHEN '[]' THEN 'It takes nothing else.'
        ELSE 'It takes: ' || (SELECT string_agg(k, ', ') FROM jsonb_array_elements_text(verbs -> verb) k) || '.' END);
    PERFORM require_valid(verb <> 'membership' OR change - verb <> '{}', format('%s changes nothing', shown), 'Give role, trust_weight or status.');
    SELECT k INTO wrong FROM unnest('{weight,trust_weight}'::text[]) k
     WHERE change ? k AND CASE jsonb_typeof(change -> k) WHEN 'number' THEN (change ->> k)::numeric <> 0 AND (change ->> k)::numeric NOT BETWEEN 1e-300 AND 1 ELSE true END LIMIT 1;
    PERFORM require_valid(wrong IS NULL, format('%s %s is out of range', wrong, left((change -> wrong)::text, 100)), 'Weights are 0, or numbers from 1e-300 to 1.');
    PERFORM require_valid(NOT change ? 'role' OR coalesce(change ->> 'role' = ANY (roles), false), format('there is no role %s', left((change -> 'role')::text, 100)),
        'Roles are: ' || array_to_string(roles, ', ') || '.');
    IF verb = 'alliance' THEN
        statuses := statuses || 'dissolved'::text;
    END IF;
    PERFORM require_valid(NOT change ? 'status' OR coalesce(change ->> 'status' = ANY (statuses), false), format('there is no status %s', left((change -> 'status')::text, 100)),
        'It is one of: ' || array_to_string(statuses, ', ') || '.');
    RETURN verb;
END $$;
COMMENT ON FUNCTION check_trust_change(jsonb) IS 'Raises 22004 or 22023 unless the object is a change that trust_simulate() understands, and returns what kind of change it is. Internal.';

CREATE OR REPLACE FUNCTION trust_simulate(scene_id uuid, changes jsonb)
RETURNS TABLE (score_before double precision, score_after double precision, difference double precision,
               alliance_factor_before double precision, alliance_factor_after double precision,
               membership_mean_before double precision, membership_mean_after double precision,
               memberships_before int, memberships_after int, alliances_before int, alliances_after int)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    planned jsonb := '{}';  -- by kind and subject what becomes of it; null: it is gone
    change  jsonb;
    verb    text;
    who     text;
    place   text;
    present jsonb;
BEGIN
    PERFORM check_trust_reader(trust_simulate.scene_id), require_argument(changes, 'changes');
    PERFORM require_valid(jsonb_typeof(changes) = 'array', 'changes is not a JSON array', 'For example [{"membership": "did:...", "trust_weight": 0.8}].');
    PERFORM require_valid(jsonb_array_length(changes) <= 1000, format('%s changes are too many', jsonb_array_length(changes)), 'Give at most 1000.');
    FOR change IN SELECT e.value FROM jsonb_array_elements(changes) WITH ORDINALITY AS e (value, n) ORDER BY e.n LOOP
        verb := check_trust_change(change);
        who := change ->> verb;
        IF verb LIKE '%alliance' THEN
            PERFORM require_valid(who ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$', format('"%s" is not the id of a scene', left(who, 100)), 'Give a UUID.');
            -- What is hidden from the user does not exist, unless the scene has an alliance with it.
            PERFORM require_valid(EXISTS (SELECT FROM scenes s WHERE s.id = who::uuid AND s.deleted_at IS NULL)
                AND (steward_user() IS NULL OR shown_scene(who::uuid)
                     OR EXISTS (SELECT FROM alliances a WHERE a.from_scene_id = trust_simulate.scene_id AND a.to_scene_id = who::uuid AND a.deleted_at IS NULL)),
                format('scene %s does not exist', who), 'SELECT id, name FROM scenes WHERE deleted_at IS NULL lists the scenes.', 'undefined_object');
            PERFORM require_valid(who::uuid <> trust_simulate.scene_id, 'a scene has no alliance with itself', 'Name another scene.');
            who := lower(who);
            place := 'alliance ' || who;
            SELECT jsonb_build_object('weight', a.weight, 'status', a.status) INTO present
              FROM alliances a WHERE a.from_scene_id = trust_simulate.scene_id AND a.to_scene_id = who::uuid AND a.deleted_at IS NULL;
        ELSE
            place := 'membership ' || who;
            SELECT jsonb_build_object('role', m.role, 'trust_weight', m.trust_weight, 'status', m.status) INTO present
              FROM memberships m WHERE m.scene_id = trust_simulate.scene_id AND m.user_did = who;
        END IF;
        IF planned ? place THEN
            present := nullif(planned -> place, 'null');
        END IF;
        PERFORM require_valid(verb <> 'add_membership' OR present IS NULL, format('%s has a membership in scene %s already', who, trust_simulate.scene_id),
            'Change it: {"membership": "' || who || '", ...}.', 'duplicate_object');
        PERFORM require_valid(verb IN ('add_membership', 'alliance') OR present IS NOT NULL,
            format(CASE verb WHEN 'remove_alliance' THEN 'scene %2$s has no alliance with scene %1$s' ELSE '%1$s has no membership in scene %2$s' END, who, trust_simulate.scene_id),
            CASE verb WHEN 'remove_alliance' THEN 'Remove one that there is.' ELSE 'Add it: {"add_membership": "' || who || '", ...}.' END, 'undefined_object');
        planned := planned || jsonb_build_object(place, CASE
            WHEN verb LIKE 'remove%' THEN NULL
            WHEN verb = 'alliance' THEN coalesce(present, '{"weight": 1, "status": "active"}') || (change - verb)
            ELSE coalesce(present, '{"role": "member", "trust_weight": 0.5, "status": "active"}') || (change - verb) END);
    END LOOP;

    RETURN QUERY
    WITH inputs AS MATERIALIZED (
        SELECT i.kind, i.role, i.weight, planned ? (i.kind || ' ' || i.subject) AS changes
          FROM trust_inputs(trust_simulate.scene_id) i WHERE i.status = 'active' AND i.stands
    ), counted AS (
        SELECT false AS after, i.kind, i.role, i.weight FROM inputs i
        UNION ALL
        SELECT true, i.kind, i.role, i.weight FROM inputs i WHERE NOT i.changes
        UNION ALL
        SELECT true, split_part(p.key, ' ', 1), p.value ->> 'role', coalesce(p.value ->> 'trust_weight', p.value ->> 'weight')::double precision
          FROM jsonb_each(planned) p
         WHERE p.value ->> 'status' = 'active'
           AND CASE WHEN p.key LIKE 'alliance %' THEN EXISTS (SELECT FROM scenes s WHERE s.id = split_part(p.key, ' ', 2)::uuid AND s.moderation_status NOT IN ('hidden', 'suspended')) ELSE true END
    ), trust AS (
        SELECT v.after, trust_formula(c.roles, c.weights, c.alliances) AS score,
               trust_formula('{owner}', '{1}', c.alliances) AS factor, trust_formula(c.roles, c.weights) AS mean,
               coalesce(cardinality(c.roles), 0) AS memberships, coalesce(cardinality(c.alliances), 0) AS alliances
          FROM (VALUES (false), (true)) AS v (after)
         CROSS JOIN LATERAL (
            SELECT array_agg(c.role) FILTER (WHERE c.kind = 'membership') AS roles, array_agg(c.weight) FILTER (WHERE c.kind = 'membership') AS weights,
                   array_agg(c.weight) FILTER (WHERE c.kind = 'alliance') AS alliances
              FROM counted c WHERE c.after = v.after) c
    )
    SELECT b.score, a.score, a.score - b.score, b.factor, a.factor, b.mean, a.mean, b.memberships, a.memberships, b.alliances, a.alliances
      FROM trust b, trust a WHERE NOT b.after AND a.after;
END $$;
COMMENT ON FUNCTION trust_simulate(uuid, jsonb) IS
    'What the score of a scene would be after changes, without making them: a JSON array of {"add_membership": user, ...}, {"membership": user, ...}, {"remove_membership": user}, with role, trust_weight, status; and {"alliance": scene, ...}, {"remove_alliance": scene}, with weight, status; applied in order. before is what a recompute would give now. For the owner of the scene, steward_worker and steward_admin (else 42501).';
