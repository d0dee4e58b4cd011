//! The settings `pgsteward.*` that an administrator tunes per server, role or session.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::CString;

pub static TRUST_RECOMPUTE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(30_000);
pub static TRUST_MAX_ATTEMPTS: GucSetting<i32> = GucSetting::<i32>::new(5);
pub static TRUST_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(256 * 1024);
pub static TRUST_HISTORY: GucSetting<bool> = GucSetting::<bool>::new(true);
static USER: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

pub fn register() {
    GucRegistry::define_int_guc(
        c"pgsteward.trust_recompute_timeout",
        c"How long one call of trust_recompute() may work before it stops and keeps what it has done.",
        c"Overridden by the timeout argument. The worker's TRUST_RECOMPUTE_TIMEOUT_SEC sets that argument.",
        &TRUST_RECOMPUTE_TIMEOUT,
        1,
        86_400_000,
        GucContext::Userset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_int_guc(
        c"pgsteward.trust_max_attempts",
        c"Failures in a row after which a scene is quarantined.",
        c"A new change of the scene, or trust_mark_dirty(), gives it another try.",
        &TRUST_MAX_ATTEMPTS,
        1,
        100,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"pgsteward.trust_recompute_memory",
        c"How much memory a batch of trust_recompute() may take.",
        c"A larger batch_size is cut down to what fits: about 1,000 scenes per MB.",
        &TRUST_MEMORY,
        64,
        1024 * 1024,
        GucContext::Userset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_bool_guc(
        c"pgsteward.trust_history",
        c"Whether every change of a stored trust score is kept in trust_score_history.",
        c"Off spares a row per change; trust_history() then has gaps.",
        &TRUST_HISTORY,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"pgsteward.user_id",
        c"The user on whose behalf the application acts, for row-level security.",
        c"Set by the application in each transaction: SET LOCAL pgsteward.user_id = 'did:...'.",
        &USER,
        GucContext::Userset,
        GucFlags::default(),
    );
}
