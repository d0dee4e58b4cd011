COMMENT ON FUNCTION steward_version() IS 'Version of the extension''s library.';
COMMENT ON FUNCTION steward_files() IS 'Every SQL file that the extension carries, in the order in which steward_migrate() applies them: name, kind, SHA-256, text.';
COMMENT ON FUNCTION steward_catalogue_expected() IS 'What the files make, one object a row; steward_schema_validate() compares the catalogue with it.';

-- Until steward_migrate() has granted what each role may do, only the owner may do anything.
DO $$
DECLARE
    name regprocedure;
BEGIN
    FOR name IN
        SELECT d.objid::regprocedure FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
         WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e' AND e.extname = 'pgsteward'
    LOOP
        EXECUTE format('REVOKE ALL ON FUNCTION %s FROM PUBLIC', name);
    END LOOP;
END $$;
