//! What the tasks of one worker share: who it is, how it fares, when to wake and when to stop.

use crate::config::Config;
use crate::connection::Database;
use crate::connection::failure::Failure;
use crate::queue::Queue;
use crate::tasks::trust;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const TOLD_APART: Duration = Duration::from_secs(60);

/// Who this process is, for heartbeats and leases.
#[derive(Debug)]
pub struct Identity {
    pub name: String,
    pub host: String,
    pub pid: i32,
    pub started_at: SystemTime,
}

impl Identity {
    /// A name that no other start of a worker shares: host, process id and a random part.
    pub fn new() -> Self {
        let host = whoami::hostname().unwrap_or_else(|_| "unknown".into());
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        let name = format!("{host}-{pid}-{:08x}", fastrand::u32(..));
        Self { name, host, pid, started_at: SystemTime::now() }
    }
}

/// What has been done of one queue, and is being done.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    pub leased: i32,
    pub done: i64,
    pub retried: i64,
    pub failed: i64,
    pub lost: i64,
    /// When an item was done last.
    pub done_at: Option<Instant>,
}

/// What the worker has done, and does now.
#[derive(Debug, Default, Clone)]
pub struct Pulse {
    pub draining: bool,
    pub stopped: bool,
    /// Loops over a queue that have nothing to do and listen.
    pub idle: usize,
    pub events: Tally,
    pub discovery: Tally,
    pub scenes: i64,
    pub scenes_failed: i64,
    pub last_error: Option<String>,
    /// Why a recompute stopped before its end last, and when.
    pub trust_stop: Option<(&'static str, SystemTime)>,
    /// When the database was last told that the worker lives.
    pub beat_at: Option<SystemTime>,
    /// When a scene was recomputed last.
    pub scene_at: Option<Instant>,
    /// Since when the database is out of reach.
    pub cut_off: Option<Instant>,
    /// The error of each kind of work that was logged last, and when.
    pub told: HashMap<&'static str, (String, Instant)>,
}

impl Pulse {
    /// What has been done of this queue.
    pub fn of(&self, queue: Queue) -> &Tally {
        match queue {
            Queue::Events => &self.events,
            Queue::Discovery => &self.discovery,
        }
    }

    /// The same, to be changed.
    pub fn of_mut(&mut self, queue: Queue) -> &mut Tally {
        match queue {
            Queue::Events => &mut self.events,
            Queue::Discovery => &mut self.discovery,
        }
    }

    /// Done of both queues.
    pub fn done(&self) -> i64 {
        self.events.done + self.discovery.done
    }

    /// Leased of both queues.
    pub fn leased(&self) -> i32 {
        self.events.leased + self.discovery.leased
    }
}

/// When to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    /// Begin nothing new.
    pub drain: CancellationToken,
    /// Give back at once what is not finished.
    pub now: CancellationToken,
    why: Arc<OnceLock<&'static str>>,
}

impl Stop {
    /// Begins to drain; the first reason counts.
    pub fn drain(&self, why: &'static str) {
        self.why.get_or_init(|| why);
        self.drain.cancel();
    }

    /// Why the worker drains.
    pub fn reason(&self) -> &'static str {
        self.why.get().copied().unwrap_or("stop signal")
    }
}

/// The shared state of the tasks.
pub struct Worker {
    pub config: Config,
    pub database: Database,
    /// For signs of life, so that they need not wait for work to free a connection.
    pub beats: Database,
    pub identity: Identity,
    pub stop: Stop,
    pub pulse: watch::Sender<Pulse>,
    /// Whether notifications can reach it.
    pub listens: bool,
    /// Counts notifications of events; loops over the queue wait for a change.
    events: watch::Sender<u64>,
    /// Counts notifications of discovery items.
    discovery: watch::Sender<u64>,
    /// Counts notifications of dirty scenes.
    pub trust: watch::Sender<u64>,
    /// Which failures of scenes have been logged.
    pub trust_failures: tokio::sync::Mutex<trust::Failures>,
    /// Beats are sent one after another, so that an older one never overwrites a newer one.
    pub beating: tokio::sync::Mutex<()>,
}

impl Worker {
    /// A worker that has not done anything yet.
    pub fn new(config: Config, database: Database, beats: Database, identity: Identity, stop: Stop) -> Self {
        Self {
            listens: !config.pooled || config.listen_url.is_some(),
            trust_failures: tokio::sync::Mutex::default(),
            config,
            database,
            beats,
            identity,
            stop,
            pulse: watch::Sender::default(),
            events: watch::Sender::default(),
            discovery: watch::Sender::default(),
            trust: watch::Sender::default(),
            beating: tokio::sync::Mutex::default(),
        }
    }

    /// Counts notifications of this queue.
    pub fn wakes(&self, queue: Queue) -> &watch::Sender<u64> {
        match queue {
            Queue::Events => &self.events,
            Queue::Discovery => &self.discovery,
        }
    }

    /// Wakes whoever waits for such a notification.
    pub fn notify(counter: &watch::Sender<u64>) {
        counter.send_modify(|count| *count = count.wrapping_add(1));
    }

    /// Notes a failure. A lost connection is told once, however many tasks run into it; the same error once a minute.
    pub fn failed(&self, doing: &'static str, failure: &Failure) {
        let error = failure.to_string();
        let mut news = true;
        self.pulse.send_modify(|pulse| {
            pulse.last_error = Some(format!("{doing}: {error}"));
            if failure.lost() {
                news = pulse.cut_off.is_none();
                pulse.cut_off.get_or_insert_with(Instant::now);
                return;
            }
            let told = pulse.told.get(doing);
            news = told.is_none_or(|(told, at)| *told != error || at.elapsed() > TOLD_APART);
            if news {
                pulse.told.insert(doing, (error.clone(), Instant::now()));
            }
        });
        match (failure.lost(), news) {
            (true, true) => tracing::warn!(doing, error, "database connection lost, retrying"),
            (true, false) => tracing::debug!(doing, error, "database still out of reach"),
            (false, true) => tracing::warn!(doing, error, "statement failed, retrying"),
            (false, false) => tracing::debug!(doing, error, "statement failed again, retrying"),
        }
    }

    /// Notes that the database answers.
    pub fn answered(&self) {
        let mut since = None;
        self.pulse.send_if_modified(|pulse| {
            since = pulse.cut_off.take();
            since.is_some()
        });
        if let Some(since) = since {
            tracing::info!(seconds = since.elapsed().as_secs_f64(), "database connection restored");
        }
    }

    /// Waits this long; false if the worker is to stop meanwhile.
    pub async fn pause(&self, wait: Duration) -> bool {
        tokio::select! {
            () = tokio::time::sleep(wait) => true,
            () = self.stop.drain.cancelled() => false,
        }
    }
}
