INSERT INTO trust_recompute_runs (started_at, duration_ms, processed, changed, failed, remaining, avg_weight_variance, timed_out)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
