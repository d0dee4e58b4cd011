-- Scenes, who belongs to them, whom they vouch for, and the trust score that follows.

CREATE TABLE scenes (
    id                   uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    owner_user_id        uuid,
    created_at           timestamptz NOT NULL DEFAULT now(),
    updated_at           timestamptz NOT NULL DEFAULT now(),
    deleted_at           timestamptz,
    moderation_timestamp timestamptz,
    precise_point        point,
    allow_precise        boolean NOT NULL DEFAULT false,
    name                 varchar(255) NOT NULL,
    description          text,
    owner_did            varchar(255) NOT NULL,
    coarse_geohash       varchar(20) NOT NULL DEFAULT 's00000',
    tags                 text[] NOT NULL DEFAULT '{}',
    visibility           text NOT NULL DEFAULT 'public',
    palette              jsonb NOT NULL DEFAULT '{}',
    record_did           varchar(255),
    record_rkey          varchar(255),
    moderation_status    text        NOT NULL DEFAULT 'visible',
    moderation_reason    text,
    moderated_by         varchar(255),
    CONSTRAINT scenes_precise_consent_check CHECK (allow_precise OR precise_point IS NULL),
    CONSTRAINT scenes_visibility_check CHECK (visibility IN ('public', 'private', 'unlisted')),
    CONSTRAINT scenes_moderation_status_check CHECK (moderation_status IN ('visible', 'hidden', 'flagged', 'suspended')),
    CONSTRAINT scenes_moderation_audit_check CHECK (
        CASE WHEN moderation_status = 'visible'
             THEN moderation_reason IS NULL AND moderated_by IS NULL AND moderation_timestamp IS NULL
             ELSE moderated_by IS NOT NULL AND moderation_timestamp IS NOT NULL END)
);
CREATE INDEX scenes_owner_did_idx ON scenes (owner_did) WHERE deleted_at IS NULL;
CREATE INDEX scenes_owner_user_id_idx ON scenes (owner_user_id) WHERE deleted_at IS NULL;
CREATE INDEX scenes_coarse_geohash_idx ON scenes (coarse_geohash) WHERE deleted_at IS NULL;
CREATE INDEX scenes_precise_point_idx ON scenes USING gist (precise_point) WHERE allow_precise AND deleted_at IS NULL;
CREATE INDEX scenes_tags_idx ON scenes USING gin (tags) WHERE deleted_at IS NULL;
CREATE INDEX scenes_visibility_idx ON scenes (visibility) WHERE deleted_at IS NULL;
CREATE INDEX scenes_moderation_idx ON scenes (moderation_status, created_at DESC) WHERE deleted_at IS NULL;
CREATE INDEX scenes_not_standing_idx ON scenes (id) WHERE deleted_at IS NOT NULL OR moderation_status IN ('hidden', 'suspended');
CREATE UNIQUE INDEX scenes_owner_name_key ON scenes (owner_did, lower(name)) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX scenes_record_key ON scenes (record_did, record_rkey) WHERE record_did IS NOT NULL AND record_rkey IS NOT NULL;
COMMENT ON TABLE scenes IS 'Communities of the marketplace. A scene stands while it is not deleted, hidden or suspended.';
COMMENT ON COLUMN scenes.id IS 'Identifies the scene';
COMMENT ON COLUMN scenes.owner_did IS 'Decentralised identifier of the owner';
COMMENT ON COLUMN scenes.owner_user_id IS 'User id of the owner in the application';
COMMENT ON COLUMN scenes.name IS 'Unique per owner among scenes that are not deleted, whatever the case';
COMMENT ON COLUMN scenes.precise_point IS 'Longitude and latitude; only with allow_precise';
COMMENT ON COLUMN scenes.coarse_geohash IS 'Rough place, always public';
COMMENT ON COLUMN scenes.visibility IS 'public, private (members only) or unlisted (never in search)';
COMMENT ON COLUMN scenes.moderation_status IS 'visible, flagged, hidden or suspended';
COMMENT ON COLUMN scenes.deleted_at IS 'Soft deletion: the scene loses its score and no longer counts as an ally';

