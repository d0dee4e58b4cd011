//! Reading a table without the executor: the fastest way to see every row, where row security does not apply.

mod write;

pub use write::{Taken, Writable, show_changes};

use crate::error::refuse;
use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;
use pgrx::prelude::*;
use std::ffi::{CStr, CString};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// Rows read between two looks for a cancellation.
const ROWS_PER_GUARD: u32 = 1_000;

/// A table opened for reading, closed when dropped. Its lock stays until the transaction ends, as after a statement.
pub struct Table {
    relation: pg_sys::Relation,
}

/// What several scans see alike: all that has been committed when it was taken, and what this transaction has done.
pub struct Snapshot(());

impl Snapshot {
    pub fn take() -> Snapshot {
        // SAFETY: popped by Drop, or by the transaction's end if an error is raised before.
        unsafe { pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot()) };
        Snapshot(())
    }
}

impl Drop for Snapshot {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: pushed by `take`.
            unsafe { pg_sys::PopActiveSnapshot() };
        }
    }
}

/// The columns of a row that were asked for.
pub struct Row<'a> {
    slot: &'a pg_sys::TupleTableSlot,
}

impl Table {
    /// Opens a table of the search path; `None` if there is no such table.
    pub fn open(name: &CStr) -> Option<Table> {
        Table::open_with(name, pg_sys::AccessShareLock as pg_sys::LOCKMODE)
    }

    fn open_with(name: &CStr, lock: pg_sys::LOCKMODE) -> Option<Table> {
        // SAFETY: the relation is closed by Drop, or by the transaction's end if an error is raised before.
        unsafe {
            let oid = pg_sys::RelnameGetRelid(name.as_ptr());
            (oid != pg_sys::InvalidOid).then(|| Table { relation: pg_sys::table_open(oid, lock) })
        }
    }

    /// True if the current user may read every row, so that reading past the executor shows no more than a SELECT.
    pub fn wholly_readable(&self) -> bool {
        self.open_to(pg_sys::ACL_SELECT)
    }

    fn open_to(&self, right: u32) -> bool {
        // SAFETY: plain catalogue look-ups on an open relation.
        unsafe {
            let relation = &*self.relation;
            let (oid, class) = (relation.rd_id, &*relation.rd_rel);
            let allowed = pg_sys::pg_class_aclcheck(oid, pg_sys::GetUserId(), right as pg_sys::AclMode);
            let row_security = pg_sys::check_enable_rls(oid, pg_sys::InvalidOid, true);
            allowed == pg_sys::AclResult::ACLCHECK_OK
                && row_security != pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32
                && class.relkind == pg_sys::RELKIND_RELATION as i8
                && !class.relhassubclass
                && !class.relispartition
                && !class.relhasrules
                && relation.rd_tableam == pg_sys::GetHeapamTableAmRoutine()
        }
    }

    /// Whether a statement of this session that has not ended uses the table: its triggers may not have run yet.
    pub fn in_use(&self) -> bool {
        // SAFETY: the relation is open, once by us.
        unsafe { (*self.relation).rd_refcnt > 1 }
    }

    /// Rows according to the last ANALYZE, or guessed from the size of the table.
    pub fn estimated_rows(&self) -> f64 {
        // SAFETY: the relation is open.
        unsafe {
            let rows = f64::from((*(*self.relation).rd_rel).reltuples);
            let pages =
                f64::from(pg_sys::RelationGetNumberOfBlocksInFork(self.relation, pg_sys::ForkNumber::MAIN_FORKNUM));
            rows.max(pages * 50.0)
        }
    }

    /// The number of a column, which has this type.
    pub fn column(&self, name: &str, of: pg_sys::Oid) -> usize {
        match self.find_column(name, of) {
            Some(number) => number,
            None => refuse(
                PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
                format!("column {name} is missing or of another type"),
                "SELECT * FROM steward_schema_validate() lists what differs from the migrations.",
            ),
        }
    }

    fn find_column(&self, name: &str, of: pg_sys::Oid) -> Option<usize> {
        let text = CString::new(name).ok()?;
        // SAFETY: the relation is open.
        unsafe {
            let oid = (*self.relation).rd_id;
            let number = pg_sys::get_attnum(oid, text.as_ptr());
            (number > 0 && pg_sys::get_atttype(oid, number) == of).then_some(number as usize)
        }
    }

