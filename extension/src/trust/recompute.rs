//! One cycle of recomputation: claim a batch, read its inputs, store what changed, until done or out of time.
//!
//! A scene is worked on by one session at a time (`claim`), and inputs are read after its marks have been taken, under a
//! newer snapshot. A change that commits later adds a mark that this session has not taken: no change is ever lost, and
//! the last score stored has seen all changes whose marks are gone.

use crate::deadline::Deadline;
use crate::error::refuse;
use crate::preconditions::require_storage;
use crate::settings;
use crate::statement::{Plan, arg, execute, query};
use crate::subtransaction::{Failure, attempt};
use crate::trust::claim::{Claim, Shard, claim, give_back, record_failure};
use crate::trust::inputs::read_inputs;
use crate::trust::progress::Progress;
use crate::trust::store::{Computed, Outcome, store};
use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

pub struct Request {
    pub batch_size: i32,
    pub max_scenes: i64,
    pub timeout: Duration,
    pub shard: Shard,
}

#[derive(Default)]
pub struct Run {
    pub processed: i64,
    pub changed: i64,
    pub failed: i64,
    pub remaining: i64,
    pub duration_ms: f64,
    pub timed_out: bool,
    total_change: f64,
    had_score: i64,
}

impl Run {
    /// Mean absolute change over scenes that had a score before (the documents' name for it).
    pub fn avg_weight_variance(&self) -> f64 {
        if self.had_score == 0 { 0.0 } else { self.total_change / self.had_score as f64 }
    }

    fn add(&mut self, outcome: &Outcome) {
        self.processed += outcome.processed;
        self.changed += outcome.changed;
        self.total_change += outcome.total_change;
        self.had_score += outcome.had_score;
    }
}

/// Scenes in the first batch of a call; how long they take tells how many the time left allows.
const FIRST_BATCH: i64 = 1_000;
/// Scenes stored in the first subtransaction of a call; later ones follow the time it took.
const FIRST_CHUNK: usize = 16;
/// Memory that a scene of a batch takes at most while it is worked on.
const BYTES_PER_SCENE: i64 = 1_000;
const SHORT_CHUNK: Duration = Duration::from_millis(50);
const LONG_CHUNK: Duration = Duration::from_millis(200);

/// Refuses to work without the schema, where nothing can be written, or under a snapshot that hides later changes.
pub fn check_preconditions() {
    require_storage(c"trust_dirty", "trust cannot be recomputed");
    // SAFETY: reads a variable of this backend.
    if unsafe { pg_sys::XactIsoLevel } != pg_sys::XACT_READ_COMMITTED as i32 {
        refuse(
            PgSqlErrorCode::ERRCODE_INVALID_TRANSACTION_STATE,
            "trust cannot be recomputed in a REPEATABLE READ or SERIALIZABLE transaction".to_string(),
            "It must see changes that commit while it runs: call it in a READ COMMITTED transaction.",
        );
    }
}

pub fn run(request: &Request) -> Run {
    check_preconditions();
    let started = Instant::now();
    let mut started_at: Option<TimestampWithTimeZone> = None;
    query("SELECT clock_timestamp()", Plan::Kept, Vec::new, |row| started_at = row.get(1));
    let mut run = Run::default();
    let mut chunk = FIRST_CHUNK;
    let mut after = i64::MIN;
    let largest =
        i64::from(request.batch_size).min(i64::from(settings::TRUST_MEMORY.get()) * 1_024 / BYTES_PER_SCENE).max(1);
    let mut batch_size = largest.min(FIRST_BATCH);
    let mut progress = Progress::of(dirty_scenes);
    let deadline = Deadline::after(request.timeout);

    while !run.timed_out {
        let limit = (request.max_scenes - run.processed - run.failed).min(batch_size);
        if limit <= 0 {
            break;
        }
        let began = Instant::now();
        let read = attempt(|| {
            let batch = claim(after, limit, &request.shard);
            let computed = if batch.claims.is_empty() { Vec::new() } else { read_inputs(&batch.claims) };
            (batch, computed)
        });
        let (batch, computed) = match read {
            Ok(read) => read,
            Err(_) if deadline.passed() => {
                run.timed_out = true;
                break;
            }
            Err(failure) => failure.raise(),
        };
        if batch.due == 0 {
            break;
        }
        after = batch.last_generation;
        let scenes = batch.claims.len();
        store_batch(&batch.claims, &computed, &deadline, &mut chunk, &mut run, &mut progress);
        // A batch is read before any of it is stored, so it must fit into the time: at most half of what is left.
        if scenes > 0 {
            let per_scene = began.elapsed().as_secs_f64().max(1e-6) / scenes as f64;
            let affordable = deadline.left().as_secs_f64() / 2.0 / per_scene;
            batch_size = (affordable as i64).clamp(1, largest);
        }
        if !run.timed_out && deadline.passed() && run.processed + run.failed < request.max_scenes {
            run.timed_out = dirty_left(after);
        }
    }
    drop(deadline);

    run.remaining = dirty_scenes();
    run.duration_ms = started.elapsed().as_secs_f64() * 1_000.0;
    execute(include_str!("record_run.sql"), Plan::Kept, || {
        vec![
            arg(started_at),
            arg(run.duration_ms),
            arg(run.processed),
            arg(run.changed),
            arg(run.failed),
            arg(run.remaining),
            arg(run.avg_weight_variance()),
            arg(run.timed_out),
        ]
    });
    run
}

