//! Trust scores of scenes (source: trust operations guide). See `docs/trust.md`.

mod claim;
mod effects;
mod inputs;
mod progress;
mod recompute;
mod rules;
mod store;

use crate::error::{refuse, required};
use crate::settings;
use crate::statement::{Plan, arg, execute, query};
use claim::Shard;
use pgrx::datum::{Interval, Uuid};
use pgrx::prelude::*;
use std::time::Duration;

/// What a geohash is written in.
const GEOHASH: &str = "0123456789bcdefghjkmnpqrstuvwxyz";

/// How much a member of this role counts: owner 1.0, curator 0.8, member 0.5, guest 0.3, anything else 0.5.
#[pg_extern(immutable, strict, parallel_safe)]
fn trust_role_multiplier(role: &str) -> f64 {
    rules::role_multiplier(role)
}

/// What an active membership adds to the points of its scene: trust weight × role multiplier, in units of 1e-13.
///
/// Whole numbers, so that they add up to the same in any order. A weight outside 0..1 is an error (22003).
#[pg_extern(immutable, strict, parallel_safe)]
fn trust_membership_points(role: &str, trust_weight: f64) -> i64 {
    rules::membership_points(role, valid_weight(Some(trust_weight)))
}

/// The trust score of a scene with these memberships (roles and weights, in step) and alliances.
///
/// The mean alliance weight (1 without alliances) times the mean of weight × role multiplier (0 without members).
#[pg_extern(immutable, parallel_safe)]
fn trust_formula(
    roles: default!(Option<Vec<Option<String>>>, "'{}'"),
    trust_weights: default!(Option<Vec<Option<f64>>>, "'{}'"),
    alliance_weights: default!(Option<Vec<Option<f64>>>, "'{}'"),
) -> f64 {
    let mut inputs = rules::Inputs::default();
    counted(roles, trust_weights, alliance_weights).iter().for_each(|row| row.add_to(&mut inputs));
    inputs.trust().score
}

/// A membership or alliance that counts.
enum Counted {
    Membership(String, f64),
    Alliance(f64),
}

impl Counted {
    fn add_to(&self, inputs: &mut rules::Inputs) {
        match self {
            Counted::Membership(role, weight) => inputs.add_membership(role, *weight),
            Counted::Alliance(weight) => inputs.add_alliance(*weight),
        }
    }
}

/// What the arguments of a function list: memberships, then alliances.
fn counted(
    roles: Option<Vec<Option<String>>>,
    trust_weights: Option<Vec<Option<f64>>>,
    alliance_weights: Option<Vec<Option<f64>>>,
) -> Vec<Counted> {
    let roles = roles.unwrap_or_default();
    let weights = trust_weights.unwrap_or_default();
    if roles.len() != weights.len() {
        refuse(
            PgSqlErrorCode::ERRCODE_ARRAY_ELEMENT_ERROR,
            format!("{} roles for {} weights", roles.len(), weights.len()),
            "Give one trust weight per role.",
        );
    }
    let memberships = roles
        .into_iter()
        .zip(weights)
        .map(|(role, weight)| Counted::Membership(role.unwrap_or_default(), valid_weight(weight)));
    let alliances =
        alliance_weights.unwrap_or_default().into_iter().map(|weight| Counted::Alliance(valid_weight(weight)));
    memberships.chain(alliances).collect()
}

fn valid_weight(weight: Option<f64>) -> f64 {
    let weight = required(weight, "a weight");
    if !(0.0..=1.0).contains(&weight) {
        refuse(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!("weight {weight} is out of range"),
            "Weights are between 0 and 1.",
        );
    }
    weight
}

/// Recomputes the scores of dirty scenes, oldest mark first, until none is left that nobody else works on, the
/// timeout passes, or `max_scenes` have been done; what was done stays.
///
/// `batch_size` scenes are claimed at a time (1 to 1,000,000, default 500). `timeout` defaults to the setting
/// `pgsteward.trust_recompute_timeout`. Any number of callers share the dirty scenes without waiting for each other.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, @extschema@, pg_temp)]
#[allow(clippy::type_complexity)]
fn trust_recompute(
    batch_size: default!(Option<i32>, 500),
    timeout: default!(Option<Interval>, "NULL"),
    max_scenes: default!(Option<i64>, "NULL"),
    region: default!(Option<String>, "NULL"),
    first_scene: default!(Option<Uuid>, "NULL"),
    last_scene: default!(Option<Uuid>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(processed, i64),
        name!(changed, i64),
        name!(failed, i64),
        name!(remaining, i64),
        name!(duration_ms, f64),
        name!(avg_weight_variance, f64),
        name!(timed_out, bool),
    ),
> {
    let batch_size = required(batch_size, "batch_size");
    if !(1..=1_000_000).contains(&batch_size) {
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("batch_size {batch_size} is out of range"),
            "Claim 1 to 1000000 scenes at a time.",
        );
    }
    let max_scenes = max_scenes.unwrap_or(i64::MAX);
    if max_scenes < 1 {
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("max_scenes {max_scenes} is out of range"),
            "Give at least 1, or leave it out to do all dirty scenes.",
        );
    }
    if region.as_deref().is_some_and(|region| region.is_empty() || region.chars().any(|c| !GEOHASH.contains(c))) {
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("region \"{}\" is not the beginning of a geohash", region.unwrap_or_default()),
            "Geohashes consist of the digits and the lower-case letters without a, i, l and o, such as 'u4pr'.",
        );
    }
    let shard = Shard { scene: None, first: first_scene, last: last_scene, region };
    let request = recompute::Request { batch_size, max_scenes, timeout: duration(timeout), shard };
    let run = recompute::run(&request);
    TableIterator::once((
        run.processed,
        run.changed,
        run.failed,
        run.remaining,
        run.duration_ms,
        run.avg_weight_variance(),
        run.timed_out,
    ))
}