    /// Calls `visit` with every row that the newest snapshot shows; `columns` is the highest column that it reads.
    pub fn scan(&self, columns: usize, visit: impl FnMut(Row<'_>)) {
        self.scan_at(&Snapshot::take(), columns, visit);
    }

    /// The same with a snapshot that other scans share: the latest one that was taken and is not dropped yet.
    pub fn scan_at(&self, _snapshot: &Snapshot, columns: usize, mut visit: impl FnMut(Row<'_>)) {
        // SAFETY: the slot and the scan belong to the open relation and are released in reverse order; on an error
        // the transaction releases them.
        unsafe {
            let slot = pg_sys::table_slot_create(self.relation, std::ptr::null_mut());
            let scan = pg_sys::table_beginscan(self.relation, pg_sys::GetActiveSnapshot(), 0, std::ptr::null_mut());
            let mut visit_some = || {
                for _ in 0..ROWS_PER_GUARD {
                    if !next_row(scan, slot, columns as i32) {
                        return false;
                    }
                    visit(Row { slot: &*slot });
                }
                true
            };
            loop {
                // SAFETY: an SQL error may jump out of the guard over `next_row`, which owns nothing; a panic of
                // `visit` must not cross the guard, and is carried around it.
                match pg_guard_ffi_boundary(|| catch_unwind(AssertUnwindSafe(&mut visit_some))) {
                    Ok(true) => {
                        pg_sys::check_for_interrupts!();
                    }
                    Ok(false) => break,
                    Err(panic) => resume_unwind(panic),
                }
            }
            pg_sys::table_endscan(scan);
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
    }
}

/// Fetches the next row and its columns, through the table's own functions: pgrx would guard each call by itself,
/// which costs more than the row. Only to be called inside a guard.
unsafe fn next_row(scan: pg_sys::TableScanDesc, slot: *mut pg_sys::TupleTableSlot, columns: i32) -> bool {
    // SAFETY: the scan and the slot are open; both tables of functions are complete for a heap.
    unsafe {
        let (Some(next), Some(deform)) =
            ((*(*(*scan).rs_rd).rd_tableam).scan_getnextslot, (*(*slot).tts_ops).getsomeattrs)
        else {
            return false;
        };
        if !next(scan, pg_sys::ScanDirection::ForwardScanDirection, slot) {
            return false;
        }
        deform(slot, columns);
        if i32::from((*slot).tts_nvalid) < columns {
            // A row older than one of the columns.
            pg_sys::slot_getsomeattrs_int(slot, columns);
        }
        true
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: opened by `open`; while an error unwinds, the transaction closes it.
        if !std::thread::panicking() {
            unsafe { pg_sys::table_close(self.relation, pg_sys::NoLock as pg_sys::LOCKMODE) };
        }
    }
}

impl<'a> Row<'a> {
    fn datum(&self, column: usize) -> pg_sys::Datum {
        // SAFETY: `scan` has deformed the row up to the highest column that is read.
        unsafe { *self.slot.tts_values.add(column - 1) }
    }

    pub fn is_null(&self, column: usize) -> bool {
        // SAFETY: as for `datum`.
        unsafe { *self.slot.tts_isnull.add(column - 1) }
    }

    pub fn uuid(&self, column: usize) -> [u8; 16] {
        // SAFETY: a uuid datum points at its sixteen bytes.
        unsafe { *(self.datum(column).cast_mut_ptr::<[u8; 16]>()) }
    }

    pub fn f64(&self, column: usize) -> f64 {
        f64::from_bits(self.datum(column).value() as u64)
    }

    pub fn i32(&self, column: usize) -> i32 {
        self.datum(column).value() as i32
    }

    pub fn i64(&self, column: usize) -> i64 {
        self.datum(column).value() as i64
    }

    /// Where the row is.
    pub fn place(&self) -> pg_sys::ItemPointerData {
        self.slot.tts_tid
    }

    /// The bytes of a short text; only valid while the row is visited.
    pub fn text(&self, column: usize) -> &'a [u8] {
        // SAFETY: a text datum is a varlena; short values are stored in the row, others are fetched.
        unsafe {
            let mut value: *mut pg_sys::varlena = self.datum(column).cast_mut_ptr();
            let plain = pgrx::varatt_is_4b_u(value) || (pgrx::varatt_is_1b(value) && !pgrx::varatt_is_1b_e(value));
            if !plain {
                value = pg_sys::pg_detoast_datum_packed(value);
            }
            std::slice::from_raw_parts(pgrx::vardata_any(value).cast::<u8>(), pgrx::varsize_any_exhdr(value))
        }
    }
}
