//! One loop over a queue: lease a batch, have it processed, lease again; wait when there is nothing.

use crate::backoff::Backoff;
use crate::batch_size::BatchSize;
use crate::connection::failure::Failure;
use crate::pace::Pace;
use crate::queue::Queue;
use crate::sql;
use crate::tasks::batch::{self, Lease, Size};
use crate::tasks::heartbeat::beat;
use crate::worker::Worker;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Works until the worker stops.
pub async fn run(worker: Arc<Worker>, queue: Queue) {
    let mut backoff = Backoff::default();
    let mut pace = Pace::new(worker.config.poll_interval);
    let mut size = BatchSize::up_to(worker.config.queue(queue).batch_size);
    let mut notified = worker.wakes(queue).subscribe();
    let mut seat = Seat { idle: false, found: 0 };
    while !worker.stop.drain.is_cancelled() {
        notified.borrow_and_update();
        match turn(&worker, queue, &mut size).await {
            Ok(0) => {
                backoff.reset();
                seat.found = 0;
                if !seat.idle && pace.is_idle() {
                    // Whoever enqueued before this was known has not notified: look once more.
                    seat.become_idle(&worker).await;
                    continue;
                }
                tokio::select! {
                    _ = notified.changed() => pace.noticed(),
                    _ = worker.pause(pace.wait()) => (),
                }
            }
            Ok(found) => {
                backoff.reset();
                pace.found();
                seat.become_busy(&worker, found >= worker.config.queue(queue).batch_size as usize).await;
            }
            Err(failure) => {
                if failure.too_much() {
                    size.was_too_much();
                }
                worker.failed(queue.name(), &failure);
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

    /// A small batch alone does not end the waiting: the row would change twice for each item.
    async fn become_busy(&mut self, worker: &Worker, full: bool) {
        self.found += 1;
        if !self.idle || (self.found < 2 && !full) {
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

/// Leases and processes one batch; returns how much it found.
async fn turn(worker: &Worker, queue: Queue, size: &mut BatchSize) -> Result<usize, Failure> {
    let session = tokio::select! {
        session = worker.database.session() => session,
        () = worker.stop.drain.cancelled() => return Ok(0),
    };
    let mut session = session?;
    let ttl = Duration::from_secs(u64::from(worker.config.queue(queue).lease_ttl.unsigned_abs()));
    let lease = Lease::begins(ttl);
    let batch = sql::lease(&mut session, queue, size.now(), ttl, &worker.identity.name).await?;
    worker.answered();
    let count = batch.items.len();
    if count == 0 {
        return Ok(0);
    }
    let leased = i32::try_from(count).unwrap_or(i32::MAX);
    worker.pulse.send_modify(|pulse| pulse.of_mut(queue).leased += leased);
    let started = Instant::now();
    let outcome = batch::work(worker, queue, &mut session, &batch, lease).await;
    worker.pulse.send_modify(|pulse| pulse.of_mut(queue).leased -= leased);
    // Scenes that the handlers marked: nobody is notified of them while the loops are busy.
    Worker::notify(&worker.trust);
    let took = started.elapsed();
    tracing::debug!(queue = queue.name(), items = count, seconds = took.as_secs_f64(), "batch ended");
    match outcome? {
        Size::Right => size.went_well(count, took),
        Size::TooMuch => size.was_too_much(),
    }
    Ok(count)
}
