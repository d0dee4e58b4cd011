-- Merely reading what the scores are computed from, with the filters of the recompute.
SELECT count(*) FROM memberships WHERE status = 'active';

SELECT count(*) FROM alliances WHERE status = 'active' AND deleted_at IS NULL;

SELECT count(*) FROM scenes WHERE deleted_at IS NULL;

SELECT count(*) FROM trust_scores;
