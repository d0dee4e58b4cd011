//! What must be given before anything can be stored.

use crate::error::refuse;
use crate::heap::Table;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CStr;

/// Refuses to work before the schema has made this table, or where nothing can be written; `what` names the work.
pub fn require_storage(table: &CStr, what: &str) {
    if Table::open(table).is_none() {
        refuse(
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            "the schema of pgsteward has not been migrated".to_string(),
            "Run SELECT * FROM steward_migrate(); or pgsteward migrate from the shell.",
        );
    }
    // SAFETY: reads a variable of this backend.
    if unsafe { pg_sys::XactReadOnly } {
        refuse(
            PgSqlErrorCode::ERRCODE_READ_ONLY_SQL_TRANSACTION,
            format!("{what} in a read-only transaction"),
            "Call it on the primary, in a transaction that may write; a hot standby is read-only.",
        );
    }
}
