//! Reading the graph: the scenes that stand and the alliances between them, as of one moment.

use crate::error::refuse;
use crate::heap::{Snapshot, Table};
use crate::propagation::rules::{EDGE_BYTES, Edge, Edges, NODE_BYTES, OutOfMemory};
use crate::settings;
use crate::statement::{Plan, query, stream};
use pgrx::datum::Uuid;
use pgrx::pg_sys::ItemPointerData;
use pgrx::prelude::*;
use rustc_hash::FxHashMap;
use std::hash::Hash;

/// Nodes by the order in which they were met.
pub struct Nodes<K> {
    pub keys: Vec<K>,
    number: FxHashMap<K, u32>,
}

impl<K: Copy + Eq + Hash> Nodes<K> {
    pub fn new() -> Nodes<K> {
        Nodes { keys: Vec::new(), number: FxHashMap::default() }
    }

    pub fn number(&self, key: &K) -> Option<u32> {
        self.number.get(key).copied()
    }

    /// The number of a node, which gets the next one if it is new.
    pub fn meet(&mut self, key: K) -> u32 {
        let next = self.keys.len() as u32;
        let number = *self.number.entry(key).or_insert(next);
        if number == next {
            self.keys.push(key);
        }
        number
    }
}

/// How much memory a propagation may take.
pub struct Budget {
    limit: u64,
}

impl Budget {
    pub fn set() -> Budget {
        Budget { limit: settings::TRUST_PROPAGATE_MEMORY.get().max(0) as u64 * 1_024 }
    }

    pub fn edges(&self, nodes: usize) -> Edges {
        Edges::within(self.limit.saturating_sub(nodes as u64 * NODE_BYTES))
    }

    /// Nodes that are more than could ever fit are not held, only counted.
    fn most_nodes(&self) -> usize {
        (self.limit / NODE_BYTES).min(u64::from(u32::MAX - 1)) as usize
    }

    pub fn check(&self, nodes: usize, edges: usize) {
        let needed = (nodes as u64 * NODE_BYTES + edges as u64 * EDGE_BYTES).div_ceil(1_024);
        if needed > self.limit / 1_024 || nodes > self.most_nodes() {
            refuse(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!(
                    "{nodes} nodes and {edges} edges need about {needed} kB, more than the {} kB of pgsteward.trust_propagate_memory",
                    self.limit / 1_024
                ),
                &format!("SET pgsteward.trust_propagate_memory = '{needed}kB', if the server has it to spare."),
            );
        }
    }
}

/// Ends the call if the server has no memory.
pub fn afford<T>(made: Result<T, OutOfMemory>) -> T {
    made.unwrap_or_else(|OutOfMemory| {
        refuse(
            PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
            "the server has no memory for the graph".to_string(),
            "Free some, or let fewer sessions work at once; see pgsteward.trust_propagate_memory.",
        )
    })
}

/// What the tables say.
pub struct Reading {
    pub scenes: Nodes<[u8; 16]>,
    pub edges: Edges,
}

impl Reading {
    pub fn of_tables() -> Reading {
        let budget = Budget::set();
        let (reading, beyond) = match (Table::open(c"scenes"), Table::open(c"alliances")) {
            (Some(scenes), Some(alliances)) if scenes.wholly_readable() && alliances.wholly_readable() => {
                scan(&scenes, &alliances, &budget)
            }
            _ => select(&budget),
        };
        budget.check(reading.scenes.keys.len() + beyond, reading.edges.count());
        reading
    }
}

/// Stands for an alliance of scenes that are too many: only to tell how much memory all of them would need.
const BEYOND: Edge = Edge { from: 0, to: 0, weight: 0.0 };

