//! `--until-empty`: shows what is left, and stops the worker when nothing is.

use crate::backoff::Backoff;
use crate::connection::failure::Failure;
use crate::queue::Queue;
use crate::sql;
use crate::table::{self, Row};
use crate::tasks::trust::{self, Memory};
use crate::worker::{Pulse, Tally, Worker};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use serde_json::{Value, json};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between looks at the backlog: never less, and longer while a look takes long.
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(2);
/// Between progress lines without a terminal.
const LINES_APART: Duration = Duration::from_secs(5);

/// Follows the backlog until it is empty, then stops the worker.
pub async fn until_empty(worker: Arc<Worker>, bars: MultiProgress) {
    let mut backoff = Backoff::default();
    let mut shown = Shown::new(&bars);
    let mut memory = Memory::new(worker.config.trust_batch_size, 0);
    while !worker.stop.drain.is_cancelled() {
        let started = Instant::now();
        let wait = match look(&worker, &mut memory).await {
            Ok(Left { events: 0, discovery: 0, scenes: 0, settled: true }) => {
                shown.finish(&worker.pulse.borrow());
                worker.stop.drain("nothing left to do");
                return;
            }
            Ok(left) => {
                backoff.reset();
                shown.update(&left, &worker.pulse.borrow());
                (started.elapsed() * 10).clamp(SHORTEST, LONGEST)
            }
            Err(failure) => {
                worker.failed("backlog", &failure);
                backoff.next()
            }
        };
        worker.pause(wait).await;
    }
}

struct Left {
    events: i64,
    discovery: i64,
    scenes: i64,
    /// A recompute has just found nothing that it could do.
    settled: bool,
}

async fn look(worker: &Worker, memory: &mut Memory) -> Result<Left, Failure> {
    let mut left = backlog(worker).await?;
    if left.events + left.discovery + left.scenes == 0 {
        let run = trust::cycle(worker, memory).await?;
        left = backlog(worker).await?;
        left.settled = run.processed + run.failed == 0;
    }
    Ok(left)
}

async fn backlog(worker: &Worker) -> Result<Left, Failure> {
    let mut session = worker.database.session().await?;
    let events = sql::items_left(&mut session, Queue::Events).await?;
    let discovery = sql::items_left(&mut session, Queue::Discovery).await?;
    let (dirty, retrying) = sql::dirty_scenes(&mut session, worker.config.trust_region.as_deref()).await?;
    worker.answered();
    Ok(Left { events, discovery, scenes: (dirty - retrying).max(0), settled: false })
}

/// Bars on a terminal, lines elsewhere.
struct Shown {
    events: ProgressBar,
    discovery: ProgressBar,
    scenes: ProgressBar,
    hidden: bool,
    started: Instant,
    line_at: Instant,
}

impl Shown {
    fn new(bars: &MultiProgress) -> Self {
        let bar = |name: &'static str| {
            let bar = ProgressBar::hidden();
            if let Ok(style) =
                ProgressStyle::with_template("{prefix:<10}{wide_bar} {human_pos}/{human_len} {rate} {eta:>4} left")
            {
                bar.set_style(style.with_key("rate", |state: &ProgressState, out: &mut dyn Write| {
                    // A bar that cannot be drawn is no reason to stop.
                    let _ = write!(out, "{:>8.0}/s", state.per_sec());
                }));
            }
            bar.set_prefix(name);
            bars.add(bar)
        };
        let now = Instant::now();
        let (events, discovery, scenes) = (bar("events"), bar("discovery"), bar("scenes"));
        Self { hidden: events.is_hidden(), events, discovery, scenes, started: now, line_at: now }
    }

    fn update(&mut self, left: &Left, pulse: &Pulse) {
        let count = |number: i64| u64::try_from(number).unwrap_or_default();
        let ended = |tally: &Tally| tally.done + tally.failed;
        let work = [
            (&self.events, "events", ended(&pulse.events), left.events),
            (&self.discovery, "discovery", ended(&pulse.discovery), left.discovery),
            (&self.scenes, "scenes", pulse.scenes, left.scenes),
        ];
        for (bar, _, done, left) in work {
            bar.set_length(count(done + left));
            bar.set_position(count(done));
        }
        if self.hidden && self.line_at.elapsed() >= LINES_APART {
            self.line_at = Instant::now();
            let seconds = self.started.elapsed().as_secs_f64();
            let lines = work.map(|(_, name, done, left)| line(name, left, done, seconds));
            table::say(&lines.join("; "));
        }
    }

    fn finish(&self, pulse: &Pulse) {
        for bar in [&self.events, &self.discovery, &self.scenes] {
            bar.set_draw_target(ProgressDrawTarget::hidden());
            bar.finish_and_clear();
        }
        table::print(&summary(pulse, self.started), false);
    }
}

fn line(name: &str, left: i64, done: i64, seconds: f64) -> String {
    let rate = done as f64 / seconds;
    match (left, rate > 0.0) {
        (0, _) => format!("{name}: none left, {done} done"),
        (_, false) => format!("{name}: {left} left"),
        (_, true) => format!("{name}: {left} left, {rate:.0} per second, about {:.0} s", left as f64 / rate),
    }
}

/// What was done, and how fast: over the time from the start to the last that was done.
fn summary(pulse: &Pulse, started: Instant) -> Vec<Row> {
    let row = |work: &str, done: i64, retried: Value, failed: i64, at: Option<Instant>| -> Row {
        let seconds = at.map_or(0.0, |at| at.saturating_duration_since(started).as_secs_f64());
        let rate = if seconds > 0.0 { (done as f64 / seconds).round() } else { 0.0 };
        let cells = [
            ("work", json!(work)),
            ("done", json!(done)),
            ("retried", retried),
            ("failed", json!(failed)),
            ("per_second", json!(rate)),
        ];
        cells.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    };
    let queue = |queue: Queue| {
        let tally = pulse.of(queue);
        row(queue.name(), tally.done, json!(tally.retried), tally.failed, tally.done_at)
    };
    vec![
        queue(Queue::Events),
        queue(Queue::Discovery),
        row("scenes", pulse.scenes, Value::Null, pulse.scenes_failed, pulse.scene_at),
    ]
}
