//! One propagation over the tables: lock, read, iterate until settled or out of time, store.

use crate::deadline::Deadline;
use crate::error::refuse;
use crate::preconditions::require_storage;
use crate::propagation::graph::{Reading, Stored, afford, stored_ranks};
use crate::propagation::rules::{Graph, Progress, Settings, Teleport, differs, quantiles, start};
use crate::statement::{Plan, arg, execute, query};
use crate::subtransaction::attempt;
use pgrx::datum::{TimestampWithTimeZone, Uuid};
use pgrx::pg_sys;
use pgrx::pg_sys::ItemPointerData;
use pgrx::prelude::*;
use std::time::{Duration, Instant};

/// Rows stored by one statement.
const ROWS_PER_STATEMENT: usize = 250_000;

pub struct Request {
    pub settings: Settings,
    /// `None` is every scene.
    pub pretrusted: Option<Vec<Uuid>>,
    /// `None` is no limit.
    pub timeout: Option<Duration>,
}

#[derive(Default)]
pub struct Run {
    pub scenes: i64,
    pub edges: i64,
    pub progress: Progress,
    pub changed: i64,
    pub warm_started: bool,
    pub timed_out: bool,
    pub duration_ms: f64,
}

/// The graph in memory, what is stored of it, and the ranks as they come.
struct Work {
    ids: Vec<[u8; 16]>,
    graph: Graph,
    teleport: Teleport,
    ranks: Vec<f64>,
    stored: Vec<Option<Stored>>,
    gone: Vec<ItemPointerData>,
}

pub fn run(request: &Request) -> Run {
    check_preconditions();
    let started = Instant::now();
    let mut started_at: Option<TimestampWithTimeZone> = None;
    query("SELECT clock_timestamp()", Plan::Kept, Vec::new, |row| started_at = row.get(1));
    let mut run = Run::default();
    let deadline = request.timeout.map(Deadline::after);
    let passed = || deadline.as_ref().is_some_and(Deadline::passed);

    let mut work = match attempt(|| read(request, &mut run)) {
        Ok(work) => Some(work),
        Err(_) if passed() => None,
        Err(failure) => failure.raise(),
    };
    let read_ms = millis(started);
    if let Some(work) = &mut work {
        let (graph, teleport, ranks) = (&work.graph, &work.teleport, &mut work.ranks);
        let settled = attempt(|| {
            afford(graph.settle(teleport, &request.settings, ranks, &mut run.progress, || {
                pg_sys::check_for_interrupts!();
            }));
        });
        match settled {
            Ok(()) => (),
            Err(_) if passed() => run.timed_out = true,
            Err(failure) => failure.raise(),
        }
    } else {
        run.timed_out = true;
    }
    drop(deadline);

    let writing = Instant::now();
    let spread = work.map(|work| store(work, request.settings.tolerance, &mut run));
    let write_ms = millis(writing);
    run.duration_ms = millis(started);
    execute(include_str!("record_run.sql"), Plan::Kept, || {
        vec![
            arg(started_at),
            arg(run.duration_ms),
            arg(read_ms),
            arg(write_ms),
            arg(run.scenes),
            arg(run.edges),
            arg(run.progress.iterations as i32),
            arg(run.progress.residual),
            arg(run.progress.converged),
            arg(request.settings.damping),
            arg(request.settings.tolerance),
            arg(request.pretrusted.as_ref().map(|ids| ids.len() as i32)),
            arg(run.warm_started),
            arg(run.timed_out),
            arg(run.changed),
            arg(spread),
        ]
    });
    run
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1_000.0
}

/// Refuses to work without the schema, where nothing can be written, or beside another propagation.
fn check_preconditions() {
    require_storage(c"trust_propagation_runs", "trust cannot be propagated");
    let mut free = false;
    query("SELECT pg_try_advisory_xact_lock(hashtext('pgsteward:trust_propagate'), 0)", Plan::Kept, Vec::new, |row| {
        free = row.get(1).unwrap_or_default()
    });
    if !free {
        refuse(
            PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE,
            "another session propagates trust".to_string(),
            "Try again when its transaction has ended; the result is of the whole graph, so one caller is enough.",
        );
    }
}

