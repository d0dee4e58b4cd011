-- Rules of the business that change while the product runs: validated when written, old versions kept.

CREATE TABLE setting_keys (
    key         text PRIMARY KEY,
    validator   text,
    description text NOT NULL,
    CONSTRAINT setting_keys_key_check CHECK (key ~ '^[a-z0-9][a-z0-9._-]{0,99}$')
);
COMMENT ON TABLE setting_keys IS 'The settings that there are. A domain adds a row in its migration.';
COMMENT ON COLUMN setting_keys.key IS 'Domain and name, such as search.ranking';
COMMENT ON COLUMN setting_keys.validator IS 'Function (value jsonb) that raises 22023 unless the value is valid; NULL: every value is';
COMMENT ON COLUMN setting_keys.description IS 'What it decides, and what its value looks like';

CREATE TABLE settings (
    key        text NOT NULL REFERENCES setting_keys,
    version    int NOT NULL,
    value      jsonb NOT NULL,
    valid_from timestamptz NOT NULL,
    set_by     text NOT NULL DEFAULT session_user,
    reason     text NOT NULL,
    CONSTRAINT settings_pkey PRIMARY KEY (key, version),
    CONSTRAINT settings_version_check CHECK (version >= 1),
    CONSTRAINT settings_reason_check CHECK (reason ~ '\S')
);
CREATE UNIQUE INDEX settings_valid_from_key ON settings (key, valid_from);
COMMENT ON TABLE settings IS 'Every version of every setting, written by set_setting() and read by setting(). The newest holds; older ones say what held before.';
COMMENT ON COLUMN settings.key IS 'The setting';
COMMENT ON COLUMN settings.version IS 'Counts from 1';
COMMENT ON COLUMN settings.value IS 'What it was set to';
COMMENT ON COLUMN settings.valid_from IS 'It holds from then on, until the next version';
COMMENT ON COLUMN settings.set_by IS 'The session user who set it';
COMMENT ON COLUMN settings.reason IS 'Why';
