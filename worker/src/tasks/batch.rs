//! One leased batch: processed by one SQL call, halved if that fails as a whole, and what became of each item.

use crate::connection::Session;
use crate::connection::failure::Failure;
use crate::queue::Queue;
use crate::sql::{self, Batch, Processed};
use crate::worker::Worker;
use std::collections::VecDeque;
use std::pin::pin;
use std::time::{Duration, Instant};
use tokio::time::sleep;

/// Failed items of one batch that are logged one by one.
const LOGGED_FAILURES: usize = 5;

/// Whether a batch could be done at once.
pub enum Size {
    Right,
    TooMuch,
}

/// How long a lease holds, as seen from here: counted from before it was asked for, so never longer than it does.
pub struct Lease {
    since: Instant,
    ttl: Duration,
}

impl Lease {
    /// A lease that is asked for now.
    pub fn begins(ttl: Duration) -> Self {
        Self { since: Instant::now(), ttl }
    }

    /// Whether it is time to extend it.
    fn is_old(&self) -> bool {
        self.since.elapsed() > self.ttl / 3
    }

    /// A call that runs longer than this may find the lease expired when it is cancelled.
    fn safe(&self) -> Duration {
        (self.ttl * 9 / 10).saturating_sub(self.since.elapsed())
    }
}

/// What is processed by one call.
#[derive(Clone, Copy)]
struct Part<'a> {
    ids: &'a [i64],
    /// It may run for as long as a statement may; otherwise only for as long as the lease holds.
    unhurried: bool,
}

/// Processes a batch. If the call as a whole fails, it is halved until the culprit stands alone; larger parts go
/// first, and what takes too long even alone goes last, so that it keeps nobody waiting.
pub async fn work(
    worker: &Worker,
    queue: Queue,
    session: &mut Session,
    batch: &Batch,
    mut lease: Lease,
) -> Result<Size, Failure> {
    let ids: Vec<i64> = batch.items.iter().map(|item| item.id).collect();
    let mut parts = VecDeque::from([Part { ids: &ids, unhurried: ids.len() == 1 }]);
    let mut size = Size::Right;
    if worker.stop.drain.is_cancelled() {
        release(worker, queue, session, &parts, batch).await?;
        return Ok(size);
    }
    while let Some(part) = parts.pop_front() {
        if worker.stop.now.is_cancelled() {
            parts.push_front(part);
            release(worker, queue, session, &parts, batch).await?;
            return Ok(size);
        }
        if part.ids.len() < ids.len() && (part.unhurried || lease.is_old()) {
            lease = extend(worker, queue, session, part, &parts, batch).await?;
        }
        let limit = if part.unhurried { None } else { Some(lease.safe()) };
        match process(worker, queue, session, part.ids, batch, limit).await {
            Ok(items) => record(worker, queue, batch, &items),
            Err(failure) if failure.cancelled() && worker.stop.now.is_cancelled() => {
                parts.push_front(part);
                release(worker, queue, session, &parts, batch).await?;
                return Ok(size);
            }
            // The lease stays: if these items break the server, each try must count as one.
            Err(failure) if failure.lost() => return Err(failure),
            Err(failure) if failure.blameless() => {
                parts.push_front(part);
                release(worker, queue, session, &parts, batch).await?;
                return Err(failure);
            }
            Err(failure) => {
                if failure.too_much() {
                    size = Size::TooMuch;
                }
                if part.ids.len() > 1 {
                    let (first, second) = part.ids.split_at(part.ids.len() / 2);
                    let (queue, items, error) = (queue.name(), part.ids.len(), failure.to_string());
                    tracing::debug!(queue, items, error, "batch failed, halving it");
                    parts.extend([first, second].map(|ids| Part { ids, unhurried: false }));
                } else if failure.cancelled() && !part.unhurried {
                    parts.push_back(Part { unhurried: true, ..part });
                } else {
                    let items = sql::fail(session, queue, part.ids, batch.token, &failure.to_string()).await?;
                    record(worker, queue, batch, &items);
                }
            }
        }
    }
    Ok(size)
}

