//! Recomputing trust: on a schedule, when notified, and again at once while scenes are left.

use crate::backoff::Backoff;
use crate::batch_size::BatchSize;
use crate::connection::Session;
use crate::connection::failure::Failure;
use crate::sql::{self, Recomputed, SceneFailure};
use crate::worker::Worker;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// However many notifications come, recomputes begin at most this often.
const APART: Duration = Duration::from_secs(1);

/// With a large backlog a batch is up to this many times the configured size: reading many scenes at once is cheaper.
const LARGER: i32 = 16;
/// A batch is this part of the backlog at most, so that other workers find their share.
const SHARE: i64 = 4;
/// What `trust_recompute` takes at most.
const MOST: i32 = 1_000_000;

/// What is remembered from one recompute to the next.
#[derive(Debug)]
pub struct Memory {
    /// How large a batch may get.
    largest: BatchSize,
    /// Failures that have been logged, so that each is logged once: the attempt of each mark. None until the first cycle.
    failures: Option<HashMap<i64, i32>>,
    /// Dirty scenes when nothing could be done about them: they wait to be tried again.
    waiting: i64,
}

impl Memory {
    /// Nothing to remember yet; batches have at least this size.
    pub fn new(batch_size: i32) -> Self {
        let largest = BatchSize::between(batch_size, batch_size.saturating_mul(LARGER).min(MOST));
        Self { largest, failures: None, waiting: 0 }
    }

    /// The batch size for so many dirty scenes.
    fn batch_size(&self, dirty: i64, least: i32) -> i32 {
        i32::try_from(dirty / SHARE).unwrap_or(i32::MAX).min(self.largest.now()).max(least)
    }
}

/// Recomputes until the worker stops.
pub async fn run(worker: Arc<Worker>) {
    let mut backoff = Backoff::default();
    let mut notified = worker.trust.subscribe();
    while !worker.stop.drain.is_cancelled() {
        notified.borrow_and_update();
        let wait = match cycle(&worker).await {
            Ok(run) => {
                backoff.reset();
                let total = run.processed + run.remaining;
                if run.remaining > 0 && run.processed > 0 {
                    tracing::debug!(processed = run.processed, total, "recompute progress");
                    continue;
                }
                APART
            }
            Err(failure) => {
                worker.failed("trust recompute", &failure);
                worker.pause(backoff.next()).await;
                continue;
            }
        };
        worker.pause(wait).await;
        tokio::select! {
            _ = notified.changed() => (),
            _ = worker.pause(worker.config.trust_interval.saturating_sub(wait)) => (),
        }
    }
    tracing::info!("trust recompute job stopping due to stop signal");
}

/// One recompute with its log lines. Only one runs at a time in a process.
pub async fn cycle(worker: &Worker) -> Result<Recomputed, Failure> {
    let mut memory = worker.trust_memory.lock().await;
    let session = tokio::select! {
        session = worker.database.session() => session,
        () = worker.stop.drain.cancelled() => return Ok(Recomputed::default()),
    };
    let mut session = session?;
    if memory.failures.is_none() {
        let old = sql::scene_failures(&mut session, Duration::ZERO).await?;
        memory.failures = Some(attempts(&old));
    }
    let (dirty, _) = sql::dirty_scenes(&mut session).await?;
    worker.answered();
    let announce = || tracing::info!(dirty_count = dirty, "recomputing trust scores");
    let announced = dirty > memory.waiting;
    if announced {
        announce();
    }
    let batch_size = memory.batch_size(dirty, worker.config.trust_batch_size);
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
        log_failures(&mut session, &mut memory, &run).await?;
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

async fn log_failures(session: &mut Session, memory: &mut Memory, run: &Recomputed) -> Result<(), Failure> {
    let within = Duration::from_secs_f64(run.seconds.max(0.0) + 1.0);
    let failures = sql::scene_failures(session, within).await?;
    let old = memory.failures.replace(attempts(&failures)).unwrap_or_default();
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
    let canceller = session.canceller();
    let config = &worker.config;
    let mut call = pin!(sql::trust_recompute(session, batch_size, config.trust_timeout));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_follows_the_backlog_between_the_setting_and_sixteen_times_as_much() {
        let mut memory = Memory::new(500);
        let sizes = [0, 500, 10_000, 100_000].map(|dirty| memory.batch_size(dirty, 500));
        assert_eq!(sizes, [500, 500, 2500, 8000]);
        memory.largest.was_too_much();
        assert_eq!(memory.batch_size(100_000, 500), 4000);
        assert_eq!(Memory::new(1_000_000).batch_size(i64::MAX, 1_000_000), 1_000_000);
    }
}
