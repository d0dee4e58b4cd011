-- Who is asking: used by row-level security.

CREATE OR REPLACE FUNCTION steward_user() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
    SELECT coalesce(nullif(current_setting('pgsteward.user_id', true), ''),
                    nullif(current_setting('request.jwt.claims', true), '')::jsonb ->> 'sub')
$$;
COMMENT ON FUNCTION steward_user() IS
    'The user on whose behalf the application acts: the setting pgsteward.user_id (SET LOCAL pgsteward.user_id = ''did:...''), else the claim "sub" of request.jwt.claims as PostgREST and Supabase set it; NULL if neither is set.';

CREATE OR REPLACE FUNCTION steward_caller() RETURNS name
LANGUAGE sql STABLE SET search_path FROM CURRENT AS $$
    SELECT coalesce(nullif(current_setting('role'), 'none'), session_user)::name
$$;
COMMENT ON FUNCTION steward_caller() IS 'The role that the session acts as, also inside SECURITY DEFINER functions: that of SET ROLE, else that of the login.';

CREATE OR REPLACE FUNCTION owns_scene(scene_id uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT EXISTS (SELECT FROM scenes s WHERE s.id = scene_id AND s.owner_did = steward_user())
$$;
COMMENT ON FUNCTION owns_scene(uuid) IS 'True if steward_user() owns the scene.';

CREATE OR REPLACE FUNCTION joined_scene(scene_id uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT EXISTS (SELECT FROM memberships m WHERE m.scene_id = joined_scene.scene_id AND m.user_did = steward_user() AND m.status = 'active')
$$;
COMMENT ON FUNCTION joined_scene(uuid) IS 'True if steward_user() is an active member of the scene.';

CREATE OR REPLACE FUNCTION shown_scene(scene_id uuid) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path FROM CURRENT AS $$
    SELECT EXISTS (SELECT FROM scenes s WHERE s.id = shown_scene.scene_id AND s.deleted_at IS NULL
                      AND (s.owner_did = steward_user() OR (s.moderation_status IN ('visible', 'flagged') AND (s.visibility = 'public' OR joined_scene(s.id)))))
$$;
COMMENT ON FUNCTION shown_scene(uuid) IS 'True if steward_user() may see the scene, as its row policy has it: their own, or one that stands and is public or that they belong to.';

CREATE OR REPLACE FUNCTION steward_user_id() RETURNS uuid
LANGUAGE sql STABLE PARALLEL SAFE SET search_path FROM CURRENT AS $$
    SELECT CASE WHEN u ~ '^[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$' THEN u::uuid END FROM steward_user() AS u
$$;
COMMENT ON FUNCTION steward_user_id() IS 'steward_user() as a user id; NULL if it is not a UUID, such as a decentralised identifier.';
