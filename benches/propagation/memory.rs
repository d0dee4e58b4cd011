// PageRank in plain memory: reads `from<TAB>to<TAB>weight` (UUIDs) as COPY writes it, iterates over a matrix by rows,
// prints what each part took as JSON. What somebody would write who does it outside of the database.
// Arguments: edges file, scenes file, damping, tolerance, most iterations, file for the ranks.

use std::collections::HashMap;
use std::error::Error;
use std::hash::{BuildHasherDefault, Hasher};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::time::Instant;

/// UUIDs are random already: their first half is hash enough.
#[derive(Default)]
struct Half(u64);

impl Hasher for Half {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u128(&mut self, id: u128) {
        self.0 = (id >> 64) as u64;
    }
}

type Numbers = HashMap<u128, u32, BuildHasherDefault<Half>>;

fn uuid(text: &[u8]) -> u128 {
    text.iter().filter(|digit| **digit != b'-').fold(0, |id, digit| id << 4 | u128::from((digit & 15) + 9 * (digit >> 6)))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, edges_file, scenes_file, damping, tolerance, most, ranks_file] = arguments.as_slice() else { return Err("six arguments".into()) };
    let (damping, tolerance, most): (f64, f64, u32) = (damping.parse()?, tolerance.parse()?, most.parse()?);

    let began = Instant::now();
    let mut numbers = Numbers::default();
    for line in BufReader::with_capacity(1 << 20, std::fs::File::open(scenes_file)?).split(b'\n') {
        let next = numbers.len() as u32;
        numbers.insert(uuid(&line?), next);
    }
    let nodes = numbers.len();
    let mut edges: Vec<(u32, u32, f64)> = Vec::new();
    let (mut reader, mut line) = (BufReader::with_capacity(1 << 20, std::fs::File::open(edges_file)?), Vec::new());
    while reader.read_until(b'\n', &mut line)? > 0 {
        let weight = std::str::from_utf8(&line[74..])?.trim_end().parse()?;
        edges.push((numbers[&uuid(&line[..36])], numbers[&uuid(&line[37..73])], weight));
        line.clear();
    }
    let read_ms = began.elapsed().as_secs_f64() * 1e3;

    let building = Instant::now();
    let (mut given, mut starts) = (vec![0.0; nodes], vec![0_usize; nodes + 1]);
    for &(from, to, weight) in &edges {
        given[from as usize] += weight;
        starts[to as usize + 1] += 1;
    }
    for node in 0..nodes {
        starts[node + 1] += starts[node];
    }
    let (mut at, mut sources, mut shares) = (starts.clone(), vec![0_u32; edges.len()], vec![0.0; edges.len()]);
    for &(from, to, weight) in &edges {
        let place = &mut at[to as usize];
        sources[*place] = from;
        shares[*place] = weight / given[from as usize];
        *place += 1;
    }
    drop(edges);
    let build_ms = building.elapsed().as_secs_f64() * 1e3;

    let iterating = Instant::now();
    let (mut ranks, mut next) = (vec![1.0 / nodes as f64; nodes], vec![0.0; nodes]);
    let (mut iterations, mut residual) = (0, f64::INFINITY);
    while iterations < most && residual > tolerance {
        let stuck: f64 = ranks.iter().zip(&given).filter(|(_, given)| **given == 0.0).map(|(rank, _)| rank).sum();
        let teleported = (1.0 - damping + damping * stuck) / nodes as f64;
        residual = 0.0;
        for node in 0..nodes {
            let row = starts[node]..starts[node + 1];
            let flow: f64 = sources[row.clone()].iter().zip(&shares[row]).map(|(from, share)| share * ranks[*from as usize]).sum();
            next[node] = damping * flow + teleported;
            residual += (next[node] - ranks[node]).abs();
        }
        std::mem::swap(&mut ranks, &mut next);
        iterations += 1;
    }
    let loop_ms = iterating.elapsed().as_secs_f64() * 1e3;

    let mut out = BufWriter::new(std::fs::File::create(ranks_file)?);
    for (id, number) in &numbers {
        writeln!(out, "{id:032x}\t{}", ranks[*number as usize])?;
    }
    println!(r#"{{"read_ms": {read_ms}, "build_ms": {build_ms}, "loop_ms": {loop_ms}, "iterations": {iterations}, "residual": {residual:e}}}"#);
    Ok(())
}