CREATE TABLE memberships (
    id           uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    scene_id     uuid NOT NULL REFERENCES scenes ON DELETE CASCADE,
    trust_weight double precision NOT NULL DEFAULT 0.5,
    since        timestamptz NOT NULL DEFAULT now(),
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now(),
    role         text        NOT NULL DEFAULT 'member',
    status       text        NOT NULL DEFAULT 'pending',
    user_did     varchar(255) NOT NULL,
    record_did   varchar(255),
    record_rkey  varchar(255),
    CONSTRAINT memberships_scene_user_key UNIQUE (scene_id, user_did),
    CONSTRAINT memberships_trust_weight_check CHECK (trust_weight BETWEEN 0 AND 1),
    CONSTRAINT memberships_role_check CHECK (role IN ('owner', 'curator', 'member', 'guest')),
    CONSTRAINT memberships_status_check CHECK (status IN ('pending', 'active', 'rejected'))
) WITH (fillfactor = 90);
CREATE INDEX memberships_scene_status_idx ON memberships (scene_id, status);
CREATE INDEX memberships_user_status_idx ON memberships (user_did, status);
CREATE INDEX memberships_trust_weight_idx ON memberships (trust_weight) WHERE status = 'active';
CREATE UNIQUE INDEX memberships_record_key ON memberships (record_did, record_rkey) WHERE record_did IS NOT NULL AND record_rkey IS NOT NULL;
COMMENT ON TABLE memberships IS 'Who belongs to which scene. Only active rows count for trust.';
COMMENT ON COLUMN memberships.trust_weight IS 'How much the scene trusts this member, 0 to 1';
COMMENT ON COLUMN memberships.role IS 'owner, curator, member or guest; see trust_role_multiplier()';
COMMENT ON COLUMN memberships.status IS 'pending, active or rejected';
COMMENT ON COLUMN memberships.user_did IS 'Decentralised identifier of the member';

CREATE TABLE alliances (
    id            uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    from_scene_id uuid NOT NULL REFERENCES scenes ON DELETE CASCADE,
    to_scene_id   uuid NOT NULL REFERENCES scenes ON DELETE CASCADE,
    weight        double precision NOT NULL DEFAULT 1.0,
    since         timestamptz NOT NULL DEFAULT now(),
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    status        text        NOT NULL DEFAULT 'active',
    deleted_at    timestamptz,
    reason        text,
    record_did    varchar(255),
    record_rkey   varchar(255),
    CONSTRAINT alliances_weight_check CHECK (weight BETWEEN 0 AND 1),
    CONSTRAINT alliances_not_self_check CHECK (from_scene_id <> to_scene_id),
    CONSTRAINT alliances_status_check CHECK (status IN ('pending', 'active', 'rejected', 'dissolved'))
) WITH (fillfactor = 90);
CREATE UNIQUE INDEX alliances_pair_key ON alliances (from_scene_id, to_scene_id) WHERE deleted_at IS NULL;
CREATE INDEX alliances_from_idx ON alliances (from_scene_id);
CREATE INDEX alliances_to_idx ON alliances (to_scene_id);
CREATE INDEX alliances_status_weight_idx ON alliances (status, weight) WHERE status = 'active';
CREATE UNIQUE INDEX alliances_record_key ON alliances (record_did, record_rkey) WHERE record_did IS NOT NULL AND record_rkey IS NOT NULL;
COMMENT ON TABLE alliances IS 'Which scene vouches for which. Counts for the trust of from_scene while active, not deleted, and the ally stands.';
COMMENT ON COLUMN alliances.from_scene_id IS 'The scene that vouches';
COMMENT ON COLUMN alliances.to_scene_id IS 'The scene that it vouches for';
COMMENT ON COLUMN alliances.weight IS 'How strongly, 0 to 1';
COMMENT ON COLUMN alliances.status IS 'pending, active, rejected or dissolved';
COMMENT ON COLUMN alliances.deleted_at IS 'Soft deletion; the pair may be made again';

