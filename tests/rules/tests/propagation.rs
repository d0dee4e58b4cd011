//! Transitive trust: small graphs by hand, and what must hold for all graphs, beside a dense reference.

use proptest::prelude::*;
use rules_tests::propagation::{
    Edge, Edges, Graph, MAX_WEIGHT, Progress, Settings, Teleport, differs, quantiles, start,
};

type Votes = Vec<(u32, u32, f64)>;

fn graph(nodes: usize, votes: &[(u32, u32, f64)]) -> Graph {
    let mut edges = Edges::within(u64::MAX);
    for &(from, to, weight) in votes {
        edges.push(Edge { from, to, weight }).unwrap();
    }
    assert_eq!(edges.count(), votes.len());
    Graph::build(nodes, edges, || ()).unwrap()
}

fn teleport(nodes: usize, pretrusted: &[u32]) -> Teleport {
    if pretrusted.is_empty() { Teleport::everywhere(nodes) } else { Teleport::to(pretrusted.to_vec()) }
}

fn settings(max_iterations: u32) -> Settings {
    Settings { damping: 0.85, tolerance: 1e-12, max_iterations }
}

fn settle(graph: &Graph, pretrusted: &[u32], known: &[Option<f64>], max_iterations: u32) -> (Vec<f64>, Progress) {
    let teleport = teleport(graph.nodes(), pretrusted);
    let (mut ranks, _) = start(&teleport, known).unwrap();
    let mut progress = Progress::default();
    graph.settle(&teleport, &settings(max_iterations), &mut ranks, &mut progress, || ()).unwrap();
    (ranks, progress)
}

fn ranks(nodes: usize, votes: &[(u32, u32, f64)], pretrusted: &[u32]) -> Vec<f64> {
    let (ranks, progress) = settle(&graph(nodes, votes), pretrusted, &vec![None; nodes], 10_000);
    assert!(progress.converged);
    ranks
}

/// The same by a full matrix, solved exactly: rank = (I - damping × votes)^-1 × (1 - damping) × teleport.
fn dense(nodes: usize, votes: &[(u32, u32, f64)], pretrusted: &[u32]) -> Vec<f64> {
    let damping = 0.85;
    let mut share = vec![vec![0.0; nodes]; nodes];
    for &(from, to, weight) in votes {
        if from != to && weight > 0.0 {
            share[from as usize][to as usize] += weight;
        }
    }
    let mut jump = vec![0.0; nodes];
    if pretrusted.is_empty() {
        jump.fill(1.0 / nodes as f64);
    } else {
        let mut chosen = pretrusted.to_vec();
        chosen.sort_unstable();
        chosen.dedup();
        chosen.iter().for_each(|&node| jump[node as usize] = 1.0 / chosen.len() as f64);
    }
    for row in &mut share {
        let given: f64 = row.iter().sum();
        *row = if given > 0.0 { row.iter().map(|weight| weight / given).collect() } else { jump.clone() };
    }
    let mut system: Vec<Vec<f64>> = (0..nodes)
        .map(|to| {
            let mut row: Vec<f64> =
                (0..nodes).map(|from| f64::from(u8::from(from == to)) - damping * share[from][to]).collect();
            row.push((1.0 - damping) * jump[to]);
            row
        })
        .collect();
    // The matrix is diagonally dominant by columns, so that no pivot vanishes.
    for pivot in 0..nodes {
        for row in 0..nodes {
            if row != pivot {
                let factor = system[row][pivot] / system[pivot][pivot];
                let source = system[pivot].clone();
                system[row].iter_mut().zip(source).for_each(|(value, from)| *value -= factor * from);
            }
        }
    }
    (0..nodes).map(|node| system[node][nodes] / system[node][node]).collect()
}

fn close(found: &[f64], expected: &[f64]) -> bool {
    found.len() == expected.len() && found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-9)
}

#[track_caller]
fn assert_close(found: &[f64], expected: &[f64]) {
    assert!(close(found, expected), "{found:?}, expected {expected:?}");
}

#[test]
fn two_that_trust_each_other_are_alike() {
    assert_close(&ranks(2, &[(0, 1, 0.3), (1, 0, 0.9)], &[]), &[0.5, 0.5]);
}

