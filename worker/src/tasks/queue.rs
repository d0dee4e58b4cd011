//! One loop over the queue: lease a batch, have it processed by one SQL call, note what became of each event.

use crate::backoff::Backoff;
use crate::connection::Session;
use crate::connection::failure::Failure;
use crate::sql::{self, Batch, Processed};
use crate::tasks::heartbeat::beat;
use crate::worker::Worker;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout;

/// Failed events of one batch that are logged one by one.
const LOGGED_FAILURES: usize = 5;

/// Works until the worker stops.
pub async fn run(worker: Arc<Worker>) {
    let mut backoff = Backoff::default();
    let mut notified = worker.events.subscribe();
    let mut seat = Seat { idle: false, found: 0 };
    while !worker.stop.drain.is_cancelled() {
        notified.borrow_and_update();
        match turn(&worker).await {
            Ok(0) if !seat.idle => {
                // Whoever enqueued before this was known has not notified: look once more.
                seat.become_idle(&worker).await;
                backoff.reset();
            }
            Ok(0) => {
                seat.found = 0;
                tokio::select! {
                    _ = notified.changed() => (),
                    _ = worker.pause(worker.config.poll_interval) => (),
                }
            }
            Ok(events) => {
                backoff.reset();
                seat.become_busy(&worker, events).await;
            }
            Err(failure) => {
                worker.failed("queue", &failure);
                worker.pause(backoff.next()).await;
            }
        }
    }
    if seat.idle {
        worker.pulse.send_modify(|pulse| pulse.idle -= 1);
    }
}

/// Whether this loop waits to be notified.
struct Seat {
    idle: bool,
    /// Batches found in a row while it waits.
    found: u32,
}

impl Seat {
    async fn become_idle(&mut self, worker: &Worker) {
        (self.idle, self.found) = (true, 0);
        let mut first = false;
        worker.pulse.send_modify(|pulse| {
            pulse.idle += 1;
            first = pulse.idle == 1;
        });
        if first {
            beat(worker).await;
            // Scenes marked while nobody waited were not notified either.
            Worker::notify(&worker.trust);
        }
    }

    /// A small batch alone does not end the waiting: the row would change twice for each event.
    async fn become_busy(&mut self, worker: &Worker, events: usize) {
        self.found += 1;
        if !self.idle || (self.found < 2 && events < worker.config.queue_batch_size as usize) {
            return;
        }
        self.idle = false;
        let mut last = false;
        worker.pulse.send_modify(|pulse| {
            pulse.idle -= 1;
            last = pulse.idle == 0;
        });
        if last {
            beat(worker).await;
        }
    }
}

/// Leases and processes one batch; returns its size.
async fn turn(worker: &Worker) -> Result<usize, Failure> {
    let session = tokio::select! {
        session = worker.database.session() => session,
        () = worker.stop.drain.cancelled() => return Ok(0),
    };
    let mut session = session?;
    let (config, name) = (&worker.config, &worker.identity.name);
    let batch = sql::lease_events(&mut session, config.queue_batch_size, config.lease_ttl, name).await?;
    worker.answered();
    let size = batch.events.len();
    if size == 0 {
        return Ok(0);
    }
    let leased = i32::try_from(size).unwrap_or(i32::MAX);
    worker.pulse.send_modify(|pulse| pulse.leased += leased);
    let started = Instant::now();
    let outcome = work(worker, &mut session, &batch).await;
    worker.pulse.send_modify(|pulse| pulse.leased -= leased);
    // Scenes that the handlers marked: nobody is notified of them while the loops are busy.
    Worker::notify(&worker.trust);
    tracing::debug!(events = size, seconds = started.elapsed().as_secs_f64(), "batch ended");
    outcome.map(|()| size)
}