/// Recomputes one scene now, dirty or not, and returns its score.
#[pg_extern(volatile, parallel_unsafe)]
#[search_path(pg_catalog, @extschema@, pg_temp)]
fn trust_recompute_scene(scene_id: Option<Uuid>) -> Option<f64> {
    let scene = required(scene_id, "scene_id");
    recompute::check_preconditions();
    execute("SELECT trust_mark_dirty(ARRAY[$1])", Plan::Kept, || vec![arg(scene)]);
    let shard = Shard { scene: Some(scene), ..Shard::default() };
    let request = recompute::Request { batch_size: 1, max_scenes: 1, timeout: duration(None), shard };
    let run = recompute::run(&request);
    if run.processed == 0 {
        refuse(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            format!("scene {scene} could not be recomputed now"),
            "Another session works on it, or it failed: SELECT * FROM trust_dirty WHERE scene_id = ... tells. It stays dirty.",
        );
    }
    let mut score = None;
    query(
        "SELECT score FROM trust_scores WHERE scene_id = $1",
        Plan::Kept,
        || vec![arg(scene)],
        |row| score = row.get(1),
    );
    score
}

fn duration(timeout: Option<Interval>) -> Duration {
    let Some(timeout) = timeout else {
        return Duration::from_millis(settings::TRUST_RECOMPUTE_TIMEOUT.get().max(1) as u64);
    };
    let micros = timeout.as_micros();
    if !(1_000..=86_400_000_000).contains(&micros) {
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("timeout {} ms is out of range", micros / 1_000),
            "Give 1 ms to 1 day, such as '30 s'.",
        );
    }
    Duration::from_micros(micros as u64)
}

extension_sql!(
    r#"
-- Every statement of a recompute names its rows by place or key: passing over a whole table to find them, or compiling the statement, is never worth it.
ALTER FUNCTION trust_recompute(int, interval, bigint, text, uuid, uuid) SET random_page_cost = 0 SET jit = off;
ALTER FUNCTION trust_recompute_scene(uuid) SET random_page_cost = 0 SET jit = off;

COMMENT ON FUNCTION trust_role_multiplier(text) IS 'How much a member of this role counts: owner 1.0, curator 0.8, member 0.5, guest 0.3, anything else 0.5.';
COMMENT ON FUNCTION trust_formula(text[], double precision[], double precision[]) IS 'The trust score of a scene with these roles and trust weights (in step) and alliance weights: mean alliance weight (1 without alliances) x mean of weight x role multiplier (0 without members). A weight outside 0..1 is an error (22003).';
COMMENT ON FUNCTION trust_membership_points(text, double precision) IS 'What an active membership of this role and trust weight adds to the points of its scene: weight x role multiplier, in units of 1e-13, a whole number so that the order of adding does not matter. A weight outside 0..1 is an error (22003).';
COMMENT ON FUNCTION trust_recompute(int, interval, bigint, text, uuid, uuid) IS 'Recomputes dirty scenes, oldest mark first, batch_size at a time (default 500), until none is left that nobody else works on, the timeout passes (default: pgsteward.trust_recompute_timeout) or max_scenes are done. region (the beginning of a geohash), first_scene and last_scene restrict it to a part of the scenes, so that workers can own parts. What was done stays. Returns scenes processed, changed and failed, scenes still dirty, duration in ms, mean absolute change of the score, and whether the timeout ended it; the same is kept in trust_recompute_runs. Needs READ COMMITTED.';
COMMENT ON FUNCTION trust_recompute_scene(uuid) IS 'Recomputes one scene now, dirty or not, and returns its score. An unknown scene is an error (42704); a scene that another session works on is 55P03.';
"#,
    name = "trust_comments",
    requires = [
        "queue_comments",
        trust_role_multiplier,
        trust_membership_points,
        trust_formula,
        trust_recompute,
        trust_recompute_scene
    ]
);
