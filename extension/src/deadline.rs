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
static TIMEOUT: OnceLock<c_int> = OnceLock::new();

/// Runs in a signal handler: asks the backend to cancel the running statement.
unsafe extern "C-unwind" fn cancel_statement() {
    PASSED.store(true, Ordering::Relaxed);
    // SAFETY: these are the flags that a cancel request sets; both are made for signal handlers.
    unsafe {
        pg_sys::QueryCancelPending = 1;
        pg_sys::InterruptPending = 1;
        pg_sys::SetLatch(pg_sys::MyLatch);
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
            // SAFETY: the id was registered; afterwards the handler cannot run any more, and a cancellation that
            // only the deadline asked for must not hit the caller's next statement.
            unsafe {
                disable_timeout(*id, false);
                if PASSED.swap(false, Ordering::Relaxed) {
                    pg_sys::QueryCancelPending = 0;
                }
            }
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