#[test]
fn a_chain_by_hand() {
    // 0 -> 1, and 1 trusts nobody, so its rank returns to 0, whom alone we trust: a = 0.15 + 0.85 b, b = 0.85 a.
    let first = 1.0 / 1.85;
    assert_close(&ranks(2, &[(0, 1, 1.0)], &[0]), &[first, 0.85 * first]);
}

#[test]
fn weights_share_out_what_flows() {
    let found = ranks(3, &[(0, 1, 3.0), (0, 2, 1.0), (1, 0, 1.0), (2, 0, 1.0)], &[0]);
    assert!((found[1] / found[2] - 3.0).abs() < 1e-9, "{found:?}");
}

#[test]
fn an_isolated_node_has_its_part_of_the_teleport() {
    let found = ranks(3, &[(0, 1, 1.0), (1, 0, 1.0)], &[]);
    let alone = 0.05 / (1.0 - 0.85 / 3.0);
    assert_close(&found, &[(1.0 - alone) / 2.0, (1.0 - alone) / 2.0, alone]);
    assert_close(&ranks(3, &[(0, 1, 1.0), (1, 0, 1.0)], &[0])[2..], &[0.0]);
}

#[test]
fn what_says_nothing_changes_nothing() {
    let votes = [(0, 1, 0.5), (1, 2, 1.0)];
    let plain = ranks(3, &votes, &[]);
    assert_close(&ranks(3, &[votes[0], votes[1], (0, 0, 9.0), (2, 2, 1.0)], &[]), &plain);
    assert_close(&ranks(3, &[votes[0], votes[1], (2, 0, 0.0), (0, 2, 0.0)], &[]), &plain);
    assert_close(&ranks(3, &[(0, 1, 0.25), (0, 1, 0.25), votes[1]], &[]), &plain);
    assert_close(&ranks(3, &[votes[0], votes[1], (2, 0, -1.0)], &[]), &plain);
}

#[test]
fn no_nodes_and_one_node() {
    assert_eq!(
        settle(&graph(0, &[]), &[], &[], 10).1,
        Progress { iterations: 1, residual: Some(0.0), converged: true }
    );
    assert_close(&ranks(1, &[(0, 0, 1.0)], &[]), &[1.0]);
}

#[test]
fn extreme_weights_are_proportions_too() {
    let least = f64::from_bits(1);
    assert_close(&ranks(3, &[(0, 1, least), (0, 2, least)], &[0]), &ranks(3, &[(0, 1, 1.0), (0, 2, 1.0)], &[0]));
    let huge = ranks(3, &[(0, 1, MAX_WEIGHT), (0, 2, MAX_WEIGHT), (1, 0, least)], &[0]);
    assert_close(&huge, &ranks(3, &[(0, 1, 1.0), (0, 2, 1.0), (1, 0, 1.0)], &[0]));
}

#[test]
fn distrust_is_a_vote_weighted_by_rank() {
    // 0 gives 1 to node 1, and -3 to node 2: three quarters of its voice are against node 2. Node 3 has no rank to vote with.
    let votes = [(0, 1, 1.0), (0, 2, -3.0), (1, 2, 1.0), (3, 0, -1.0), (2, 2, -5.0)];
    let graph = graph(4, &votes);
    let (found, _) = settle(&graph, &[0], &[None; 4], 1_000);
    let against = graph.distrusted(0.85, &found).unwrap();
    assert_close(&against, &[0.0, 0.0, 0.85 * 0.75 * found[0], 0.0]);
    assert_eq!(found[3], 0.0);
}

#[test]
fn without_room_edges_are_only_counted() {
    let mut edges = Edges::within(28_000);
    for node in 0..100_000 {
        edges.push(Edge { from: node, to: node + 1, weight: 1.0 }).unwrap();
    }
    assert_eq!(edges.count(), 100_000);
    let graph = Graph::build(100_001, edges, || ()).unwrap();
    assert_close(&graph.distrusted(0.85, &[]).unwrap(), &[]);
    assert_close(&settle(&graph, &[0], &vec![None; 100_001], 1).0[..2], &[1.0, 0.0]);
}

