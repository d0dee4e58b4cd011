//! The settings `pgsteward.*` that an administrator tunes per server, role or session.

use crate::search::flag;
use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::ffi::CString;
use std::sync::OnceLock;

pub static TRUST_RECOMPUTE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(30_000);
pub static TRUST_MAX_ATTEMPTS: GucSetting<i32> = GucSetting::<i32>::new(5);
pub static TRUST_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(256 * 1024);
pub static TRUST_HISTORY: GucSetting<bool> = GucSetting::<bool>::new(true);
static RANK_TRUST_ENABLED: OnceLock<GucSetting<bool>> = OnceLock::new();
pub static TRUST_PROPAGATE_MEMORY: GucSetting<i32> = GucSetting::<i32>::new(1_048_576);
static USER: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// Off, unless the environment in which the server was started says otherwise.
pub fn rank_trust_enabled() -> &'static GucSetting<bool> {
    RANK_TRUST_ENABLED.get_or_init(|| {
        let asked = std::env::var("RANK_TRUST_ENABLED").ok().and_then(|value| flag(&value));
        GucSetting::<bool>::new(asked.unwrap_or(false))
    })
}

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
    GucRegistry::define_bool_guc(
        c"pgsteward.rank_trust_enabled",
        c"Whether search_scenes() ranks by trust too.",
        c"The default is the environment variable RANK_TRUST_ENABLED of the server, else off. Scores are computed in any case.",
        rank_trust_enabled(),
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
    GucRegistry::define_int_guc(
        c"pgsteward.trust_propagate_memory",
        c"How much memory one propagation of trust may take for its graph.",
        c"A graph that needs more is refused with the amount that it needs: about 160 bytes for each scene and 28 for each alliance.",
        &TRUST_PROPAGATE_MEMORY,
        64,
        i32::MAX,
        GucContext::Userset,
        GucFlags::UNIT_KB,
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