-- No foreign key to scenes: checking it for every score would cost more than the score, and recompute removes scores of scenes that are gone.
CREATE TABLE trust_scores (
    scene_id        uuid PRIMARY KEY,
    score           double precision NOT NULL,
    alliance_factor double precision NOT NULL,
    membership_mean double precision NOT NULL,
    computed_at     timestamptz NOT NULL,
    memberships     int NOT NULL,
    alliances       int NOT NULL
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE trust_scores IS 'The stored trust score of each scene, with the parts that multiply to it.';
COMMENT ON COLUMN trust_scores.scene_id IS 'The scene';
COMMENT ON COLUMN trust_scores.score IS 'alliance_factor x membership_mean, 0 to 1; 0 without memberships';
COMMENT ON COLUMN trust_scores.alliance_factor IS 'Mean weight of the alliances that count; 1 without any';
COMMENT ON COLUMN trust_scores.membership_mean IS 'Mean of trust_weight x role multiplier over active memberships; 0 without any';
COMMENT ON COLUMN trust_scores.computed_at IS 'When the stored values changed last';
COMMENT ON COLUMN trust_scores.memberships IS 'Active memberships that count';
COMMENT ON COLUMN trust_scores.alliances IS 'Alliances that count';

CREATE SEQUENCE trust_dirty_generation_seq;
CREATE TABLE trust_dirty (
    generation     bigint PRIMARY KEY DEFAULT nextval('trust_dirty_generation_seq'),
    scene_id       uuid NOT NULL,
    marked_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    retry_at       timestamptz NOT NULL DEFAULT '-infinity',
    quarantined_at timestamptz,
    attempts       int NOT NULL DEFAULT 0,
    last_error     text
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_analyze_scale_factor = 0.02);
ALTER SEQUENCE trust_dirty_generation_seq OWNED BY trust_dirty.generation;
CREATE INDEX trust_dirty_scene_idx ON trust_dirty (scene_id);
COMMENT ON TABLE trust_dirty IS
    'Scenes whose score must be computed again, marked in the transaction of the change. A change that lands while a scene is being recomputed adds a mark of a later generation, which that recompute does not clear.';
COMMENT ON COLUMN trust_dirty.generation IS 'Order of the marks; oldest first';
COMMENT ON COLUMN trust_dirty.scene_id IS 'The scene to recompute';
COMMENT ON COLUMN trust_dirty.marked_at IS 'When it was marked';
COMMENT ON COLUMN trust_dirty.retry_at IS 'Not tried before then, after a failure';
COMMENT ON COLUMN trust_dirty.quarantined_at IS 'Set when it failed too often; a new change of the scene or trust_mark_dirty() lifts it';
COMMENT ON COLUMN trust_dirty.attempts IS 'Failures in a row';
COMMENT ON COLUMN trust_dirty.last_error IS 'Why the last attempt failed';

CREATE TABLE trust_recompute_runs (
    id                  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at          timestamptz NOT NULL,
    duration_ms         double precision NOT NULL,
    processed           bigint NOT NULL,
    changed             bigint NOT NULL,
    failed              bigint NOT NULL,
    remaining           bigint NOT NULL,
    avg_weight_variance double precision NOT NULL,
    timed_out           boolean NOT NULL,
    application         text NOT NULL DEFAULT coalesce(current_setting('application_name', true), '')
);
CREATE INDEX trust_recompute_runs_started_idx ON trust_recompute_runs (started_at);
COMMENT ON TABLE trust_recompute_runs IS 'A row per call of trust_recompute() that had something to do.';
COMMENT ON COLUMN trust_recompute_runs.started_at IS 'When the call began';
COMMENT ON COLUMN trust_recompute_runs.duration_ms IS 'How long it took, in milliseconds';
COMMENT ON COLUMN trust_recompute_runs.processed IS 'Scenes whose mark was cleared';
COMMENT ON COLUMN trust_recompute_runs.changed IS 'Scenes whose stored score changed';
COMMENT ON COLUMN trust_recompute_runs.failed IS 'Scenes that failed; they stay dirty';
COMMENT ON COLUMN trust_recompute_runs.remaining IS 'Scenes still dirty when the call ended';
COMMENT ON COLUMN trust_recompute_runs.avg_weight_variance IS 'Mean absolute change of the score over scenes that had one before';
COMMENT ON COLUMN trust_recompute_runs.timed_out IS 'True if the timeout ended the call';
COMMENT ON COLUMN trust_recompute_runs.application IS 'application_name of the caller: the worker, pg_cron or a person';
