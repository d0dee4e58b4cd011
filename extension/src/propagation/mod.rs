//! Transitive trust: ranks that flow along alliances. See `docs/propagation.md`.

mod graph;
mod rules;
mod run;

use crate::error::{refuse, required};
use graph::{Budget, Nodes, afford};
use pgrx::datum::{Array, Interval, Uuid};
use pgrx::pg_sys;
use pgrx::prelude::*;
use rules::{Edge, Graph, MAX_WEIGHT, Progress, Settings, Teleport, start};
use std::time::Duration;

/// Propagates trust over the alliances of scenes that stand, from the pretrusted scenes or from all alike, and stores
/// the rank of each scene. What the timeout or `max_iterations` cuts short is kept, and the next call goes on from it.
#[pg_extern(volatile, parallel_unsafe, security_definer)]
#[search_path(pg_catalog, @extschema@, pg_temp)]
#[allow(clippy::type_complexity)]
fn trust_propagate(
    damping: default!(Option<f64>, "0.85"),
    pretrusted: default!(Option<Vec<Option<Uuid>>>, "NULL"),
    max_iterations: default!(Option<i32>, 100),
    tolerance: default!(Option<f64>, "1e-9"),
    timeout: default!(Option<Interval>, "NULL"),
) -> TableIterator<
    'static,
    (
        name!(scenes, i64),
        name!(edges, i64),
        name!(iterations, i32),
        name!(residual, Option<f64>),
        name!(converged, bool),
        name!(changed, i64),
        name!(warm_started, bool),
        name!(timed_out, bool),
        name!(duration_ms, f64),
    ),
> {
    let settings = settings(damping, max_iterations, tolerance);
    let pretrusted: Option<Vec<Uuid>> =
        pretrusted.map(|ids| ids.into_iter().map(|id| required(id, "a pretrusted scene")).collect());
    if let Some(ids) = &pretrusted {
        some_pretrusted(ids.len());
    }
    let request = run::Request { settings, pretrusted, timeout: timeout.map(duration) };
    let run = run::run(&request);
    TableIterator::once((
        run.scenes,
        run.edges,
        run.progress.iterations as i32,
        run.progress.residual,
        run.progress.converged,
        run.changed,
        run.warm_started,
        run.timed_out,
        run.duration_ms,
    ))
}

/// Propagates trust over edges that are given as three arrays in step, and returns the rank of each node. Negative
/// weights are distrust.
#[pg_extern(immutable, parallel_safe)]
#[search_path(pg_catalog, pg_temp)]
#[allow(clippy::type_complexity)]
fn trust_propagate_edges(
    sources: Option<Array<'_, &str>>,
    targets: Option<Array<'_, &str>>,
    weights: Option<Array<'_, f64>>,
    damping: default!(Option<f64>, "0.85"),
    pretrusted: default!(Option<Vec<Option<String>>>, "NULL"),
    max_iterations: default!(Option<i32>, 100),
    tolerance: default!(Option<f64>, "1e-9"),
) -> TableIterator<'static, (name!(node, String), name!(rank, f64), name!(distrust, f64), name!(net_rank, f64))> {
    let settings = settings(damping, max_iterations, tolerance);
    let (sources, targets, weights) =
        (required(sources, "sources"), required(targets, "targets"), required(weights, "weights"));
    if sources.len() != targets.len() || sources.len() != weights.len() {
        refuse(
            PgSqlErrorCode::ERRCODE_ARRAY_ELEMENT_ERROR,
            format!("{} sources, {} targets and {} weights", sources.len(), targets.len(), weights.len()),
            "Give one source, one target and one weight for each edge.",
        );
    }
    let budget = Budget::set();
    let mut nodes: Nodes<&str> = Nodes::new();
    let mut edges = budget.edges(0);
    for ((source, target), weight) in sources.iter().zip(targets.iter()).zip(weights.iter()) {
        let (from, to) = (nodes.meet(required(source, "a source")), nodes.meet(required(target, "a target")));
        afford(edges.push(Edge { from, to, weight: valid_weight(weight) }));
    }
    let count = nodes.keys.len();
    budget.check(count, edges.count());
    let teleport = match pretrusted {
        None => Teleport::everywhere(count),
        Some(names) => {
            some_pretrusted(names.len());
            Teleport::to(names.into_iter().map(|name| named(&nodes, name)).collect())
        }
    };
    let pause = || {
        pg_sys::check_for_interrupts!();
    };
    let graph = afford(Graph::build(count, edges, pause));
    let (mut ranks, _) = afford(start(&teleport, &vec![None; count]));
    let mut progress = Progress::default();
    afford(graph.settle(&teleport, &settings, &mut ranks, &mut progress, pause));
    if !progress.converged {
        warning!(
            "ranks have not settled after {} iterations: the last one changed them by {:e} in sum, the tolerance is {:e}",
            progress.iterations,
            progress.residual.unwrap_or_default(),
            settings.tolerance
        );
    }
    let mut distrust = afford(graph.distrusted(settings.damping, &ranks));
    distrust.resize(count, 0.0);
    let rows: Vec<(String, f64, f64, f64)> = nodes
        .keys
        .iter()
        .zip(ranks)
        .zip(distrust)
        .map(|((node, rank), distrust)| (node.to_string(), rank, distrust, (rank - distrust).max(0.0)))
        .collect();
    TableIterator::new(rows)
}

