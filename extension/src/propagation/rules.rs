//! Transitive trust: how rank flows along weighted edges until it settles, and what distrust takes away.
//!
//! rank = damping × (what flows in + the teleport's part of what has nowhere to flow) + (1 − damping) × teleport.

use std::cmp::Ordering;

/// Bytes held for an edge and for a node at the peak: the edge as read and its row of the matrix; a node's id, its
/// entry in the hash table, its stored rank and the vectors.
pub const EDGE_BYTES: u64 = 28;
pub const NODE_BYTES: u64 = 160;

/// Edges in a block, and rows between two looks for a cancellation.
const BLOCK: usize = 1 << 16;

/// Weights beyond this could add up to infinity.
pub const MAX_WEIGHT: f64 = 1e150;

#[derive(Clone, Copy, Debug)]
pub struct Edge {
    pub from: u32,
    pub to: u32,
    pub weight: f64,
}

/// There is not enough memory for the graph.
#[derive(Debug)]
pub struct OutOfMemory;

/// Edges in blocks, so that growing never copies them; beyond the limit they are only counted.
pub struct Edges {
    blocks: Vec<Vec<Edge>>,
    count: usize,
    limit: u64,
}

impl Edges {
    pub fn within(limit: u64) -> Edges {
        Edges { blocks: Vec::new(), count: 0, limit }
    }

    pub fn push(&mut self, edge: Edge) -> Result<(), OutOfMemory> {
        let room = self.blocks.last().is_some_and(|block| block.len() < block.capacity());
        if !room && self.count as u64 * EDGE_BYTES <= self.limit {
            let mut block = Vec::new();
            // The first block is small: most graphs are.
            let size = if self.blocks.is_empty() { BLOCK / 64 } else { BLOCK };
            block.try_reserve_exact(size).map_err(|_| OutOfMemory)?;
            self.blocks.push(block);
        } else if !room {
            self.blocks = Vec::new();
        }
        if let Some(block) = self.blocks.last_mut() {
            block.push(edge);
        }
        self.count += 1;
        Ok(())
    }

    pub fn count(&self) -> usize {
        self.count
    }
}

/// Where rank comes from: everybody alike, or some chosen nodes alike.
pub struct Teleport {
    share: f64,
    chosen: Option<Vec<u32>>,
}

impl Teleport {
    pub fn everywhere(nodes: usize) -> Teleport {
        Teleport { share: 1.0 / nodes.max(1) as f64, chosen: None }
    }

    /// `nodes` must not be empty; naming one twice changes nothing.
    pub fn to(mut nodes: Vec<u32>) -> Teleport {
        nodes.sort_unstable();
        nodes.dedup();
        Teleport { share: 1.0 / nodes.len().max(1) as f64, chosen: Some(nodes) }
    }

    fn shares(&self, nodes: usize) -> Result<Vec<f64>, OutOfMemory> {
        let Some(chosen) = &self.chosen else { return filled(nodes, self.share) };
        let mut shares = filled(nodes, 0.0)?;
        chosen.iter().for_each(|&node| shares[node as usize] = self.share);
        Ok(shares)
    }
}

pub struct Settings {
    pub damping: f64,
    pub tolerance: f64,
    pub max_iterations: u32,
}

/// How far an iteration has come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    pub iterations: u32,
    /// The sum of absolute changes in the last iteration.
    pub residual: Option<f64>,
    pub converged: bool,
}

/// The graph, by target: row by row, who trusts a node and which part of their rank flows to it.
pub struct Graph {
    /// Where each row ends; the next one begins there.
    ends: Vec<usize>,
    sources: Vec<u32>,
    shares: Vec<f64>,
    /// Nodes that trust nobody.
    dangling: Vec<u32>,
    distrust: Vec<Edge>,
}

impl Graph {
    /// Edges of a node to itself and of weight 0 say nothing; several of one pair add up; negative ones are distrust.
    pub fn build(nodes: usize, edges: Edges, mut pause: impl FnMut()) -> Result<Graph, OutOfMemory> {
        let mut given = filled(nodes, 0.0_f64)?;
        let mut ends = filled(nodes, 0_usize)?;
        let mut distrust: Vec<Edge> = Vec::new();
        for block in &edges.blocks {
            pause();
            for edge in block.iter().filter(|edge| edge.from != edge.to) {
                match edge.weight.partial_cmp(&0.0) {
                    Some(Ordering::Greater) => {
                        given[edge.from as usize] += edge.weight;
                        ends[edge.to as usize] += 1;
                    }
                    Some(Ordering::Less) => {
                        distrust.try_reserve(1).map_err(|_| OutOfMemory)?;
                        distrust.push(*edge);
                    }
                    _ => (),
                }
            }
        }
        let mut total = 0;
        for end in &mut ends {
            total += std::mem::replace(end, total);
        }
        let (mut sources, mut shares) = (filled(total, 0_u32)?, filled(total, 0.0)?);
        for block in edges.blocks {
            pause();
            for edge in block.iter().filter(|edge| edge.from != edge.to && edge.weight > 0.0) {
                let at = &mut ends[edge.to as usize];
                sources[*at] = edge.from;
                shares[*at] = edge.weight / given[edge.from as usize];
                *at += 1;
            }
        }
        let dangling = (0_u32..).zip(&given).filter(|&(_, &given)| given == 0.0).map(|(node, _)| node).collect();
        share_of_voice(&mut distrust, given);
        Ok(Graph { ends, sources, shares, dangling, distrust })
    }

