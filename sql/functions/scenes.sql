-- What users do with scenes: asking to belong, letting in or turning away, vouching for other scenes.

CREATE OR REPLACE FUNCTION require_user() RETURNS text
LANGUAGE plpgsql STABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM require_valid(steward_user() IS NOT NULL, 'nobody is asking', 'Say who: SET LOCAL pgsteward.user_id = ''did:...'';', 'invalid_authorization_specification');
    PERFORM require_valid(length(steward_user()) <= 255, 'the name of the user is too long', 'A decentralised identifier has at most 255 characters.');
    RETURN steward_user();
END $$;
COMMENT ON FUNCTION require_user() IS 'steward_user(), or 28000 if nobody is asking. Internal.';

CREATE OR REPLACE FUNCTION request_membership(scene_id uuid) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    asking text := require_user();
    owner  text;
    made   uuid;
BEGIN
    PERFORM require_argument(request_membership.scene_id, 'scene_id');
    SELECT s.owner_did INTO owner FROM scenes s
     WHERE s.id = request_membership.scene_id AND s.deleted_at IS NULL AND s.moderation_status IN ('visible', 'flagged');
    PERFORM require_valid(FOUND, format('scene %s does not exist', request_membership.scene_id), 'SELECT scene_id, name FROM search_scenes() lists the scenes.', 'undefined_object');
    PERFORM require_valid(owner <> asking, 'you own this scene', 'Its owner need not ask.', 'object_not_in_prerequisite_state');
    -- Asking again after a rejection takes the row that there is, as a new member.
    INSERT INTO memberships AS m (scene_id, user_did) VALUES (request_membership.scene_id, asking)
    ON CONFLICT ON CONSTRAINT memberships_scene_user_key
    DO UPDATE SET status = 'pending', role = 'member', trust_weight = 0.5, updated_at = clock_timestamp() WHERE m.status = 'rejected'
    RETURNING m.id INTO made;
    PERFORM require_valid(made IS NOT NULL, 'you have asked already, or belong to this scene', 'SELECT status FROM memberships tells; one that was rejected can be asked for again.', 'unique_violation');
    INSERT INTO audit_log (action, subject, detail) VALUES ('request_membership', request_membership.scene_id::text, jsonb_build_object('by', asking, 'membership', made));
    RETURN made;
END $$;
COMMENT ON FUNCTION request_membership(uuid) IS
    'The user asks to belong to a scene: makes a pending membership, or a rejected one pending again, and returns its id. 28000 without a user, 42704 if there is no such scene, 23505 if there is a pending or active membership, 55000 for the owner. Written to audit_log.';

