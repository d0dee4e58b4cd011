-- Marks that say what has changed, so that a recompute need not read a scene's members again; and the history of scores.

ALTER TABLE trust_scores ADD COLUMN membership_points bigint;
COMMENT ON COLUMN trust_scores.membership_points IS
    'Sum of trust_weight x role multiplier over active memberships, in units of 1e-13; changes are added to it. NULL: the next recompute counts the memberships';

ALTER TABLE trust_dirty
    ADD COLUMN recount           boolean NOT NULL DEFAULT true,
    ADD COLUMN alliances_changed boolean NOT NULL DEFAULT true,
    ADD COLUMN members_change    int     NOT NULL DEFAULT 0,
    ADD COLUMN points_change     bigint  NOT NULL DEFAULT 0,
    ADD COLUMN standing_changed  boolean NOT NULL DEFAULT false;
ALTER TABLE trust_dirty SET (fillfactor = 90);
COMMENT ON COLUMN trust_dirty.recount IS 'True: the members and alliances are read anew. False: the stored sums are changed by what follows';
COMMENT ON COLUMN trust_dirty.alliances_changed IS 'True: the alliances are read anew';
COMMENT ON COLUMN trust_dirty.members_change IS 'Active memberships more or less since the stored score';
COMMENT ON COLUMN trust_dirty.standing_changed IS 'True: the scene was deleted, restored or moderated; the recompute marks the scenes that vouch for it once more';
COMMENT ON COLUMN trust_dirty.points_change IS 'What they add to trust_scores.membership_points';

CREATE TABLE trust_score_history (
    scene_id        uuid NOT NULL,
    changed_at      timestamptz NOT NULL,
    score           double precision,
    alliance_factor double precision,
    membership_mean double precision,
    memberships     int,
    alliances       int
);
CREATE INDEX trust_score_history_scene_idx ON trust_score_history (scene_id);
CREATE INDEX trust_score_history_changed_idx ON trust_score_history USING brin (changed_at);
COMMENT ON TABLE trust_score_history IS 'Every change of a stored trust score, while the setting pgsteward.trust_history is on. Read it by trust_history().';
COMMENT ON COLUMN trust_score_history.scene_id IS 'The scene';
COMMENT ON COLUMN trust_score_history.changed_at IS 'When the score was stored';
COMMENT ON COLUMN trust_score_history.score IS 'The score from then on; NULL: it was removed with its scene';
COMMENT ON COLUMN trust_score_history.alliance_factor IS 'Mean weight of the alliances that counted; 1 without any';
COMMENT ON COLUMN trust_score_history.membership_mean IS 'Mean of trust_weight x role multiplier';
COMMENT ON COLUMN trust_score_history.memberships IS 'Active memberships that counted';
COMMENT ON COLUMN trust_score_history.alliances IS 'Alliances that counted';
