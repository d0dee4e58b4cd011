//! Gaps between what users want and what the marketplace offers (source: production runbook). See `docs/discovery.md`.
//!
//! Checking the gaps of leased items is set-based SQL in `sql/functions/discovery.sql`.

mod rules;

use crate::error::refuse;
use pgrx::prelude::*;
use rules::GapLevel;

/// How badly an interest is served by so many listings: 0 critical, 1 to 4 low, 5 or more none.
#[pg_extern(immutable, strict, parallel_safe)]
fn discovery_gap_level(inventory: i64) -> &'static str {
    GapLevel::of(count(inventory, "inventory", "Give the number of listings in stock, 0 or more.")).name()
}

/// A number that puts the worst gap first: by level, then by the number of users who want it.
#[pg_extern(immutable, strict, parallel_safe)]
fn discovery_gap_severity(gap_level: &str, demand: i64) -> f64 {
    let Some(level) = GapLevel::named(gap_level) else {
        let shown: String = gap_level.chars().take(100).collect();
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("gap level \"{shown}\" does not exist"),
            "The levels are none, low and critical.",
        );
    };
    level.severity(count(demand, "demand", "Give the number of users, 0 or more."))
}

fn count(value: i64, name: &str, hint: &str) -> u64 {
    match u64::try_from(value) {
        Ok(count) => count,
        Err(_) => {
            refuse(PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE, format!("{name} {value} is negative"), hint)
        }
    }
}

extension_sql!(
    r#"
COMMENT ON FUNCTION discovery_gap_level(bigint) IS 'How badly an interest is served by so many active listings in stock: 0 critical, 1 to 4 low, 5 or more none. A negative number is an error (22003).';
COMMENT ON FUNCTION discovery_gap_severity(text, bigint) IS 'A number that puts the worst gap first: none 0 to 1, low 1 to 2, critical 2 to 3, plus demand / (demand + 1) within the level, where demand is the number of users who want it. Another level is an error (22023), negative demand too (22003).';
"#,
    name = "discovery_comments",
    requires = ["trust_effects_comments", discovery_gap_level, discovery_gap_severity]
);
