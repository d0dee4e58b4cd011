SELECT record_trust_run($1, $2, $3, $4, $5, $6, $7, $8)
