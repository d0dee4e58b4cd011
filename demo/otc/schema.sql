-- What the demo's application has beside pgsteward's own tables: the ratings as published, and the people in them.

CREATE SCHEMA otc;

CREATE TABLE otc.ratings (
    line      int         PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    rater     int         NOT NULL,
    ratee     int         NOT NULL,
    rating    int         NOT NULL CHECK (rating BETWEEN -10 AND 10),
    unix_time numeric     NOT NULL,
    -- In 324 lines the point after the ten digits of the seconds is lost.
    rated_at  timestamptz NOT NULL GENERATED ALWAYS AS (to_timestamp(unix_time / 10 ^ (length(trunc(unix_time)::text) - 10))) STORED
);
COMMENT ON TABLE otc.ratings IS 'The published file: who rated whom, from -10 to 10, and when';

CREATE TABLE otc.people (
    id       int  PRIMARY KEY,
    scene_id uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    did      text NOT NULL UNIQUE GENERATED ALWAYS AS ('did:otc:' || id::text) STORED,
    standing int  NOT NULL,
    role     text NOT NULL GENERATED ALWAYS AS (CASE WHEN standing >= 10 THEN 'curator' WHEN standing >= 2 THEN 'member' ELSE 'guest' END) STORED
);
COMMENT ON COLUMN otc.people.standing IS 'How many people trust this one, less how many distrust';
COMMENT ON COLUMN otc.people.role IS 'What this person is in the scenes of others';

-- The worker logs in as an ordinary role that may do what workers do, and nothing else.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'otc_worker') THEN
        CREATE ROLE otc_worker LOGIN;
    END IF;
END $$;
GRANT steward_worker TO otc_worker;
GRANT USAGE ON SCHEMA otc TO steward_worker;