/// How many scenes are dirty, whoever works on them.
fn dirty_scenes() -> i64 {
    let mut dirty = 0;
    query(include_str!("count_dirty.sql"), Plan::Kept, Vec::new, |row| dirty = row.get(1).unwrap_or_default());
    dirty
}

fn dirty_left(after: i64) -> bool {
    query("SELECT FROM trust_dirty WHERE generation > $1 LIMIT 1", Plan::Kept, || vec![arg(after)], |_| ()) > 0
}

/// Stores a batch in chunks that grow while they are quick, so that a slow one loses little to the deadline. The marks
/// of what is not done in time are put back.
fn store_batch(
    claims: &[Claim],
    computed: &[Computed],
    deadline: &Deadline,
    chunk: &mut usize,
    run: &mut Run,
    progress: &mut Progress,
) {
    let mut done = 0;
    while done < claims.len() && !run.timed_out {
        let end = (done + *chunk).min(claims.len());
        let began = Instant::now();
        done += store_or_isolate(&claims[done..end], &computed[done..end], deadline, run, progress);
        run.timed_out = done < end || (done < claims.len() && deadline.passed());
        let elapsed = began.elapsed();
        if elapsed < SHORT_CHUNK {
            *chunk = chunk.saturating_mul(4);
        } else if elapsed > LONG_CHUNK {
            *chunk = (*chunk / 2).max(1);
        }
    }
    if done < claims.len() {
        deadline.disarm();
        give_back(claims[done..].iter());
    }
}

/// Stores these scenes; if that fails, halves them until the failing scenes stand alone. Returns how many were settled
/// before time ran out.
fn store_or_isolate(
    claims: &[Claim],
    computed: &[Computed],
    deadline: &Deadline,
    run: &mut Run,
    progress: &mut Progress,
) -> usize {
    if deadline.passed() {
        return 0;
    }
    let stored = attempt(|| {
        let outcome = store(claims, computed);
        give_back(outcome.contested.iter().map(|at| &claims[*at]));
        outcome
    });
    match stored {
        Ok(outcome) => {
            run.add(&outcome);
            progress.tell(claims, computed, &outcome);
            claims.len()
        }
        Err(_) if deadline.passed() => 0,
        Err(failure) if concerns_everyone(&failure) => failure.raise(),
        Err(failure) if claims.len() == 1 => match attempt(|| record_failure(&claims[0], &failure.message)) {
            Ok(()) => {
                run.failed += 1;
                1
            }
            Err(_) if deadline.passed() => 0,
            Err(failure) => failure.raise(),
        },
        Err(_) => {
            let half = claims.len() / 2;
            let settled = store_or_isolate(&claims[..half], &computed[..half], deadline, run, progress);
            if settled < half {
                return settled;
            }
            half + store_or_isolate(&claims[half..], &computed[half..], deadline, run, progress)
        }
    }
}

/// Failures that are not the fault of a scene: conflicts, cancellation, resources, permissions, a broken schema, bugs.
fn concerns_everyone(failure: &Failure) -> bool {
    let code = failure.code.as_str();
    ["25", "40", "53", "57", "58", "XX"].iter().any(|class| code.starts_with(class))
        || ["42501", "55P03"].contains(&code)
        || code.starts_with("42P")
}