/// Processes a batch. If the call as a whole fails, it is halved until the culprit stands alone.
async fn work(worker: &Worker, session: &mut Session, batch: &Batch) -> Result<(), Failure> {
    let ids: Vec<i64> = batch.events.iter().map(|event| event.id).collect();
    let mut parts = vec![&ids[..]];
    if worker.stop.drain.is_cancelled() {
        return release(worker, session, &parts, batch).await;
    }
    while let Some(part) = parts.pop() {
        if worker.stop.now.is_cancelled() {
            parts.push(part);
            return release(worker, session, &parts, batch).await;
        }
        match process(worker, session, part, batch).await {
            Ok(events) => record(worker, batch, &events),
            Err(failure) if failure.cancelled() && worker.stop.now.is_cancelled() => {
                parts.push(part);
                return release(worker, session, &parts, batch).await;
            }
            // The lease stays: if these events break the server, each try must count as one.
            Err(failure) if failure.lost() => return Err(failure),
            Err(failure) if failure.blameless() => {
                parts.push(part);
                release(worker, session, &parts, batch).await?;
                return Err(failure);
            }
            Err(failure) if part.len() == 1 => {
                let events = sql::fail_events(session, part, batch.token, &failure.to_string()).await?;
                record(worker, batch, &events);
            }
            Err(failure) => {
                tracing::debug!(events = part.len(), error = failure.to_string(), "batch failed, halving it");
                let (first, second) = part.split_at(part.len() / 2);
                parts.extend([second, first]);
            }
        }
    }
    Ok(())
}

/// Processes events, and cancels that when the worker must stop now.
async fn process(
    worker: &Worker,
    session: &mut Session,
    ids: &[i64],
    batch: &Batch,
) -> Result<Vec<Processed>, Failure> {
    let canceller = session.canceller();
    let mut call = pin!(sql::process_events(session, ids, batch.token));
    tokio::select! {
        done = &mut call => return done,
        () = worker.stop.now.cancelled() => (),
    }
    if let Some(canceller) = canceller {
        // The outcome of the call itself tells whether it was cancelled.
        let _ = timeout(Duration::from_secs(1), canceller.cancel()).await;
    }
    call.await
}

/// Gives back what was not begun, or undone; the attempt does not count.
async fn release(worker: &Worker, session: &mut Session, parts: &[&[i64]], batch: &Batch) -> Result<(), Failure> {
    let ids = parts.concat();
    let held = sql::release_events(session, &ids, batch.token).await?;
    match worker.stop.drain.is_cancelled() {
        true => tracing::info!(events = held, "events given back"),
        false => tracing::debug!(events = held, "events given back"),
    }
    Ok(())
}

fn record(worker: &Worker, batch: &Batch, events: &[Processed]) {
    let count = |wanted: fn(&Processed) -> bool| events.iter().filter(|event| wanted(event)).count() as i64;
    let done = count(|event| event.held && event.status.as_deref() == Some("done"));
    let retried = count(|event| event.held && event.status.as_deref() == Some("queued"));
    let failed = count(|event| event.held && event.status.as_deref() == Some("error"));
    let lost = count(|event| !event.held);
    let mut failures = events.iter().filter(|event| event.held && event.error.is_some());
    for event in failures.clone().take(LOGGED_FAILURES) {
        let leased = batch.events.iter().find(|leased| leased.id == event.id);
        tracing::warn!(
            event_id = event.id,
            topic = leased.map(|leased| leased.topic.as_str()).unwrap_or_default(),
            attempt = leased.map(|leased| leased.attempts).unwrap_or_default(),
            status = event.status.as_deref().unwrap_or_default(),
            error = event.error.as_deref().unwrap_or_default(),
            "event failed"
        );
    }
    let more = failures.clone().count().saturating_sub(LOGGED_FAILURES);
    if more > 0 {
        tracing::warn!(more, "further events of the batch failed");
    }
    if lost > 0 {
        tracing::warn!(events = lost, "leases lost before the work began; another worker has them");
    }
    let last_error =
        failures.next_back().map(|event| format!("event {}: {}", event.id, event.error.as_deref().unwrap_or_default()));
    worker.pulse.send_modify(|pulse| {
        pulse.done += done;
        pulse.retried += retried;
        pulse.failed += failed;
        pulse.lost += lost;
        if done > 0 {
            pulse.event_at = Some(Instant::now());
        }
        if last_error.is_some() {
            pulse.last_error = last_error;
        }
    });
}
