-- Finding scenes: by words, ranked by text, proximity, recency and trust.

CREATE OR REPLACE FUNCTION search_words_changed() RETURNS trigger
LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    -- Cut off far below what a tsvector holds, so that no text is too long to be stored.
    NEW.words := setweight(to_tsvector('simple', NEW.name), 'A') || setweight(to_tsvector('simple', left(coalesce(NEW.description, ''), 50000)), 'B')
        || setweight(to_tsvector('simple', left(array_to_string(NEW.tags, ' '), 10000)), 'C');
    RETURN NEW;
END $$;
COMMENT ON FUNCTION search_words_changed() IS 'Trigger: keeps scenes.words in step with name, description and tags.';

CREATE OR REPLACE TRIGGER search_words BEFORE INSERT OR UPDATE OF name, description, tags ON scenes
    FOR EACH ROW EXECUTE FUNCTION search_words_changed();

CREATE OR REPLACE FUNCTION check_search_ranking(value jsonb) RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path FROM CURRENT AS $$
DECLARE
    parts text[] := '{text,proximity,recency,trust}';
    known text[] := parts || 'half_life_days'::text;
    wrong text;
BEGIN
    PERFORM require_argument(value, 'value');
    PERFORM require_valid(jsonb_typeof(value) = 'object', 'a ranking is a JSON object', 'Its keys are: ' || array_to_string(known, ', ') || '.');
    SELECT k INTO wrong FROM jsonb_object_keys(value) k WHERE k <> ALL (known) LIMIT 1;
    PERFORM require_valid(wrong IS NULL, format('a ranking has no "%s"', left(wrong, 200)), 'Its keys are: ' || array_to_string(known, ', ') || '.');
    SELECT k INTO wrong FROM unnest(known) k WHERE jsonb_typeof(value -> k) IS DISTINCT FROM 'number' LIMIT 1;
    PERFORM require_valid(wrong IS NULL, format('"%s" of a ranking is not a number', wrong), 'Give a number for each of: ' || array_to_string(known, ', ') || '.');
    SELECT k INTO wrong FROM unnest(parts) k WHERE (value ->> k)::numeric <> 0 AND (value ->> k)::numeric NOT BETWEEN 1e-300 AND 1 LIMIT 1;
    PERFORM require_valid(wrong IS NULL, format('"%s" of a ranking is out of range', wrong), 'Weights are 0, or from 1e-300 to 1.');
    PERFORM require_valid((SELECT sum((value ->> k)::numeric) FROM unnest(parts) k) BETWEEN 0.000001 AND 1, 'the weights of a ranking do not add up to at most 1',
        'Together they are greater than 0 and at most 1, so that a score is between 0 and 1.');
    PERFORM require_valid((value ->> 'half_life_days')::numeric BETWEEN 0.01 AND 36500, '"half_life_days" of a ranking is out of range', 'Give 0.01 to 36500 days.');
END $$;
COMMENT ON FUNCTION check_search_ranking(jsonb) IS 'Raises 22023 unless the value is a valid search.ranking.';

CREATE OR REPLACE FUNCTION search_cursor(cursor text)
RETURNS TABLE (query bigint, ranking int, trusted boolean, moment timestamptz, score double precision, id uuid)
LANGUAGE plpgsql STABLE ROWS 1 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    spot record;
BEGIN
    SELECT NULL::bigint AS query, NULL::int AS ranking, NULL::boolean AS trusted, NULL::timestamptz AS moment, NULL::double precision AS score, NULL::uuid AS id INTO spot;
    IF length(cursor) <= 1000 THEN
        BEGIN
            SELECT * INTO spot FROM jsonb_to_record(convert_from(decode(cursor, 'base64'), 'UTF8')::jsonb)
                AS c (query bigint, ranking int, trusted boolean, moment timestamptz, score double precision, id uuid);
        EXCEPTION WHEN data_exception THEN
            NULL;  -- it stays empty
        END;
    END IF;
    PERFORM require_valid(spot IS NOT NULL AND isfinite(spot.moment) AND spot.score BETWEEN 0 AND 1, 'the cursor is broken',
        'Give the next_cursor of the last row of a page as it was returned, or NULL for the first page.');
    RETURN QUERY SELECT spot.query, spot.ranking, spot.trusted, spot.moment, spot.score, spot.id;
END $$;
COMMENT ON FUNCTION search_cursor(text) IS 'What a cursor of search_scenes() says: the query that it belongs to, by what it was ranked, and the last row of the page. A broken one is an error (22023). Internal.';

CREATE OR REPLACE FUNCTION search_candidates(terms tsquery, near point, ranking int, trusted boolean, moment timestamptz)
RETURNS TABLE (scene_id uuid, score double precision, text_match double precision, proximity double precision, recency double precision,
               trust double precision, trust_known boolean, distance_km double precision)
LANGUAGE plpgsql STABLE SECURITY DEFINER ROWS 1000 SET search_path FROM CURRENT AS $$
#variable_conflict use_column
DECLARE
    rules     jsonb;
    weights   double precision[];
    half_life double precision;
