//! Work that may fail without undoing what was done before it.

use crate::deadline;
use pgrx::pg_sys;
use pgrx::pg_sys::panic::CaughtError;
use pgrx::prelude::*;
use std::panic::AssertUnwindSafe;

/// Why the work in a subtransaction failed.
pub struct Failure {
    /// The five characters of the SQLSTATE.
    pub code: String,
    pub message: String,
    cause: Box<CaughtError>,
}

impl Failure {
    /// Raises the original error again.
    pub fn raise(self) -> ! {
        (*self.cause).rethrow()
    }
}

/// Runs `work` in a subtransaction: its changes stay if it returns, and are undone if it raises an SQL error. A deadline
/// cancels here and nowhere else, so that what has been done before stays.
pub fn attempt<R>(work: impl FnOnce() -> R) -> Result<R, Failure> {
    // SAFETY: the same steps that PL/pgSQL takes for a block with an EXCEPTION clause.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        let could_cancel = deadline::may_cancel(true);
        pg_sys::MemoryContextSwitchTo(context);
        let outcome = PgTryBuilder::new(AssertUnwindSafe(|| Ok(work())))
            .catch_others(|cause| {
                let (code, message) = match &cause {
                    CaughtError::PostgresError(report) | CaughtError::ErrorReport(report) => {
                        (report.sql_error_code(), report.message().to_string())
                    }
                    CaughtError::RustPanic { ereport, .. } => (ereport.sql_error_code(), ereport.message().to_string()),
                };
                Err(Failure { code: sqlstate(code), message, cause: Box::new(cause) })
            })
            .execute();
        deadline::may_cancel(could_cancel);
        match &outcome {
            Ok(_) => pg_sys::ReleaseCurrentSubTransaction(),
            Err(_) => pg_sys::RollbackAndReleaseCurrentSubTransaction(),
        }
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        outcome
    }
}

/// The five characters of an SQLSTATE, six bits each.
fn sqlstate(code: PgSqlErrorCode) -> String {
    let packed = code as i32;
    (0..5).map(|i| char::from((((packed >> (6 * i)) & 0x3f) as u8) + b'0')).collect()
}
