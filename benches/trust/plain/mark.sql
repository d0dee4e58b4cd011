-- The least that a trigger can do for a recompute: note which scenes have changed.
CREATE OR REPLACE FUNCTION plain_mark() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO trust_dirty (scene_id) SELECT DISTINCT scene_id FROM new_rows;
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER plain_mark AFTER UPDATE ON memberships REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION plain_mark();
