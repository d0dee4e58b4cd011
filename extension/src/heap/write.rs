//! Changing single rows at a known place without the executor, where nothing but the row and its key is concerned.

use super::Table;
use pgrx::pg_sys;
use std::ffi::CStr;

/// Whether a row could be deleted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Taken {
    Done,
    /// Somebody else has locked, changed or deleted it.
    Not,
}

/// A table whose rows may be changed past the executor: no trigger, rule, row security or heir would have to know.
pub struct Writable {
    table: Table,
    /// The only index of the table, on the first column, if rows are to be updated.
    key: Option<Key>,
}

struct Key {
    index: pg_sys::Relation,
    info: *mut pg_sys::IndexInfo,
}

const LOCK: pg_sys::LOCKMODE = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;

impl Writable {
    /// `None` if the table has anything that only the executor knows how to treat, or if the caller may not delete from it.
    pub fn for_deletion(name: &CStr) -> Option<Writable> {
        Writable::open(name, pg_sys::ACL_DELETE)
    }

    /// The same for updates; the table has just these columns of these types, of which only the last may be NULL, and one
    /// index, which is on the first of them.
    pub fn for_update(name: &CStr, columns: &[(&str, pg_sys::Oid)]) -> Option<Writable> {
        let mut writable = Writable::open(name, pg_sys::ACL_UPDATE)?;
        let relation = writable.table.relation;
        // SAFETY: catalogue look-ups on an open relation; the index is closed by Drop.
        unsafe {
            let descriptor = (*relation).rd_att;
            if (*descriptor).natts as usize != columns.len()
                || columns
                    .iter()
                    .zip(1..)
                    .any(|((name, of), number)| writable.table.find_column(name, *of) != Some(number))
                || pgrx::PgTupleDesc::from_pg_unchecked(descriptor).iter().last().is_none_or(|last| last.attnotnull)
                || !(*descriptor).constr.is_null()
                    && ((*(*descriptor).constr).has_generated_stored || (*(*descriptor).constr).num_check > 0)
            {
                return None;
            }
            let indexes = pg_sys::RelationGetIndexList(relation);
            if indexes.is_null() || (*indexes).length != 1 {
                return None;
            }
            let index = pg_sys::index_open(pg_sys::list_nth_oid(indexes, 0), LOCK);
            let info = pg_sys::BuildIndexInfo(index);
            writable.key = Some(Key { index, info });
            let plain = (*info).ii_NumIndexAttrs == 1
                && (*info).ii_IndexAttrNumbers[0] == 1
                && (*info).ii_Predicate.is_null()
                && (*info).ii_Unique
                && (*info).ii_ReadyForInserts;
            plain.then_some(writable)
        }
    }

    fn open(name: &CStr, right: u32) -> Option<Writable> {
        let table = Table::open_with(name, LOCK)?;
        // SAFETY: the relation is open.
        let without_triggers = unsafe { (*table.relation).trigdesc.is_null() };
        (without_triggers && table.open_to(right)).then_some(Writable { table, key: None })
    }

    /// Deletes the row at a place, without waiting for anybody.
    pub fn delete(&self, mut place: pg_sys::ItemPointerData) -> Taken {
        let mut failure = pg_sys::TM_FailureData::default();
        // SAFETY: the relation is open and locked; the place comes from a snapshot of this transaction.
        unsafe {
            let command = pg_sys::GetCurrentCommandId(true);
            let relation = self.table.relation;
            let mut attempt = |failure: &mut pg_sys::TM_FailureData, wait| {
                pg_sys::heap_delete(relation, &mut place, command, std::ptr::null_mut(), wait, failure, false)
            };
            let mut result = attempt(&mut failure, false);
            if result == pg_sys::TM_Result::TM_BeingModified
                && pg_sys::TransactionIdIsCurrentTransactionId(failure.xmax)
            {
                // Locked by this very transaction: there is nobody to wait for.
                result = attempt(&mut failure, true);
            }
            if result == pg_sys::TM_Result::TM_Ok { Taken::Done } else { Taken::Not }
        }
    }

    /// Puts these values into the row at a place, without waiting for anybody; false if it has been changed meanwhile.
    pub fn update(&self, mut place: pg_sys::ItemPointerData, values: &mut [pg_sys::Datum], nulls: &mut [bool]) -> bool {
        let Some(key) = &self.key else { return false };
        let relation = self.table.relation;
        let mut failure = pg_sys::TM_FailureData::default();
        let mut lock: pg_sys::LockTupleMode::Type = 0;
        // SAFETY: the relation and its only index are open and locked; there is one value per column; the place comes
        // from a snapshot of this transaction.
        unsafe {
            let row = pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            let command = pg_sys::GetCurrentCommandId(true);
            let mut attempt = |failure: &mut pg_sys::TM_FailureData, wait| {
                let nowhere: pg_sys::Snapshot = std::ptr::null_mut();
                #[cfg(feature = "pg15")]
                return pg_sys::heap_update(relation, &mut place, row, command, nowhere, wait, failure, &mut lock);
                #[cfg(not(feature = "pg15"))]
                return pg_sys::heap_update(
                    relation,
                    &mut place,
                    row,
                    command,
                    nowhere,
                    wait,
                    failure,
                    &mut lock,
                    &mut pg_sys::TU_UpdateIndexes::Type::default(),
                );
            };
            let mut result = attempt(&mut failure, false);
            if result == pg_sys::TM_Result::TM_BeingModified
                && pg_sys::TransactionIdIsCurrentTransactionId(failure.xmax)
            {
                // Locked by this very transaction: there is nobody to wait for.
                result = attempt(&mut failure, true);
            }
            let done = result == pg_sys::TM_Result::TM_Ok;
            let heap_only = u32::from((*(*row).t_data).t_infomask2) & pg_sys::HEAP_ONLY_TUPLE != 0;
            if done && !heap_only {
                pg_sys::index_insert(
                    key.index,
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                    &mut (*row).t_self,
                    relation,
                    pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES,
                    true,
                    key.info,
                );
            }
            pg_sys::heap_freetuple(row);
            done
        }
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        if let Some(key) = &self.key
            && !std::thread::panicking()
        {
            // SAFETY: opened by `for_update`; while an error unwinds, the transaction closes it.
            unsafe { pg_sys::index_close(key.index, pg_sys::NoLock as pg_sys::LOCKMODE) };
        }
    }
}

/// Makes what has been changed at known places visible to the statements that follow.
pub fn show_changes() {
    // SAFETY: begins a new command of the running transaction.
    unsafe { pg_sys::CommandCounterIncrement() };
}
