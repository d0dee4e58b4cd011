//! `events_queue`: the rule of retries. Leasing and acknowledging are set-based SQL in `sql/functions/queue.sql`.

mod rules;

use pgrx::datum::Interval;
use pgrx::prelude::*;

/// How long a failed event waits before its next attempt (spec: production runbook, exponential backoff with jitter).
///
/// `attempt` counts from 1; `random` between 0 and 1 spreads the wait by ±12.5 %.
#[pg_extern(immutable, strict, parallel_safe)]
fn queue_retry_delay(attempt: i32, random: f64) -> Interval {
    let micros = rules::retry_delay_seconds(attempt, random) * 1_000_000.0;
    Interval::from_micros(micros as i64)
}

extension_sql!(
    r#"
COMMENT ON FUNCTION queue_retry_delay(int, double precision) IS 'How long an event waits after its given attempt (1 is the first) has failed: 2 s doubled per attempt, at most an hour, spread by 12.5 % either way by the random number (0 to 1).';
"#,
    name = "queue_comments",
    requires = ["schema_report", queue_retry_delay]
);
