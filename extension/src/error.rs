//! How a refusal reaches the client: an SQLSTATE, a message in the user's words, and what to do.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// Raises an SQL error and does not return.
pub fn refuse(code: PgSqlErrorCode, message: String, hint: &str) -> ! {
    ErrorReport::new(code, message, "pgsteward").set_hint(hint.to_string()).report(PgLogLevel::ERROR);
    unreachable!("an SQL error does not return")
}

/// Raises 22004 unless the argument has a value.
pub fn required<T>(value: Option<T>, name: &str) -> T {
    match value {
        Some(value) => value,
        None => refuse(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            format!("{name} must not be NULL"),
            &format!("Give a value for {name}."),
        ),
    }
}