/// The number of a pretrusted node.
fn named(nodes: &Nodes<&str>, name: Option<String>) -> u32 {
    let name = required(name, "a pretrusted node");
    nodes.number(&name.as_str()).unwrap_or_else(|| {
        let shown: String = name.chars().take(100).collect();
        refuse(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("pretrusted node \"{shown}\" is in no edge"),
            "Pretrust nodes of the edges; an edge of weight 0 adds a node and says nothing else.",
        )
    })
}

fn valid_weight(weight: Option<f64>) -> f64 {
    let weight = required(weight, "a weight");
    if !(-MAX_WEIGHT..=MAX_WEIGHT).contains(&weight) {
        refuse(
            PgSqlErrorCode::ERRCODE_NUMERIC_VALUE_OUT_OF_RANGE,
            format!("weight {weight:e} is out of range"),
            "Weights are from -1e150 to 1e150; only their proportions count.",
        );
    }
    weight
}

fn settings(damping: Option<f64>, max_iterations: Option<i32>, tolerance: Option<f64>) -> Settings {
    let damping = required(damping, "damping");
    out_of_range(
        (0.0..1.0).contains(&damping),
        || format!("damping {damping} is out of range"),
        "Give 0 or more and less than 1, such as 0.85.",
    );
    let max_iterations = required(max_iterations, "max_iterations");
    out_of_range(
        (1..=100_000).contains(&max_iterations),
        || format!("max_iterations {max_iterations} is out of range"),
        "Give 1 to 100000.",
    );
    let tolerance = required(tolerance, "tolerance");
    out_of_range(
        (1e-15..=1.0).contains(&tolerance),
        || format!("tolerance {tolerance} is out of range"),
        "Give 1e-15 to 1, such as 1e-9.",
    );
    Settings { damping, tolerance, max_iterations: max_iterations as u32 }
}

fn out_of_range(valid: bool, message: impl FnOnce() -> String, hint: &str) {
    if !valid {
        refuse(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message(), hint);
    }
}

fn some_pretrusted(count: usize) {
    out_of_range(
        count > 0,
        || "pretrusted is empty".to_string(),
        "Name at least one, or leave it out to trust all alike.",
    );
}

fn duration(timeout: Interval) -> Duration {
    let micros = timeout.as_micros();
    out_of_range(
        (1_000..=86_400_000_000).contains(&micros),
        || format!("timeout {} ms is out of range", micros / 1_000),
        "Give 1 ms to 1 day, such as '30 s', or leave it out for no limit.",
    );
    Duration::from_micros(micros as u64)
}

extension_sql!(
    r#"
-- Rows are stored by place or key: passing over the table to find them, or compiling the statement, is never worth it.
ALTER FUNCTION trust_propagate(double precision, uuid[], int, double precision, interval) SET random_page_cost = 0 SET jit = off;

COMMENT ON FUNCTION trust_propagate(double precision, uuid[], int, double precision, interval) IS 'Transitive trust: ranks all scenes that stand by personalised PageRank (EigenTrust) over their active alliances, with damping (0 to less than 1) and teleport to the pretrusted scenes (NULL: all alike), until the ranks change by no more than tolerance in sum, max_iterations are done or the timeout passes (NULL: no limit). Stores them in trust_ranks; what was reached is kept, and the next call goes on from it. One caller at a time, another gets 55P03. Returns what is kept in trust_propagation_runs.';
COMMENT ON FUNCTION trust_propagate_edges(text[], text[], double precision[], double precision, text[], int, double precision) IS 'Transitive trust over any edges, given as sources, targets and weights in step; the tables are not read. rank sums to 1 over all nodes. Negative weights are distrust: they pass no rank on; distrust is the rank-weighted vote against a node, and net_rank what is left, at least 0.';
"#,
    name = "propagation_comments",
    requires = ["search_comments", trust_propagate, trust_propagate_edges]
);
