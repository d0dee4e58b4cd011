//! Recomputing trust: on a schedule, when notified, and again at once while scenes are left.

use crate::backoff::Backoff;
use crate::batch_size::BatchSize;
use crate::connection::Session;
use crate::connection::failure::Failure;
use crate::sql::{self, Broken, Recomputed, SceneFailure};
use crate::worker::Worker;
use serde_json::Value;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
use tokio_postgres::error::DbError;
use tracing::Level;

/// However many notifications come, recomputes begin at most this often.
const APART: Duration = Duration::from_secs(1);

/// With a large backlog a batch is up to this many times the configured size: reading many scenes at once is cheaper.
const LARGER: i32 = 16;
/// A batch is this part of the backlog at most, so that other workers find their share.
const SHARE: i64 = 4;
/// What `trust_recompute` takes at most.
const MOST: i32 = 1_000_000;
/// Recomputes that failed while nothing could be recorded; more are not counted.
const MOST_BROKEN: usize = 100;

/// The failures that have been logged, so that each is logged once: the attempt of each mark. None until the first cycle.
pub type Failures = Option<HashMap<i64, i32>>;

/// What whoever recomputes remembers from one time to the next.
#[derive(Debug)]
pub struct Memory {
    /// How large a batch may get.
    largest: BatchSize,
    /// How many others of this worker come first: they leave work only if there is more than a batch for each.
    place: usize,
    /// Dirty scenes when nothing could be done about them: they wait to be tried again.
    waiting: i64,
    /// Recomputes that failed as a whole, and are to be recorded when that is possible.
    broken: Vec<Broken>,
}

impl Memory {
    /// Nothing to remember yet; batches have at least this size, and so many others come first.
    pub fn new(batch_size: i32, place: usize) -> Self {
        let largest = BatchSize::between(batch_size, batch_size.saturating_mul(LARGER).min(MOST));
        Self { largest, place, waiting: 0, broken: Vec::new() }
    }

    /// The batch size for so many dirty scenes.
    fn batch_size(&self, dirty: i64, least: i32) -> i32 {
        i32::try_from(dirty / SHARE).unwrap_or(i32::MAX).min(self.largest.now()).max(least)
    }

    /// Whether those who come first leave nothing of so many dirty scenes.
    fn is_spare(&self, dirty: i64, least: i32) -> bool {
        let theirs = i64::try_from(self.place).unwrap_or(i64::MAX).saturating_mul(i64::from(least));
        self.place > 0 && dirty <= theirs
    }
}

/// Recomputes until the worker stops; so many others come first.
pub async fn run(worker: Arc<Worker>, place: usize) {
    let mut backoff = Backoff::default();
    let mut notified = worker.trust.subscribe();
    let mut memory = Memory::new(worker.config.trust_batch_size, place);
    let mut stopped = None;
    while !worker.stop.drain.is_cancelled() {
        notified.borrow_and_update();
        match cycle(&worker, &mut memory).await {
            Ok(run) => {
                backoff.reset();
                if stopped.take().is_some() {
                    tracing::info!("trust recompute job goes on");
                }
                if run.remaining > 0 && run.processed > 0 {
                    continue;
                }
            }
            Err(failure) => {
                worker.failed("trust recompute", &failure);
                let reason = failure.reason();
                if stopped.replace(reason) != Some(reason) {
                    note_stop(&worker, reason);
                    tracing::info!(error = failure.to_string(), "trust recompute job stopping due to {reason}");
                }
                worker.pause(backoff.next()).await;
                continue;
            }
        }
        worker.pause(APART).await;
        tokio::select! {
            _ = notified.changed() => (),
            _ = worker.pause(worker.config.trust_interval.saturating_sub(APART)) => (),
        }
    }
    if place == 0 {
        let reason = worker.stop.reason();
        note_stop(&worker, reason);
        tracing::info!("trust recompute job stopping due to {reason}");
    }
}

fn note_stop(worker: &Worker, reason: &'static str) {
    worker.pulse.send_modify(|pulse| pulse.trust_stop = Some((reason, SystemTime::now())));
}

/// One recompute with its log lines.
pub async fn cycle(worker: &Worker, memory: &mut Memory) -> Result<Recomputed, Failure> {
    let session = tokio::select! {
        session = worker.database.session() => session,
        () = worker.stop.drain.cancelled() => return Ok(Recomputed::default()),
    };
    let mut session = session?;
    while let Some(broken) = memory.broken.last() {
        sql::record_broken(&mut session, broken).await?;
        memory.broken.pop();
    }
    remember_failures(worker, &mut session).await?;
    let (dirty, _) = sql::dirty_scenes(&mut session, worker.config.trust_region.as_deref()).await?;
    worker.answered();
    if memory.is_spare(dirty, worker.config.trust_batch_size) {
        return Ok(Recomputed::default());
    }
    let announce = || tracing::info!(dirty_count = dirty, "recomputing trust scores");
    let announced = dirty > memory.waiting;
    if announced {
        announce();
    }
    let batch_size = memory.batch_size(dirty, worker.config.trust_batch_size);
    let (started_at, began) = (SystemTime::now(), Instant::now());
    let run = match recompute(worker, &mut session, batch_size).await {
        Ok(Some(run)) => run,
        Ok(None) => {
            tracing::info!("trust recompute cancelled: its scenes stay dirty");
            return Ok(Recomputed::default());
        }
        Err(failure) => {
            if failure.too_much() {
                memory.largest.was_too_much();
            }
            if memory.broken.len() < MOST_BROKEN {
                memory.broken.push(Broken { started_at, took: began.elapsed(), dirty, error: failure.to_string() });
            }
            return Err(failure);
        }
    };
    memory.largest.went_well(usize::try_from(run.processed).unwrap_or_default(), Duration::ZERO);
    let acted = run.processed + run.failed > 0 || run.timed_out;
    memory.waiting = if acted { 0 } else { dirty };
    if acted && !announced {
        announce();
    }
    if run.failed > 0 {
        log_failures(worker, &mut session, &run).await?;
    }
    if acted || announced {
        log_end(worker, &run);
    }
    worker.pulse.send_modify(|pulse| {
        pulse.scenes += run.processed;
        pulse.scenes_failed += run.failed;
        if run.processed > 0 {
            pulse.scene_at = Some(Instant::now());
        }
    });
    Ok(run)
}