/// Reads both tables from end to end; also tells how many scenes were too many.
fn scan(scenes: &Table, alliances: &Table, budget: &Budget) -> (Reading, usize) {
    let snapshot = Snapshot::take();
    let mut nodes = Nodes::new();
    let mut beyond = 0;
    let (id, deleted, moderation) = (
        scenes.column("id", pg_sys::UUIDOID),
        scenes.column("deleted_at", pg_sys::TIMESTAMPTZOID),
        scenes.column("moderation_status", pg_sys::TEXTOID),
    );
    scenes.scan_at(&snapshot, id.max(deleted).max(moderation), |row| {
        if row.is_null(deleted) && !matches!(row.text(moderation), b"hidden" | b"suspended") {
            if nodes.keys.len() < budget.most_nodes() {
                nodes.meet(row.uuid(id));
            } else {
                beyond += 1;
            }
        }
    });
    let mut edges = budget.edges(nodes.keys.len());
    let mut room = Ok(());
    let (from, to, weight, status, deleted) = (
        alliances.column("from_scene_id", pg_sys::UUIDOID),
        alliances.column("to_scene_id", pg_sys::UUIDOID),
        alliances.column("weight", pg_sys::FLOAT8OID),
        alliances.column("status", pg_sys::TEXTOID),
        alliances.column("deleted_at", pg_sys::TIMESTAMPTZOID),
    );
    alliances.scan_at(&snapshot, from.max(to).max(weight).max(status).max(deleted), |row| {
        if room.is_err() || !row.is_null(deleted) || row.text(status) != b"active" {
            return;
        }
        if let (Some(from), Some(to)) = (nodes.number(&row.uuid(from)), nodes.number(&row.uuid(to))) {
            room = edges.push(Edge { from, to, weight: row.f64(weight) });
        } else if beyond > 0 {
            room = edges.push(BEYOND);
        }
    });
    afford(room);
    (Reading { scenes: nodes, edges }, beyond)
}

/// Reads through the executor, where row security may hide rows.
fn select(budget: &Budget) -> (Reading, usize) {
    let mut nodes = Nodes::new();
    let mut beyond = 0;
    let mut edges: Option<Edges> = None;
    let mut room = Ok(());
    stream(include_str!("read_graph.sql"), |row| match (row.get::<Uuid>(1), row.get::<Uuid>(2), row.get(3)) {
        (Some(from), Some(to), Some(weight)) if room.is_ok() => {
            let edges = edges.get_or_insert_with(|| budget.edges(nodes.keys.len()));
            if let (Some(from), Some(to)) = (nodes.number(from.as_bytes()), nodes.number(to.as_bytes())) {
                room = edges.push(Edge { from, to, weight });
            } else if beyond > 0 {
                room = edges.push(BEYOND);
            }
        }
        (Some(scene), None, _) if nodes.keys.len() < budget.most_nodes() => {
            nodes.meet(*scene.as_bytes());
        }
        (Some(_), None, _) => beyond += 1,
        _ => (),
    });
    afford(room);
    let edges = edges.unwrap_or_else(|| budget.edges(nodes.keys.len()));
    (Reading { scenes: nodes, edges }, beyond)
}

/// A stored rank and where its row is.
#[derive(Clone, Copy)]
pub struct Stored {
    pub rank: f64,
    pub place: ItemPointerData,
}

/// What is stored of each scene, in order, and the rows of scenes that do not stand.
pub fn stored_ranks(scenes: &Nodes<[u8; 16]>) -> (Vec<Option<Stored>>, Vec<ItemPointerData>) {
    let mut stored: Vec<Option<Stored>> = afford(super::rules::filled(scenes.keys.len(), None));
    let mut gone = Vec::new();
    let mut note = |scene: &[u8; 16], rank: f64, place: ItemPointerData| match scenes.number(scene) {
        Some(number) => stored[number as usize] = Some(Stored { rank, place }),
        None => gone.push(place),
    };
    match Table::open(c"trust_ranks") {
        Some(table) if table.wholly_readable() => {
            let (scene, rank) = (table.column("scene_id", pg_sys::UUIDOID), table.column("rank", pg_sys::FLOAT8OID));
            table.scan(scene.max(rank), |row| note(&row.uuid(scene), row.f64(rank), row.place()));
        }
        _ => {
            query("SELECT scene_id, rank, ctid FROM trust_ranks", Plan::Kept, Vec::new, |row| {
                if let (Some(scene), Some(rank), Some(place)) = (row.get::<Uuid>(1), row.get(2), row.get(3)) {
                    note(scene.as_bytes(), rank, place);
                }
            });
        }
    }
    (stored, gone)
}
