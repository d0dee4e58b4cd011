-- Finding scenes by words, ranked; and what users do with scenes.

ALTER TABLE scenes ADD COLUMN words tsvector;
COMMENT ON COLUMN scenes.words IS 'Words of name (A), description (B) and tags (C), for search_scenes(). Kept by a trigger';
UPDATE scenes SET words = setweight(to_tsvector('simple', name), 'A') || setweight(to_tsvector('simple', left(coalesce(description, ''), 50000)), 'B')
    || setweight(to_tsvector('simple', left(array_to_string(tags, ' '), 10000)), 'C');
CREATE INDEX scenes_words_idx ON scenes USING gin (words) WHERE deleted_at IS NULL;

INSERT INTO setting_keys (key, validator, description) VALUES ('search.ranking', 'check_search_ranking',
    'How search_scenes() weighs the parts of a rank (text, proximity, recency, trust: 0 to 1 each, together at most 1), and after how many days recency is halved (half_life_days).');
INSERT INTO settings (key, version, value, valid_from, reason) VALUES ('search.ranking', 1,
    '{"text": 0.4, "proximity": 0.3, "recency": 0.2, "trust": 0.1, "half_life_days": 30}', '-infinity', 'what the product begins with');

COMMENT ON TABLE audit_log IS 'Who did what by function: interventions by hand, settings, and what users asked for and decided.';

-- It returns a column more from now on.
DROP FUNCTION IF EXISTS trust_score(uuid);
