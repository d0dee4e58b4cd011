//! Set-based statements with typed arguments, always under a snapshot of their own.

use crate::error::refuse;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::ffi::CString;

/// An argument of a statement.
pub struct Arg {
    oid: pg_sys::Oid,
    datum: Option<pg_sys::Datum>,
}

pub fn arg<T: IntoDatum>(value: T) -> Arg {
    Arg { oid: T::type_oid(), datum: value.into_datum() }
}

/// A row of a result.
pub struct Fields {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Fields {
    /// The value of a column (1 is the first); `None` if it is NULL.
    pub fn get<T: FromDatum>(&self, column: i32) -> Option<T> {
        let mut is_null = false;
        // SAFETY: the tuple belongs to the result that is being visited; the caller names the column's type.
        unsafe {
            let datum = pg_sys::SPI_getbinval(self.tuple, self.descriptor, column, &mut is_null);
            T::from_datum(datum, is_null)
        }
    }
}

/// Runs a statement and returns how many rows it touched. The arguments are made in memory that ends with it.
pub fn execute(sql: &str, arguments: impl FnOnce() -> Vec<Arg>) -> u64 {
    query(sql, arguments, |_| ())
}

/// Runs a statement and visits each row of its result.
pub fn query(sql: &str, arguments: impl FnOnce() -> Vec<Arg>, mut visit: impl FnMut(&Fields)) -> u64 {
    let Ok(text) = CString::new(sql) else { return 0 };
    Spi::connect_mut(|_| {
        let arguments = arguments();
        let mut types: Vec<pg_sys::Oid> = arguments.iter().map(|a| a.oid).collect();
        let mut values: Vec<pg_sys::Datum> =
            arguments.iter().map(|a| a.datum.unwrap_or(pg_sys::Datum::null())).collect();
        let nulls: Vec<std::ffi::c_char> =
            arguments.iter().map(|a| if a.datum.is_some() { b' ' } else { b'n' } as std::ffi::c_char).collect();
        // SAFETY: the arrays have one entry per argument and outlive the call; the tuple table lives until the
        // connection ends.
        unsafe {
            let status = pg_sys::SPI_execute_with_args(
                text.as_ptr(),
                arguments.len() as i32,
                types.as_mut_ptr(),
                values.as_mut_ptr(),
                nulls.as_ptr(),
                false,
                0,
            );
            if status < 0 {
                refuse(
                    PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                    format!("a statement of pgsteward failed with SPI status {status}"),
                    "Please report this with the server log.",
                );
            }
            let processed = pg_sys::SPI_processed;
            if !pg_sys::SPI_tuptable.is_null() {
                let table = &*pg_sys::SPI_tuptable;
                for i in 0..table.numvals as usize {
                    visit(&Fields { tuple: *table.vals.add(i), descriptor: table.tupdesc });
                }
            }
            processed
        }
    })
}