CREATE OR REPLACE FUNCTION decide_membership(scene_id uuid, user_did text, decision text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    deciding text := require_user();
    decided  uuid;
    present  text;
BEGIN
    PERFORM require_argument(decide_membership.scene_id, 'scene_id'), require_argument(decide_membership.user_did, 'user_did');
    -- Of two who decide at once the second waits, and then finds the membership decided.
    UPDATE memberships m
       SET status = decision, updated_at = clock_timestamp(), since = CASE decision WHEN 'active' THEN clock_timestamp() ELSE m.since END
     WHERE m.scene_id = decide_membership.scene_id AND m.user_did = decide_membership.user_did AND m.status = 'pending'
       AND EXISTS (SELECT FROM scenes s WHERE s.id = m.scene_id AND s.owner_did = deciding AND s.deleted_at IS NULL)
    RETURNING m.id INTO decided;
    IF decided IS NULL THEN
        SELECT m.status INTO present FROM memberships m JOIN scenes s ON s.id = m.scene_id
         WHERE m.scene_id = decide_membership.scene_id AND m.user_did = decide_membership.user_did AND s.owner_did = deciding AND s.deleted_at IS NULL;
        -- The same words whether it is the scene, the ownership or the membership that is missing.
        PERFORM require_valid(FOUND, 'you have no such membership to decide on', 'SELECT scene_id, user_did FROM memberships WHERE status = ''pending'' lists those of your scenes.', 'undefined_object');
        PERFORM require_valid(false, format('the membership is %s already', present), 'Only a pending one is approved or rejected; after a rejection the user may ask again.', 'object_not_in_prerequisite_state');
    END IF;
    INSERT INTO audit_log (action, subject, detail)
    VALUES (CASE decision WHEN 'active' THEN 'approve_membership' ELSE 'reject_membership' END, decide_membership.scene_id::text,
            jsonb_build_object('by', deciding, 'user', decide_membership.user_did, 'membership', decided));
    RETURN decided;
END $$;
COMMENT ON FUNCTION decide_membership(uuid, text, text) IS 'Internal: approve_membership() and reject_membership() say it in words.';

CREATE OR REPLACE FUNCTION approve_membership(scene_id uuid, user_did text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN decide_membership(scene_id, user_did, 'active');
END $$;
COMMENT ON FUNCTION approve_membership(uuid, text) IS
    'The owner lets a user in who has asked: the membership becomes active and counts for trust from now on. Returns its id. 42704 for everything that is not a membership of a scene of the caller, 55000 if it is not pending. Written to audit_log.';

CREATE OR REPLACE FUNCTION reject_membership(scene_id uuid, user_did text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
BEGIN
    RETURN decide_membership(scene_id, user_did, 'rejected');
END $$;
COMMENT ON FUNCTION reject_membership(uuid, text) IS
    'The owner turns away a user who has asked; the user may ask again. Returns the id of the membership. 42704 for everything that is not a membership of a scene of the caller, 55000 if it is not pending. Written to audit_log.';

CREATE OR REPLACE FUNCTION check_alliance_terms(weight double precision, reason text) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT AS $$
BEGIN
    PERFORM require_valid(weight IS NULL OR weight BETWEEN 0 AND 1, format('weight %s is out of range', weight), 'Weights are between 0 and 1.', 'numeric_value_out_of_range');
    PERFORM require_valid(reason IS NULL OR (reason ~ '\S' AND length(reason) <= 256), 'the reason is blank or too long', 'Give 1 to 256 characters, or NULL for none.');
END $$;
COMMENT ON FUNCTION check_alliance_terms(double precision, text) IS 'Raises 22003 unless a weight is between 0 and 1, and 22023 if a reason is blank or longer than 256 characters. Internal.';

CREATE OR REPLACE FUNCTION create_alliance(from_scene_id uuid, to_scene_id uuid, weight double precision DEFAULT 1, reason text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    vouching text := require_user();
    missing  uuid;
    made     uuid;
BEGIN
    PERFORM require_argument(create_alliance.from_scene_id, 'from_scene_id'), require_argument(create_alliance.to_scene_id, 'to_scene_id'), require_argument(create_alliance.weight, 'weight');
    PERFORM check_alliance_terms(create_alliance.weight, create_alliance.reason);
    PERFORM require_valid(create_alliance.from_scene_id <> create_alliance.to_scene_id, 'a scene has no alliance with itself', 'Name another scene.');
    SELECT w.id INTO missing FROM unnest(ARRAY[create_alliance.from_scene_id, create_alliance.to_scene_id]) AS w (id)
     WHERE NOT shown_scene(w.id) LIMIT 1;
    PERFORM require_valid(missing IS NULL, format('scene %s does not exist', missing), 'SELECT scene_id, name FROM search_scenes() lists the scenes.', 'undefined_object');
    PERFORM require_valid(EXISTS (SELECT FROM scenes s WHERE s.id = create_alliance.from_scene_id AND s.owner_did = vouching),
        'only the owner of a scene vouches in its name', 'Name a scene of yours as from_scene_id.', 'insufficient_privilege');
    INSERT INTO alliances AS a (from_scene_id, to_scene_id, weight, reason)
    VALUES (create_alliance.from_scene_id, create_alliance.to_scene_id, create_alliance.weight, create_alliance.reason)
    ON CONFLICT (from_scene_id, to_scene_id) WHERE deleted_at IS NULL DO NOTHING RETURNING a.id INTO made;
    PERFORM require_valid(made IS NOT NULL, 'there is an alliance of these scenes already', 'Change it with update_alliance(), or dissolve it first.', 'unique_violation');
    INSERT INTO audit_log (action, subject, detail)
    VALUES ('create_alliance', create_alliance.from_scene_id::text, jsonb_build_object('by', vouching, 'alliance', made, 'to', create_alliance.to_scene_id, 'weight', create_alliance.weight));
    RETURN made;
END $$;
COMMENT ON FUNCTION create_alliance(uuid, uuid, double precision, text) IS
    'The owner of a scene vouches for another scene, with a weight between 0 and 1 and a reason of up to 256 characters; returns the id of the alliance. 28000 without a user, 42501 for others than the owner, 42704 if a scene does not exist or the user may not see it, 23505 if there is an alliance of the two already. Written to audit_log.';

CREATE OR REPLACE FUNCTION own_alliance(alliance_id uuid) RETURNS alliances
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    owner text := require_user();
    mine  alliances;
BEGIN
    PERFORM require_argument(alliance_id, 'alliance_id');
    SELECT a.* INTO mine FROM alliances a JOIN scenes s ON s.id = a.from_scene_id
     WHERE a.id = alliance_id AND a.deleted_at IS NULL AND s.deleted_at IS NULL FOR NO KEY UPDATE OF a;
    PERFORM require_valid(FOUND, format('alliance %s does not exist', alliance_id), 'SELECT id, to_scene_id FROM alliances lists them; a dissolved one is made anew with create_alliance().', 'undefined_object');
    PERFORM require_valid(EXISTS (SELECT FROM scenes s WHERE s.id = mine.from_scene_id AND s.owner_did = owner),
        'only the owner of the scene that vouches may change an alliance', 'Alliances of your scenes are yours to change.', 'insufficient_privilege');
    RETURN mine;
END $$;
COMMENT ON FUNCTION own_alliance(uuid) IS 'An alliance of a scene of the user, locked; 42704 or 42501 if it is none. Internal.';

CREATE OR REPLACE FUNCTION update_alliance(alliance_id uuid, weight double precision DEFAULT NULL, reason text DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    before alliances := own_alliance(alliance_id);
BEGIN
    PERFORM check_alliance_terms(update_alliance.weight, update_alliance.reason);
    PERFORM require_valid(num_nonnulls(update_alliance.weight, update_alliance.reason) > 0, 'nothing is to be changed', 'Give a weight or a reason.');
    UPDATE alliances a
       SET weight = coalesce(update_alliance.weight, a.weight), reason = coalesce(update_alliance.reason, a.reason), updated_at = clock_timestamp()
     WHERE a.id = before.id;
    INSERT INTO audit_log (action, subject, detail)
    VALUES ('update_alliance', before.from_scene_id::text, jsonb_build_object('by', steward_user(), 'alliance', before.id,
            'before', jsonb_build_object('weight', before.weight, 'reason', before.reason), 'after', jsonb_build_object('weight', update_alliance.weight, 'reason', update_alliance.reason)));
END $$;
COMMENT ON FUNCTION update_alliance(uuid, double precision, text) IS
    'The owner of the scene that vouches changes weight or reason of an alliance; NULL leaves it. 42704 if it does not exist or is dissolved, 42501 for others. Written to audit_log.';

CREATE OR REPLACE FUNCTION dissolve_alliance(alliance_id uuid) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $$
DECLARE
    before alliances := own_alliance(alliance_id);
BEGIN
    UPDATE alliances a SET status = 'dissolved', deleted_at = clock_timestamp(), updated_at = clock_timestamp() WHERE a.id = before.id;
    INSERT INTO audit_log (action, subject, detail)
    VALUES ('dissolve_alliance', before.from_scene_id::text, jsonb_build_object('by', steward_user(), 'alliance', before.id, 'to', before.to_scene_id));
END $$;
COMMENT ON FUNCTION dissolve_alliance(uuid) IS
    'The owner of the scene that vouches ends an alliance: it is kept as dissolved and counts no longer; the pair may be made again. 42704 if it does not exist or is dissolved already, 42501 for others. Written to audit_log.';
