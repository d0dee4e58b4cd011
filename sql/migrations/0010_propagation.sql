-- Transitive trust: the rank of each scene, and the runs that computed it.

-- No foreign key to scenes, as for trust_scores: a propagation removes the ranks of scenes that no longer stand.
CREATE TABLE trust_ranks (
    scene_id    uuid PRIMARY KEY,
    rank        double precision NOT NULL,
    computed_at timestamptz NOT NULL,
    CONSTRAINT trust_ranks_rank_check CHECK (rank BETWEEN 0 AND 1)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE trust_ranks IS 'The rank of each scene that stood at the last trust_propagate(): its part of all trust. They add up to 1.';
COMMENT ON COLUMN trust_ranks.scene_id IS 'The scene';
COMMENT ON COLUMN trust_ranks.rank IS 'Its part of all trust, 0 to 1';
COMMENT ON COLUMN trust_ranks.computed_at IS 'When the stored value changed last';

CREATE TABLE trust_propagation_runs (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    started_at   timestamptz NOT NULL,
    duration_ms  double precision NOT NULL,
    read_ms      double precision NOT NULL,
    write_ms     double precision NOT NULL,
    scenes       bigint NOT NULL,
    edges        bigint NOT NULL,
    changed      bigint NOT NULL,
    residual     double precision,
    damping      double precision NOT NULL,
    tolerance    double precision NOT NULL,
    iterations   int NOT NULL,
    pretrusted   int,
    converged    boolean NOT NULL,
    warm_started boolean NOT NULL,
    timed_out    boolean NOT NULL,
    quantiles    double precision[],
    application  text NOT NULL DEFAULT coalesce(current_setting('application_name', true), '')
);
CREATE INDEX trust_propagation_runs_started_idx ON trust_propagation_runs (started_at);
COMMENT ON TABLE trust_propagation_runs IS 'A row per call of trust_propagate().';
COMMENT ON COLUMN trust_propagation_runs.started_at IS 'When the call began';
COMMENT ON COLUMN trust_propagation_runs.duration_ms IS 'How long it took, in milliseconds';
COMMENT ON COLUMN trust_propagation_runs.read_ms IS 'Milliseconds of it for reading the tables and building the graph';
COMMENT ON COLUMN trust_propagation_runs.write_ms IS 'Milliseconds of it for storing the ranks';
COMMENT ON COLUMN trust_propagation_runs.scenes IS 'Scenes that stand; 0 if the time ran out while they were read';
COMMENT ON COLUMN trust_propagation_runs.edges IS 'Alliances between them that count';
COMMENT ON COLUMN trust_propagation_runs.changed IS 'Ranks that were stored anew or removed';
COMMENT ON COLUMN trust_propagation_runs.residual IS 'Sum of absolute changes of the ranks in the last iteration; NULL without any';
COMMENT ON COLUMN trust_propagation_runs.damping IS 'Part of its rank that a scene passes on';
COMMENT ON COLUMN trust_propagation_runs.tolerance IS 'The residual at which ranks count as settled';
COMMENT ON COLUMN trust_propagation_runs.iterations IS 'Iterations of this call';
COMMENT ON COLUMN trust_propagation_runs.pretrusted IS 'How many pretrusted scenes were named; NULL if all are trusted alike';
COMMENT ON COLUMN trust_propagation_runs.converged IS 'Whether the residual came down to the tolerance';
COMMENT ON COLUMN trust_propagation_runs.warm_started IS 'Whether it went on from stored ranks';
COMMENT ON COLUMN trust_propagation_runs.timed_out IS 'True if the timeout ended the call';
COMMENT ON COLUMN trust_propagation_runs.quantiles IS 'At most 1000 of the stored ranks, ascending and evenly spaced: how many are not above a rank tells its percentile. NULL if nothing was stored';
COMMENT ON COLUMN trust_propagation_runs.application IS 'application_name of the caller: the worker, pg_cron or a person';
