//! The queues: what is faster or clearer in Rust. Leasing and acknowledging are set-based SQL in `sql/functions/queue.sql`,
//! made once for each queue. See `docs/queue.md`.

mod head;
mod rules;

use crate::error::required;
use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;
use rules::RetryPolicy;

/// How long a failed item waits before its next attempt (spec: production runbook, exponential backoff with jitter).
///
/// `attempt` counts from 1. The first wait is `base`, each further one `factor` times longer, none longer than `cap`;
/// `random` between 0 and 1 spreads it by `jitter` either way.
#[pg_extern(immutable, strict, parallel_safe)]
fn queue_retry_delay(
    attempt: i32,
    random: f64,
    base: default!(Interval, "'2 seconds'"),
    factor: default!(f64, 2.0),
    cap: default!(Interval, "'1 hour'"),
    jitter: default!(f64, 0.125),
) -> Interval {
    let policy = RetryPolicy { base: seconds(base), factor, cap: seconds(cap), jitter };
    let micros = rules::retry_delay_seconds(attempt, random, &policy) * 1_000_000.0;
    // Beyond 10,000 years the calendar ends.
    Interval::from_micros(micros.min(3e17) as i64)
}

fn seconds(interval: Interval) -> f64 {
    // Months count as 30 days, as PostgreSQL compares them.
    let days = f64::from(interval.months()) * 30.0 + f64::from(interval.days());
    days * 86_400.0 + interval.micros() as f64 / 1_000_000.0
}

/// Where this session's next search of a line of a queue begins; NULL is the front.
#[pg_extern(volatile, parallel_unsafe)]
fn queue_head(queue: Option<&str>, lane: Option<&str>) -> Option<TimestampWithTimeZone> {
    head::begin(required(queue, "queue"), required(lane, "lane"))
}

/// Notes where this session's search of a line has ended; NULL is its end.
#[pg_extern(volatile, parallel_unsafe)]
fn queue_passed(queue: Option<&str>, lane: Option<&str>, turn_at: Option<TimestampWithTimeZone>) {
    head::end(required(queue, "queue"), required(lane, "lane"), turn_at);
}

extension_sql!(
    r#"
COMMENT ON FUNCTION queue_retry_delay(int, double precision, interval, double precision, interval, double precision) IS 'How long an item waits after its given attempt (1 is the first) has failed: base, times factor per further attempt, at most cap, spread by the share jitter either way by the random number (0 to 1). By default 2 s doubled per attempt, at most an hour, spread by 12.5 %.';
COMMENT ON FUNCTION queue_head(text, text) IS 'Where the session''s next search of a line begins; NULL is the front. A hint kept in the memory of the session. Internal.';
COMMENT ON FUNCTION queue_passed(text, text, timestamptz) IS 'Notes where the session''s search of a line has ended; NULL is its end. Internal.';
"#,
    name = "queue_comments",
    requires = ["schema_report", queue_retry_delay, queue_head, queue_passed]
);
