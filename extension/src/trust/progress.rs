//! Telling a client that asked for it (`SET client_min_messages = debug1`) what has been done so far.
//!
//! Each message has its fields as a JSON object in its DETAIL.

use crate::trust::claim::Claim;
use crate::trust::store::{Computed, Outcome};
use pgrx::pg_sys;
use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;
use serde_json::{Value, json};

/// Scenes between two messages of progress.
const STEP: i64 = 10;

pub struct Progress {
    processed: i64,
    /// Dirty scenes at the beginning; `None` if nobody listens.
    total: Option<i64>,
}

impl Progress {
    /// Nothing has been done yet; `total` is asked for only if somebody listens.
    pub fn of(total: impl FnOnce() -> i64) -> Progress {
        // SAFETY: compares settings of this backend.
        let heard = unsafe { pg_sys::message_level_is_interesting(PgLogLevel::DEBUG1 as i32) };
        Progress { processed: 0, total: heard.then(total) }
    }

    /// Tells of scenes that have been stored.
    pub fn tell(&mut self, claims: &[Claim], computed: &[Computed], outcome: &Outcome) {
        let Some(total) = self.total else { return };
        let scenes = claims.iter().zip(computed).enumerate();
        for (_, (claim, computed)) in scenes.filter(|(at, _)| !outcome.contested.contains(at)) {
            let trust = computed.trust.as_ref();
            say(
                "trust score recomputed",
                json!({
                    "scene_id": claim.scene.to_string(),
                    "score": trust.map(|trust| trust.score),
                    "memberships": trust.map_or(0, |trust| trust.memberships),
                    "alliances": trust.map_or(0, |trust| trust.alliances),
                }),
            );
            self.processed += 1;
            if self.processed % STEP == 0 {
                say("recompute progress", json!({ "processed": self.processed, "total": total }));
            }
        }
    }
}

fn say(message: &str, fields: Value) {
    ErrorReport::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message.to_string(), "pgsteward")
        .set_detail(fields.to_string())
        .report(PgLogLevel::DEBUG1);
}