#[test]
fn graphs_larger_than_a_block_flow_whole() {
    let nodes = 150_000_u32;
    let votes: Votes = (0..nodes).map(|node| (node, (node + 1) % nodes, 1.0)).collect();
    let (found, progress) =
        settle(&graph(nodes as usize, &votes), &[nodes - 1, 70_000], &vec![None; nodes as usize], 3);
    assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-9 && !progress.converged);
    assert_close(&[found[0], found[70_001]], &[0.85 * found[nodes as usize - 1], 0.85 * found[70_000]]);
}

#[test]
fn a_ring_of_fakes_gains_no_more_than_flows_into_it() {
    let (honest, fakes) = (100_u32, 1_000_u32);
    let mut votes: Votes =
        (0..honest).flat_map(|node| (1..=3).map(move |step| (node, (node + step * 7) % honest, 1.0))).collect();
    votes.extend(
        (0..fakes).flat_map(|fake| (1..=5).map(move |step| (honest + fake, honest + (fake + step) % fakes, 1.0))),
    );
    let deceived = [3_u32, 50, 77];
    votes.extend(deceived.iter().zip(0..).map(|(&node, fake)| (node, honest + fake * 100, 1.0)));
    let pretrusted: Vec<u32> = (0..10).collect();
    let found = ranks((honest + fakes) as usize, &votes, &pretrusted);
    let flow: f64 = deceived.iter().map(|&node| found[node as usize] / 4.0).sum();
    let gained: f64 = found[honest as usize..].iter().sum();
    assert!(gained > 0.0 && gained <= flow * 0.85 / 0.15 + 1e-9, "{gained}, {flow} flows in");
    let ungated = ranks((honest + fakes) as usize, &votes, &[]);
    assert!(ungated[honest as usize..].iter().sum::<f64>() > 0.9, "trusting all alike is no protection");
}

#[test]
fn unusable_known_ranks_are_as_if_unknown() {
    let teleport = Teleport::everywhere(4);
    let (ranks, warm) = start(&teleport, &[Some(f64::NAN), Some(-1.0), Some(f64::INFINITY), None]).unwrap();
    assert!(!warm);
    assert_close(&ranks, &[0.25; 4]);
    let (ranks, warm) = start(&teleport, &[Some(0.75), None, Some(f64::NAN), Some(0.0)]).unwrap();
    assert!(warm);
    assert_close(&ranks, &[0.6, 0.2, 0.2, 0.0]);
}

#[test]
fn quantiles_are_spaced_evenly() {
    assert_close(&quantiles(&[0.3, 0.1, 0.2]).unwrap(), &[0.1, 0.2, 0.3]);
    let many: Vec<f64> = (0..5_000).rev().map(|i| f64::from(i) / 5_000.0).collect();
    let found = quantiles(&many).unwrap();
    assert_eq!((found.len(), found[0], found[500]), (1_000, 0.0, 0.5));
    assert!(quantiles(&[]).unwrap().is_empty());
}

#[test]
fn a_stored_nan_differs() {
    assert!(differs(0.1, f64::NAN, 1e-9, 10));
    assert!(!differs(0.1, 0.1 + 0.9e-10, 1e-9, 10));
    assert!(differs(0.1, 0.1 + 1.1e-10, 1e-9, 10));
}

/// Up to twelve nodes with votes of every kind, and whom we trust; none is everybody.
fn any_graph() -> impl Strategy<Value = (usize, Votes, Vec<u32>)> {
    (1_u32..12).prop_flat_map(|nodes| {
        let weight = prop_oneof![4 => 0.001..1.0_f64, 1 => Just(0.0), 1 => -1.0..0.0_f64];
        let votes = prop::collection::vec((0..nodes, 0..nodes, weight), 0..40);
        (Just(nodes as usize), votes, prop::collection::vec(0..nodes, 0..4))
    })
}