fn attempts(failures: &[SceneFailure]) -> HashMap<i64, i32> {
    failures.iter().map(|failure| (failure.mark, failure.attempts)).collect()
}

/// Failures of the time before this worker are not its to tell.
async fn remember_failures(worker: &Worker, session: &mut Session) -> Result<(), Failure> {
    let mut known = worker.trust_failures.lock().await;
    if known.is_none() {
        *known = Some(attempts(&sql::scene_failures(session, Duration::ZERO).await?));
    }
    Ok(())
}

async fn log_failures(worker: &Worker, session: &mut Session, run: &Recomputed) -> Result<(), Failure> {
    let mut known = worker.trust_failures.lock().await;
    let within = Duration::from_secs_f64(run.seconds.max(0.0) + 1.0);
    let failures = sql::scene_failures(session, within).await?;
    let old = known.replace(attempts(&failures)).unwrap_or_default();
    for failure in failures.iter().filter(|failure| old.get(&failure.mark) != Some(&failure.attempts)) {
        let scene_id = failure.scene.to_string();
        tracing::error!(scene_id, error = failure.error, "failed to recompute trust score");
    }
    Ok(())
}

fn log_end(worker: &Worker, run: &Recomputed) {
    if run.timed_out {
        let (processed, total) = (run.processed, run.processed + run.remaining);
        let timeout = format!("{}s", worker.config.trust_timeout.as_secs_f64());
        tracing::error!(processed, total, timeout, "trust recompute timeout exceeded");
        return;
    }
    tracing::info!(
        duration_seconds = run.seconds,
        scenes_processed = run.processed,
        scenes_failed = run.failed,
        avg_weight_variance = run.avg_weight_variance,
        "trust recompute completed"
    );
}

/// Recomputes. When the worker must stop now, that is cancelled and all of it undone: then None.
async fn recompute(worker: &Worker, session: &mut Session, batch_size: i32) -> Result<Option<Recomputed>, Failure> {
    let mut own = match tracing::enabled!(Level::DEBUG) {
        true => Some(worker.database.telling_session(log_progress).await?),
        false => None,
    };
    let canceller = own.as_ref().unwrap_or(session).canceller();
    let (timeout, region) = (worker.config.trust_timeout, worker.config.trust_region.as_deref());
    let mut call = pin!(async {
        match &mut own {
            Some(own) => sql::trust_recompute_telling(own, batch_size, timeout, region).await,
            None => sql::trust_recompute(session, batch_size, timeout, region).await,
        }
    });
    tokio::select! {
        done = &mut call => return done.map(Some),
        () = worker.stop.now.cancelled() => (),
    }
    if let Some(canceller) = canceller {
        canceller.cancel().await;
    }
    match call.await {
        // The outcome of the call itself tells whether it was cancelled.
        Err(failure) if failure.cancelled() => Ok(None),
        done => done.map(Some),
    }
}

/// Logs what the server tells while it recomputes.
fn log_progress(notice: &DbError) {
    let Some(Ok(Value::Object(detail))) = notice.detail().map(serde_json::from_str) else {
        return;
    };
    let whole = |name: &str| detail.get(name).and_then(Value::as_i64);
    match notice.message() {
        "recompute progress" => {
            tracing::debug!(processed = whole("processed"), total = whole("total"), "recompute progress");
        }
        "trust score recomputed" => {
            let scene_id = detail.get("scene_id").and_then(Value::as_str);
            let score = detail.get("score").and_then(Value::as_f64);
            let (memberships, alliances) = (whole("memberships"), whole("alliances"));
            tracing::debug!(scene_id, score, memberships, alliances, "trust score recomputed");
        }
        _ => (),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_help_only_beyond_a_batch_for_each_before_them() {
        assert!(!Memory::new(500, 0).is_spare(0, 500));
        let helper = Memory::new(500, 2);
        assert_eq!([0, 1000, 1001].map(|dirty| helper.is_spare(dirty, 500)), [true, true, false]);
    }

    #[test]
    fn a_batch_follows_the_backlog_between_the_setting_and_sixteen_times_as_much() {
        let mut memory = Memory::new(500, 0);
        let sizes = [0, 500, 10_000, 100_000].map(|dirty| memory.batch_size(dirty, 500));
        assert_eq!(sizes, [500, 500, 2500, 8000]);
        memory.largest.was_too_much();
        assert_eq!(memory.batch_size(100_000, 500), 4000);
        assert_eq!(Memory::new(1_000_000, 0).batch_size(i64::MAX, 1_000_000), 1_000_000);
    }
}
