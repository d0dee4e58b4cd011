//! Where the next search of a line may begin, remembered by each session.
//!
//! A line is an index in the order of turns. What stands at its head has often been leased, or is dead and cannot be
//! removed yet because an old snapshot could still see it; every search would walk over it again. So a session goes on
//! where its last search ended. It begins anew now and then, to find what joined the line further ahead (urgent items,
//! expired leases, transactions that committed late), and at once when it finds too few. The memory is a hint: without
//! it, or when a transaction is rolled back, nothing but time is lost.

use pgrx::datum::TimestampWithTimeZone;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::time::{Duration, Instant};

/// A search begins anew at least so often.
const ANEW_AFTER: Duration = Duration::from_millis(500);
/// Or less often, so that such searches take no more than one part in so many of the time; but so often all the same.
const SHARE: u32 = 20;
const ANEW_AT_LAST: Duration = Duration::from_secs(3);
/// More lines than this are not remembered.
const LINES: usize = 10_000;

struct Head {
    /// Where the last search ended, if it found as many as it wanted.
    turn_at: Option<TimestampWithTimeZone>,
    /// When the running or last search began, and whether it did so at the front.
    began: Instant,
    at_front: bool,
    /// The last search that began at the front: when it began and how long it took.
    front_began: Instant,
    front_took: Duration,
}

thread_local! {
    /// By queue and topic. A backend has one thread.
    static HEADS: RefCell<FxHashMap<(String, String), Head>> = RefCell::default();
}

/// Where a search of this line begins now; `None` is the front.
pub fn begin(queue: &str, lane: &str) -> Option<TimestampWithTimeZone> {
    let now = Instant::now();
    HEADS.with_borrow_mut(|heads| {
        if heads.len() > LINES {
            heads.clear();
        }
        let head = heads.entry((queue.to_string(), lane.to_string())).or_insert(Head {
            turn_at: None,
            began: now,
            at_front: true,
            front_began: now,
            front_took: Duration::ZERO,
        });
        let due = (head.front_took * SHARE).clamp(ANEW_AFTER, ANEW_AT_LAST);
        let start = head.turn_at.filter(|_| now.duration_since(head.front_began) < due);
        head.began = now;
        head.at_front = start.is_none();
        start
    })
}

/// Notes where the search ended: at this turn, or, with `None`, at the end of the line.
pub fn end(queue: &str, lane: &str, turn_at: Option<TimestampWithTimeZone>) {
    HEADS.with_borrow_mut(|heads| {
        if let Some(head) = heads.get_mut(&(queue.to_string(), lane.to_string())) {
            if head.at_front {
                (head.front_began, head.front_took) = (head.began, head.began.elapsed());
            }
            head.turn_at = turn_at;
        }
    });
}
