//! Set-based statements with typed arguments, always under a snapshot of their own.

use crate::error::refuse;
use pgrx::pg_sys;
use pgrx::prelude::*;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::ffi::{CString, c_char};

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

/// How a statement is planned.
#[derive(Clone, Copy)]
pub enum Plan {
    /// Once per session: for few rows, where planning would cost more than the work.
    Kept,
    /// For these very arguments: for many rows, where the sizes of the arrays decide how to join.
    Fresh,
}

/// From this many rows on, a plan made for them pays.
const FEW_ROWS: usize = 100;

impl Plan {
    pub fn for_rows(rows: usize) -> Plan {
        if rows <= FEW_ROWS { Plan::Kept } else { Plan::Fresh }
    }
}

thread_local! {
    /// Kept plans by the statement's text. A backend has one thread; plans live as long as it does.
    static KEPT: RefCell<FxHashMap<&'static str, pg_sys::SPIPlanPtr>> = RefCell::default();
}

/// Runs a statement and returns how many rows it touched. The arguments are made in memory that ends with it.
pub fn execute(sql: &'static str, plan: Plan, arguments: impl FnOnce() -> Vec<Arg>) -> u64 {
    query(sql, plan, arguments, |_| ())
}

/// Runs a statement and visits each row of its result.
pub fn query(
    sql: &'static str,
    plan: Plan,
    arguments: impl FnOnce() -> Vec<Arg>,
    mut visit: impl FnMut(&Fields),
) -> u64 {
    let Ok(text) = CString::new(sql) else { return 0 };
    Spi::connect_mut(|_| {
        let arguments = arguments();
        let mut types: Vec<pg_sys::Oid> = arguments.iter().map(|a| a.oid).collect();
        let mut values: Vec<pg_sys::Datum> =
            arguments.iter().map(|a| a.datum.unwrap_or(pg_sys::Datum::null())).collect();
        let nulls: Vec<c_char> =
            arguments.iter().map(|a| if a.datum.is_some() { b' ' } else { b'n' } as c_char).collect();
        // SAFETY: the arrays have one entry per argument and outlive the calls; the tuple table lives until the
        // connection ends.
        unsafe {
            let status = match plan {
                Plan::Kept => {
                    let kept = kept_plan(sql, &text, &mut types);
                    pg_sys::SPI_execute_plan(kept, values.as_mut_ptr(), nulls.as_ptr(), false, 0)
                }
                Plan::Fresh => pg_sys::SPI_execute_with_args(
                    text.as_ptr(),
                    arguments.len() as i32,
                    types.as_mut_ptr(),
                    values.as_mut_ptr(),
                    nulls.as_ptr(),
                    false,
                    0,
                ),
            };
            if status < 0 {
                failed(status);
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

/// Rows of a result that are held at a time.
const ROWS_PER_FETCH: i64 = 10_000;

/// Runs a statement without arguments and visits each row, holding few of them at a time.
pub fn stream(sql: &str, mut visit: impl FnMut(&Fields)) {
    let Ok(text) = CString::new(sql) else { return };
    Spi::connect_mut(|_| {
        // SAFETY: a statement without arguments; each table of rows is freed before the next is fetched.
        unsafe {
            let cursor = pg_sys::SPI_cursor_open_with_args(
                std::ptr::null(),
                text.as_ptr(),
                0,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
                std::ptr::null(),
                false,
                0,
            );
            loop {
                pg_sys::SPI_cursor_fetch(cursor, true, ROWS_PER_FETCH);
                if pg_sys::SPI_processed == 0 {
                    break;
                }
                let table = &*pg_sys::SPI_tuptable;
                for i in 0..table.numvals as usize {
                    visit(&Fields { tuple: *table.vals.add(i), descriptor: table.tupdesc });
                }
                pg_sys::SPI_freetuptable(pg_sys::SPI_tuptable);
                pg_sys::check_for_interrupts!();
            }
            pg_sys::SPI_cursor_close(cursor);
        }
    });
}

/// The session's plan of a statement; PostgreSQL makes it anew by itself when a table or the search path changes.
unsafe fn kept_plan(sql: &'static str, text: &CString, types: &mut [pg_sys::Oid]) -> pg_sys::SPIPlanPtr {
    if let Some(plan) = KEPT.with_borrow(|kept| kept.get(sql).copied()) {
        return plan;
    }
    // SAFETY: the caller is connected to SPI, and the types outlive the call.
    let plan = unsafe {
        let plan = pg_sys::SPI_prepare(text.as_ptr(), types.len() as i32, types.as_mut_ptr());
        if plan.is_null() {
            failed(pg_sys::SPI_result);
        }
        pg_sys::SPI_keepplan(plan);
        plan
    };
    KEPT.with_borrow_mut(|kept| kept.insert(sql, plan));
    plan
}

fn failed(status: i32) -> ! {
    refuse(
        PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
        format!("a statement of pgsteward failed with SPI status {status}"),
        "Please report this with the server log.",
    )
}
