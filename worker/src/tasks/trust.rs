//! Recomputing trust: on a schedule, when notified, and again at once while scenes are left.

use crate::backoff::Backoff;
use crate::connection::Session;
use crate::connection::failure::Failure;
use crate::sql::{self, Recomputed, SceneFailure};
use crate::worker::Worker;
use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// However many notifications come, recomputes begin at most this often.
const APART: Duration = Duration::from_secs(1);

/// What is remembered from one recompute to the next, so that each thing is logged once.
#[derive(Debug, Default)]
pub struct Memory {
    /// Failures that have been logged: the attempt of each mark. None until the first cycle.
    failures: Option<HashMap<i64, i32>>,
    /// Dirty scenes when nothing could be done about them: they wait to be tried again.
    waiting: i64,
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
    let Some(run) = recompute(worker, &mut session).await? else {
        tracing::info!("trust recompute cancelled: its scenes stay dirty");
        return Ok(Recomputed::default());
    };
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
async fn recompute(worker: &Worker, session: &mut Session) -> Result<Option<Recomputed>, Failure> {
    let canceller = session.canceller();
    let config = &worker.config;
    let mut call = pin!(sql::trust_recompute(session, config.trust_batch_size, config.trust_timeout));
    tokio::select! {
        done = &mut call => return done.map(Some),
        () = worker.stop.now.cancelled() => (),
    }
    if let Some(canceller) = canceller {
        // The outcome of the call itself tells whether it was cancelled.
        let _ = timeout(APART, canceller.cancel()).await;
    }
    match call.await {
        Err(failure) if failure.cancelled() => Ok(None),
        done => done.map(Some),
    }
}