    pub fn nodes(&self) -> usize {
        self.ends.len()
    }

    /// Iterates from `ranks` until they settle. They hold the last whole iteration, even if `pause` unwinds.
    pub fn settle(
        &self,
        teleport: &Teleport,
        settings: &Settings,
        ranks: &mut Vec<f64>,
        progress: &mut Progress,
        mut pause: impl FnMut(),
    ) -> Result<(), OutOfMemory> {
        let mut next = filled(self.nodes(), 0.0)?;
        while !progress.converged && progress.iterations < settings.max_iterations {
            let residual = self.step(teleport, settings.damping, ranks, &mut next, &mut pause);
            progress.converged = residual <= settings.tolerance;
            // Ranks that had settled before stay as they are.
            if progress.iterations > 0 || !progress.converged {
                std::mem::swap(ranks, &mut next);
            }
            progress.iterations += 1;
            progress.residual = Some(residual);
        }
        Ok(())
    }

    /// One iteration from `ranks` into `next`; the sum of absolute changes.
    fn step(&self, teleport: &Teleport, damping: f64, ranks: &[f64], next: &mut [f64], mut pause: impl FnMut()) -> f64 {
        let stuck: f64 = self.dangling.iter().map(|&node| ranks[node as usize]).sum();
        let teleported = teleport.share * (1.0 - damping + damping * stuck);
        let everyone = if teleport.chosen.is_none() { teleported } else { 0.0 };
        let mut chosen = teleport.chosen.iter().flatten().map(|&node| node as usize).peekable();
        let (mut residual, mut begin, mut node) = (0.0, 0, 0);
        for ((next, ends), before) in next.chunks_mut(BLOCK).zip(self.ends.chunks(BLOCK)).zip(ranks.chunks(BLOCK)) {
            pause();
            for ((next, &end), &before) in next.iter_mut().zip(ends).zip(before) {
                let row = self.sources[begin..end].iter().zip(&self.shares[begin..end]);
                let flow: f64 = row.map(|(&source, &share)| share * ranks[source as usize]).sum();
                let extra = if chosen.next_if_eq(&node).is_some() { teleported } else { everyone };
                *next = damping * flow + extra;
                residual += (*next - before).abs();
                (begin, node) = (end, node + 1);
            }
        }
        residual
    }

    /// What each node is distrusted: everybody's rank × damping, split over all that they rate by absolute weight.
    /// Empty if nobody distrusts anybody.
    pub fn distrusted(&self, damping: f64, ranks: &[f64]) -> Result<Vec<f64>, OutOfMemory> {
        if self.distrust.is_empty() {
            return Ok(Vec::new());
        }
        let mut against = filled(self.nodes(), 0.0)?;
        for edge in &self.distrust {
            against[edge.to as usize] += damping * ranks[edge.from as usize] * edge.weight;
        }
        Ok(against)
    }
}

/// Turns the weights of distrust into parts of all that their source gives, trust and distrust together.
fn share_of_voice(distrust: &mut [Edge], given: Vec<f64>) {
    let mut voice = given;
    for edge in distrust.iter() {
        voice[edge.from as usize] -= edge.weight;
    }
    for edge in distrust {
        edge.weight = -edge.weight / voice[edge.from as usize];
    }
}

/// Where an iteration begins: at the ranks that are known, new nodes at their part of the teleport, the whole summing
/// to 1. True if any was known.
pub fn start(teleport: &Teleport, known: &[Option<f64>]) -> Result<(Vec<f64>, bool), OutOfMemory> {
    let mut ranks = teleport.shares(known.len())?;
    let usable = |rank: &f64| (0.0..=1.0).contains(rank);
    if known.iter().flatten().filter(|rank| usable(rank)).sum::<f64>() <= 0.0 {
        return Ok((ranks, false));
    }
    for (rank, known) in ranks.iter_mut().zip(known) {
        *rank = known.filter(usable).unwrap_or(*rank);
    }
    let sum: f64 = ranks.iter().sum();
    ranks.iter_mut().for_each(|rank| *rank /= sum);
    Ok((ranks, true))
}

/// Ranks in ascending order, evenly spaced, at most a thousand: how many are not above a rank tells its percentile.
pub fn quantiles(ranks: &[f64]) -> Result<Vec<f64>, OutOfMemory> {
    let mut sorted = Vec::new();
    sorted.try_reserve_exact(ranks.len()).map_err(|_| OutOfMemory)?;
    sorted.extend_from_slice(ranks);
    sorted.sort_unstable_by(f64::total_cmp);
    let count = sorted.len().min(1_000);
    Ok((0..count).map(|i| sorted[i * sorted.len() / count]).collect())
}

/// Whether a rank has moved by more than its part of the tolerance: what is not stored adds up to less than that.
pub fn differs(rank: f64, stored: f64, tolerance: f64, nodes: usize) -> bool {
    // Written so that a stored NaN counts as different.
    let close = (rank - stored).abs() <= tolerance / nodes.max(1) as f64;
    !close
}

/// A vector of so many values, or an error where the server has no memory for it.
pub fn filled<T: Clone>(count: usize, value: T) -> Result<Vec<T>, OutOfMemory> {
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| OutOfMemory)?;
    values.resize(count, value);
    Ok(values)
}