proptest! {
    #[test]
    fn ranks_are_parts_of_a_whole((nodes, votes, pretrusted) in any_graph()) {
        let found = ranks(nodes, &votes, &pretrusted);
        prop_assert!(found.iter().all(|rank| (0.0..=1.0 + 1e-12).contains(rank)));
        prop_assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-9);
    }

    #[test]
    fn equals_the_dense_solution((nodes, votes, pretrusted) in any_graph()) {
        let (found, expected) = (ranks(nodes, &votes, &pretrusted), dense(nodes, &votes, &pretrusted));
        prop_assert!(close(&found, &expected), "{:?}, expected {:?}", found, expected);
    }

    #[test]
    fn names_and_order_do_not_matter((nodes, votes, pretrusted) in any_graph(), seed in any::<u32>()) {
        let renamed = |node: u32| (nodes as u32 - 1 - node + seed % nodes as u32) % nodes as u32;
        let mut others: Votes = votes.iter().map(|&(from, to, weight)| (renamed(from), renamed(to), weight)).collect();
        others.reverse();
        let chosen: Vec<u32> = pretrusted.iter().map(|&node| renamed(node)).collect();
        let (found, other) = (ranks(nodes, &votes, &pretrusted), ranks(nodes, &others, &chosen));
        let back: Vec<f64> = (0..nodes as u32).map(|node| other[renamed(node) as usize]).collect();
        prop_assert!(close(&found, &back), "{:?}, renamed {:?}", found, back);
    }

    #[test]
    fn a_warm_start_ends_where_a_cold_one_does(
        (nodes, votes, pretrusted) in any_graph(),
        known in prop::collection::vec(prop::option::of(0.0..1.0_f64), 12),
    ) {
        let cold = ranks(nodes, &votes, &pretrusted);
        let (warm, progress) = settle(&graph(nodes, &votes), &pretrusted, &known[..nodes], 10_000);
        prop_assert!(progress.converged && close(&cold, &warm), "{:?}, warm {:?}", cold, warm);
    }

    #[test]
    fn going_on_ends_where_one_go_does((nodes, votes, pretrusted) in any_graph(), first in 1_u32..20) {
        let whole = ranks(nodes, &votes, &pretrusted);
        let graph = graph(nodes, &votes);
        let (part, _) = settle(&graph, &pretrusted, &vec![None; nodes], first);
        let (rest, progress) = settle(&graph, &pretrusted, &part.into_iter().map(Some).collect::<Vec<_>>(), 10_000);
        prop_assert!(progress.converged && close(&whole, &rest), "{:?}, in two goes {:?}", whole, rest);
    }

    #[test]
    fn distrust_takes_no_more_than_the_voters_have((nodes, votes, pretrusted) in any_graph()) {
        let graph = graph(nodes, &votes);
        let (found, _) = settle(&graph, &pretrusted, &vec![None; nodes], 1_000);
        let against = graph.distrusted(0.85, &found).unwrap();
        prop_assert!(against.iter().all(|part| *part >= 0.0) && against.iter().sum::<f64>() <= 0.85 + 1e-9);
        for (&part, node) in against.iter().zip(0..) {
            let voters: f64 = (0..nodes as u32)
                .filter(|from| *from != node && votes.iter().any(|vote| vote.0 == *from && vote.1 == node && vote.2 < 0.0))
                .map(|from| found[from as usize]).sum();
            prop_assert!(part <= 0.85 * voters + 1e-12);
        }
    }
}

/// An iteration that is interrupted leaves the last whole one.
#[test]
fn interrupted_ranks_are_whole() {
    let votes: Votes = (0..200_000).map(|node| (node, (node * 7 + 1) % 200_000, 1.0)).collect();
    let graph = graph(200_000, &votes);
    let teleport = Teleport::to(vec![5]);
    let (mut ranks, _) = start(&teleport, &vec![None; 200_000]).unwrap();
    let mut progress = Progress::default();
    let mut left = 10;
    let cut = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        graph.settle(&teleport, &settings(1_000), &mut ranks, &mut progress, || {
            left -= 1;
            assert!(left > 0, "interrupted");
        })
    }));
    assert!(cut.is_err() && progress.iterations == 2 && !progress.converged);
    assert_eq!(ranks, settle(&graph, &[5], &vec![None; 200_000], 2).0);
}