/// Extends the lease of what is left of a batch; a part without a hurry is held for as long as it may run.
async fn extend(
    worker: &Worker,
    queue: Queue,
    session: &mut Session,
    part: Part<'_>,
    rest: &VecDeque<Part<'_>>,
    batch: &Batch,
) -> Result<Lease, Failure> {
    let ttl = Duration::from_secs(u64::from(worker.config.queue(queue).lease_ttl.unsigned_abs()));
    let longest = if part.unhurried { ttl.max(worker.config.statement_timeout + ttl / 3) } else { ttl };
    let lease = Lease::begins(ttl);
    sql::extend(session, queue, part.ids, batch.token, longest).await?;
    let rest = joined(rest);
    if !rest.is_empty() {
        sql::extend(session, queue, &rest, batch.token, ttl).await?;
    }
    Ok(lease)
}

fn joined(parts: &VecDeque<Part<'_>>) -> Vec<i64> {
    parts.iter().flat_map(|part| part.ids).copied().collect()
}

/// Processes items, and cancels that after a while, or when the worker must stop now.
async fn process(
    worker: &Worker,
    queue: Queue,
    session: &mut Session,
    ids: &[i64],
    batch: &Batch,
    limit: Option<Duration>,
) -> Result<Vec<Processed>, Failure> {
    let canceller = session.canceller();
    let mut call = pin!(sql::process(session, queue, ids, batch.token));
    tokio::select! {
        done = &mut call => return done,
        () = worker.stop.now.cancelled() => (),
        () = sleep(limit.unwrap_or_default()), if limit.is_some() => (),
    }
    if let Some(canceller) = canceller {
        canceller.cancel().await;
    }
    // The outcome of the call itself tells whether it was cancelled.
    call.await
}

/// Gives back what was not begun, or undone; the attempt does not count.
async fn release(
    worker: &Worker,
    queue: Queue,
    session: &mut Session,
    parts: &VecDeque<Part<'_>>,
    batch: &Batch,
) -> Result<(), Failure> {
    let (what, held) = (queue.item(), sql::release(session, queue, &joined(parts), batch.token).await?);
    let (events, items) = queue.fields(held);
    match worker.stop.drain.is_cancelled() {
        true => tracing::info!(events, items, "{what}s given back"),
        false => tracing::debug!(events, items, "{what}s given back"),
    }
    Ok(())
}

fn record(worker: &Worker, queue: Queue, batch: &Batch, items: &[Processed]) {
    let count = |wanted: fn(&Processed) -> bool| items.iter().filter(|item| wanted(item)).count() as i64;
    let done = count(|item| item.held && item.status.as_deref() == Some("done"));
    let retried = count(|item| item.held && item.status.as_deref() == Some("queued"));
    let failed = count(|item| item.held && item.status.as_deref() == Some("error"));
    let lost = count(|item| !item.held);
    let failures: Vec<_> = items.iter().filter(|item| item.held && item.error.is_some()).collect();
    let what = queue.item();
    for failure in failures.iter().take(LOGGED_FAILURES) {
        let leased = batch.items.iter().find(|leased| leased.id == failure.id);
        let (event_id, item_id) = queue.fields(failure.id);
        tracing::warn!(
            event_id,
            item_id,
            topic = leased.map(|leased| leased.topic.as_str()).unwrap_or_default(),
            attempt = leased.map(|leased| leased.attempts).unwrap_or_default(),
            status = failure.status.as_deref().unwrap_or_default(),
            error = failure.error.as_deref().unwrap_or_default(),
            "{what} failed"
        );
    }
    if failures.len() > LOGGED_FAILURES {
        let more = failures.len() - LOGGED_FAILURES;
        tracing::warn!(more, "further {what}s of the batch failed");
    }
    if lost > 0 {
        let (events, items) = queue.fields(lost);
        tracing::warn!(events, items, "leases lost; another worker has them, or will");
    }
    let last_error =
        failures.last().map(|item| format!("{what} {}: {}", item.id, item.error.as_deref().unwrap_or_default()));
    worker.pulse.send_modify(|pulse| {
        let tally = pulse.of_mut(queue);
        tally.done += done;
        tally.retried += retried;
        tally.failed += failed;
        tally.lost += lost;
        if done > 0 {
            tally.done_at = Some(Instant::now());
        }
        if last_error.is_some() {
            pulse.last_error = last_error;
        }
    });
}
