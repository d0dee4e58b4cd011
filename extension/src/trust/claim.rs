//! Claiming dirty scenes: locking their marks, so that a scene is worked on by one session at a time.

use crate::heap::Table;
use crate::statement::{Plan, arg, query};
use pgrx::datum::Uuid;
use pgrx::pg_sys::ItemPointerData;
use rustc_hash::{FxHashMap, FxHashSet};

/// From this many scenes on, marks are counted by reading the whole table.
const SCAN_FROM: usize = 5_000;

/// A scene and the marks of it that this session has locked.
pub struct Claim {
    pub scene: Uuid,
    first: ItemPointerData,
    others: Vec<ItemPointerData>,
}

impl Claim {
    pub fn marks(&self) -> impl Iterator<Item = ItemPointerData> + '_ {
        std::iter::once(self.first).chain(self.others.iter().copied())
    }
}

pub struct Batch {
    pub claims: Vec<Claim>,
    /// Marks locked; zero when nothing was left to claim.
    pub locked: u64,
    /// The next batch starts after this mark.
    pub last_generation: i64,
}

/// Locks the oldest marks after `after` that are due and that nobody else holds.
pub fn claim(after: i64, limit: i64, scene: Option<Uuid>) -> Batch {
    let mut claims: Vec<Claim> = Vec::new();
    let mut generations: Vec<i64> = Vec::new();
    let mut position: FxHashMap<[u8; 16], usize> = FxHashMap::default();
    let locked = query(
        include_str!("claim.sql"),
        Plan::for_rows(limit as usize),
        || vec![arg(after), arg(limit), arg(scene)],
        |row| {
            let (Some(mark), Some(generation), Some(scene)) =
                (row.get::<ItemPointerData>(1), row.get::<i64>(2), row.get::<Uuid>(3))
            else {
                return;
            };
            generations.push(generation);
            match position.get(scene.as_bytes()) {
                Some(&at) => claims[at].others.push(mark),
                None => {
                    position.insert(*scene.as_bytes(), claims.len());
                    claims.push(Claim { scene, first: mark, others: Vec::new() });
                }
            }
        },
    );
    if locked == 0 {
        return Batch { claims, locked, last_generation: after };
    }
    let last_generation = generations.last().copied().unwrap_or(after);
    leave_contested(&mut claims, &position, &generations);
    Batch { claims, locked, last_generation }
}

/// Drops scenes of which another session has locked a mark: it works on them, or is about to change them.
///
/// Further marks that are free are locked too, and cleared together with the first.
fn leave_contested(claims: &mut Vec<Claim>, position: &FxHashMap<[u8; 16], usize>, generations: &[i64]) {
    let visible = repeated_marks(claims, position);
    if visible.is_empty() {
        return;
    }
    let repeated: Vec<Uuid> = visible.keys().map(|&at| claims[at].scene).collect();
    query(
        include_str!("claim_others.sql"),
        Plan::Fresh,
        || vec![arg(repeated), arg(generations.to_vec())],
        |row| {
            if let (Some(mark), Some(scene)) = (row.get::<ItemPointerData>(1), row.get::<Uuid>(2))
                && let Some(&at) = position.get(scene.as_bytes())
            {
                claims[at].others.push(mark);
            }
        },
    );
    let contested: FxHashSet<[u8; 16]> = visible
        .iter()
        .filter(|&(&at, &count)| claims[at].others.len() + 1 < count)
        .map(|(&at, _)| *claims[at].scene.as_bytes())
        .collect();
    claims.retain(|claim| !contested.contains(claim.scene.as_bytes()));
}

/// How many marks are visible for each claimed scene that has more than one, by position.
fn repeated_marks(claims: &[Claim], position: &FxHashMap<[u8; 16], usize>) -> FxHashMap<usize, usize> {
    let mut visible: FxHashMap<usize, usize> = FxHashMap::default();
    if claims.len() >= SCAN_FROM
        && let Some(table) = Table::open(c"trust_dirty")
        && table.wholly_readable()
    {
        let scene = table.column("scene_id");
        let mut counts = vec![0_usize; claims.len()];
        table.scan(scene, |row| {
            if let Some(&at) = position.get(&row.uuid(scene)) {
                counts[at] += 1;
            }
        });
        visible.extend(counts.into_iter().enumerate().filter(|&(_, count)| count > 1));
    } else {
        query(
            include_str!("count_marks.sql"),
            Plan::for_rows(claims.len()),
            || vec![arg(claims.iter().map(|claim| claim.scene).collect::<Vec<_>>())],
            |row| {
                if let (Some(scene), Some(count)) = (row.get::<Uuid>(1), row.get::<i32>(2))
                    && let Some(&at) = position.get(scene.as_bytes())
                {
                    visible.insert(at, count as usize);
                }
            },
        );
    }
    visible
}
