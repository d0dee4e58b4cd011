INSERT INTO trust_propagation_runs (started_at, duration_ms, read_ms, write_ms, scenes, edges, iterations, residual, converged, damping,
                                    tolerance, pretrusted, warm_started, timed_out, changed, quantiles)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