BEGIN
    SELECT s.value INTO rules FROM settings s WHERE s.key = 'search.ranking' AND s.version = ranking;
    PERFORM require_valid(FOUND, 'the cursor is broken', 'Begin anew, with NULL for the cursor.');
    SELECT array_agg((rules ->> part)::double precision ORDER BY n) INTO weights
      FROM unnest('{text,proximity,recency,trust}'::text[]) WITH ORDINALITY AS p (part, n);
    half_life := (rules ->> 'half_life_days')::double precision;
    -- What the application's row policy shows, but for unlisted scenes: repeated here, because no index is used beneath a policy.
    RETURN QUERY
    SELECT r.id, search_score(r.text_match, r.proximity, r.recency, r.trust, weights), r.text_match, r.proximity, r.recency, r.trust, r.trust_known, r.distance
      FROM (SELECT f.id, f.text_match, d.distance, search_proximity(d.distance) AS proximity,
                   search_recency((extract(epoch FROM moment) - extract(epoch FROM f.updated_at))::double precision / 86400, half_life) AS recency,
                   CASE WHEN trusted THEN coalesce(t.score, 0) ELSE 0 END AS trust, t.score IS NOT NULL AS trust_known
              FROM (SELECT s.*, 1::double precision AS text_match FROM scenes s WHERE terms IS NULL
                    UNION ALL
                    SELECT s.*, ts_rank('{0,0.5,0.7,1}', s.words, terms) FROM scenes s WHERE s.words @@ terms) f
             CROSS JOIN LATERAL (SELECT CASE WHEN f.precise_point[0] BETWEEN -180 AND 180 AND f.precise_point[1] BETWEEN -90 AND 90 AND f.allow_precise
                                             THEN f.precise_point ELSE search_place(f.coarse_geohash) END AS place) p
             CROSS JOIN LATERAL (SELECT search_distance(p.place, near) AS distance) d
              LEFT JOIN trust_scores t ON t.scene_id = f.id
             WHERE f.deleted_at IS NULL AND f.moderation_status IN ('visible', 'flagged') AND f.created_at <= moment
               AND (f.visibility = 'public' OR (f.visibility = 'private' AND (f.owner_did = (SELECT steward_user())
                    OR f.id IN (SELECT m.scene_id FROM memberships m WHERE m.user_did = (SELECT steward_user()) AND m.status = 'active'))))) r;
END $$;
COMMENT ON FUNCTION search_candidates(tsquery, point, int, boolean, timestamptz) IS
    'Every scene that a search finds, with its rank by a version of the setting search.ranking. Internal: search_scenes() sorts, pages and applies row-level security.';

CREATE OR REPLACE FUNCTION search_scenes(query text DEFAULT '', near point DEFAULT NULL, most int DEFAULT 20, cursor text DEFAULT NULL, now timestamptz DEFAULT now())
RETURNS TABLE (scene_id uuid, name text, score double precision, text_match double precision, proximity double precision, recency double precision,
               trust double precision, trust_known boolean, distance_km double precision, next_cursor text)
LANGUAGE plpgsql STABLE ROWS 20 SET search_path FROM CURRENT SET extra_float_digits = 1 AS $$
#variable_conflict use_column
DECLARE
    terms       tsquery;
    fingerprint bigint;
    spot        record;
BEGIN
    PERFORM require_argument(query, 'query'), require_argument(most, 'most'), require_argument(now, 'now');
    PERFORM require_valid(length(query) <= 1000, format('a query of %s characters is too long', length(query)), 'Give at most 1000 characters.');
    PERFORM require_valid(query !~ '[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]', 'the query contains control characters', 'Give words, "phrases", -exclusions and OR.');
    PERFORM require_valid(most BETWEEN 1 AND 1000, format('most %s is out of range', most), 'Ask for 1 to 1000 scenes, and for more with next_cursor.');
    PERFORM require_valid(isfinite(now), format('now %s is out of range', now), 'Give a time, or leave it out.');
    PERFORM search_distance(near, near);
    IF query ~ '\S' THEN
        terms := websearch_to_tsquery('simple', query);
    END IF;
    fingerprint := hashtextextended(concat_ws(E'\x01', terms::text, near[0], near[1]), 0);
    IF cursor IS NULL THEN
        SELECT setting_version('search.ranking') AS ranking, trust_ranking_enabled() AS trusted, search_scenes.now AS moment,
               NULL::double precision AS score, NULL::uuid AS id INTO spot;
    ELSE
        SELECT * INTO spot FROM search_cursor(cursor);
        PERFORM require_valid(spot.query = fingerprint, 'the cursor belongs to another query',
            'Give the same query and place with it as for the first page, or NULL for the first page of this one.');
    END IF;
    RETURN QUERY
    SELECT p.*, translate(encode(convert_to(jsonb_build_object('query', fingerprint, 'ranking', spot.ranking, 'trusted', spot.trusted,
               'moment', spot.moment, 'score', p.score, 'id', p.scene_id)::text, 'UTF8'), 'base64'), E'\n', '')
      FROM (SELECT c.scene_id, s.name::text, c.score, c.text_match, c.proximity, c.recency, c.trust, c.trust_known, c.distance_km
              FROM search_candidates(terms, near, spot.ranking, spot.trusted, spot.moment) c
              JOIN scenes s ON s.id = c.scene_id
             WHERE spot.id IS NULL OR c.score < spot.score OR (c.score = spot.score AND c.scene_id > spot.id)
             ORDER BY c.score DESC, c.scene_id LIMIT most) p
     ORDER BY p.score DESC, p.scene_id;
END $$;
COMMENT ON FUNCTION search_scenes(text, point, int, text, timestamptz) IS
    'Scenes that match the words of the query (all scenes without one), best first: score = weighted sum of text_match, proximity to near (longitude, latitude), recency, and trust if trust_ranking_enabled(); the weights are the setting search.ranking. trust_known is false where no score is stored; it counts as 0. Give next_cursor of the last row as cursor for the next page: all pages are ranked alike, as of the now of the first. Shows standing scenes that are public, or private ones of the user; never unlisted ones.';