fn read(request: &Request, run: &mut Run) -> Work {
    let Reading { scenes, edges } = Reading::of_tables();
    let nodes = scenes.keys.len();
    let teleport = match &request.pretrusted {
        None => Teleport::everywhere(nodes),
        Some(ids) => Teleport::to(ids.iter().map(|id| standing(id, scenes.number(id.as_bytes()))).collect()),
    };
    let (stored, gone) = stored_ranks(&scenes);
    let ids = scenes.keys;
    let alliances = edges.count() as i64;
    let graph = afford(Graph::build(nodes, edges, || {
        pg_sys::check_for_interrupts!();
    }));
    let known: Vec<Option<f64>> = stored.iter().map(|stored| stored.map(|stored| stored.rank)).collect();
    let (ranks, warm) = afford(start(&teleport, &known));
    (run.scenes, run.edges) = (nodes as i64, alliances);
    run.warm_started = warm;
    Work { ids, graph, teleport, ranks, stored, gone }
}

/// The number of a pretrusted scene.
fn standing(id: &Uuid, number: Option<u32>) -> u32 {
    if let Some(number) = number {
        return number;
    }
    let id = *id;
    if query("SELECT FROM scenes WHERE id = $1", Plan::Kept, || vec![arg(id)], |_| ()) == 0 {
        refuse(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("scene {id} does not exist"),
            "SELECT id, name FROM scenes WHERE deleted_at IS NULL lists the scenes.",
        );
    }
    refuse(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("scene {id} cannot be pretrusted: it is deleted, hidden or suspended"),
        "Pretrust scenes that stand, or leave pretrusted out to trust all alike.",
    )
}

/// Writes the ranks that moved and removes those of scenes that are gone; returns the quantiles of what is stored now.
fn store(work: Work, tolerance: f64, run: &mut Run) -> Vec<f64> {
    let Work { ids, mut ranks, stored, gone, .. } = work;
    let nodes = ids.len();
    let (mut new, mut moved): (Vec<usize>, Vec<(usize, ItemPointerData)>) = (Vec::new(), Vec::new());
    for (at, stored) in stored.iter().enumerate() {
        match stored {
            None => new.push(at),
            Some(stored) if differs(ranks[at], stored.rank, tolerance, nodes) => moved.push((at, stored.place)),
            Some(stored) => ranks[at] = stored.rank,
        }
    }
    run.changed = (new.len() + moved.len() + gone.len()) as i64;
    let scene = |at: usize| Uuid::from_bytes(ids[at]);
    let insert = |some: &[usize]| {
        execute(include_str!("insert_ranks.sql"), Plan::Kept, || {
            vec![
                arg(some.iter().map(|&at| scene(at)).collect::<Vec<_>>()),
                arg(some.iter().map(|&at| ranks[at]).collect::<Vec<_>>()),
            ]
        });
    };
    new.chunks(ROWS_PER_STATEMENT).for_each(insert);
    for some in moved.chunks(ROWS_PER_STATEMENT) {
        let updated = execute(include_str!("update_ranks.sql"), Plan::Kept, || {
            vec![
                arg(some.iter().map(|&(at, _)| scene(at)).collect::<Vec<_>>()),
                arg(some.iter().map(|&(at, _)| ranks[at]).collect::<Vec<_>>()),
                arg(some.iter().map(|&(_, place)| place).collect::<Vec<_>>()),
            ]
        });
        if updated < some.len() as u64 {
            // Somebody has moved rows by hand since they were read.
            insert(&some.iter().map(|&(at, _)| at).collect::<Vec<_>>());
        }
    }
    for places in gone.chunks(ROWS_PER_STATEMENT) {
        execute("DELETE FROM trust_ranks WHERE ctid = ANY ($1)", Plan::Fresh, || vec![arg(places.to_vec())]);
    }
    afford(quantiles(&ranks))
}
