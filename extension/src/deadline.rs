//! A deadline that cancels whatever statement is running when it passes, and no more than that.

use pgrx::pg_sys;
use std::ffi::c_int;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// `USER_TIMEOUT` of `utils/timeout.h`, which pgrx does not bind: the first id that extensions may register.
const USER_TIMEOUT: c_int = if cfg!(any(feature = "pg15", feature = "pg16")) { 12 } else { 13 };

unsafe extern "C-unwind" {
    fn RegisterTimeout(id: c_int, handler: Option<unsafe extern "C-unwind" fn()>) -> c_int;
    fn enable_timeout_after(id: c_int, delay_ms: c_int);
    fn disable_timeout(id: c_int, keep_indicator: bool);
}

static PASSED: AtomicBool = AtomicBool::new(false);
/// Whether work is going on that may be cancelled, for it can be undone by itself.
static MAY_CANCEL: AtomicBool = AtomicBool::new(false);
/// Whether a cancellation was asked for that may not have happened yet.
static ASKED: AtomicBool = AtomicBool::new(false);
static TIMEOUT: OnceLock<c_int> = OnceLock::new();

/// Runs in a signal handler: asks the backend to cancel the running statement, where it may be cancelled.
unsafe extern "C-unwind" fn cancel_statement() {
    PASSED.store(true, Ordering::Relaxed);
    if MAY_CANCEL.load(Ordering::Relaxed) {
        ask();
    }
}

fn ask() {
    ASKED.store(true, Ordering::Relaxed);
    // SAFETY: these are the flags that a cancel request sets; both are made for signal handlers.
    unsafe {
        pg_sys::QueryCancelPending = 1;
        pg_sys::InterruptPending = 1;
        pg_sys::SetLatch(pg_sys::MyLatch);
    }
}

/// Lets a deadline cancel what follows, or no longer; returns whether it could before. For subtransactions alone.
pub fn may_cancel(from_now: bool) -> bool {
    let before = MAY_CANCEL.swap(from_now, Ordering::Relaxed);
    if from_now && PASSED.load(Ordering::Relaxed) {
        ask();
    } else if !from_now {
        forget();
    }
    before
}

/// A cancellation that only the deadline asked for must not hit what comes next.
fn forget() {
    if ASKED.swap(false, Ordering::Relaxed) {
        // SAFETY: a flag of this backend.
        unsafe { pg_sys::QueryCancelPending = 0 };
    }
}

/// An armed deadline; dropping it disarms it.
pub struct Deadline {
    at: Instant,
}

impl Deadline {
    pub fn after(limit: Duration) -> Deadline {
        PASSED.store(false, Ordering::Relaxed);
        // SAFETY: registered once per backend, with a handler that is valid for its life.
        let id = *TIMEOUT.get_or_init(|| unsafe { RegisterTimeout(USER_TIMEOUT, Some(cancel_statement)) });
        let millis = limit.as_millis().clamp(1, i32::MAX as u128) as i32;
        // SAFETY: the id was registered above.
        unsafe { enable_timeout_after(id, millis) };
        Deadline { at: Instant::now() + limit }
    }

    /// Cancels nothing any more, neither the running statement nor a later one.
    pub fn disarm(&self) {
        if let Some(id) = TIMEOUT.get() {
            // SAFETY: the id was registered; afterwards the handler cannot run any more.
            unsafe { disable_timeout(*id, false) };
            PASSED.store(false, Ordering::Relaxed);
            forget();
        }
    }

    /// How much time is left.
    pub fn left(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// True if the deadline has passed, whether or not a statement was cancelled for it.
    pub fn passed(&self) -> bool {
        PASSED.load(Ordering::Relaxed) || Instant::now() >= self.at
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.disarm();
    }
}
