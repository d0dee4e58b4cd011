//! Claiming dirty scenes: taking their marks away, so that a scene is worked on by one session at a time.
//!
//! A mark that has been taken is gone for this session and locked for every other until the transaction ends. Marks of
//! scenes that could not be done are put back.

use crate::heap::{Table, Taken, Writable, show_changes};
use crate::settings;
use crate::statement::{Arg, Fields, Plan, arg, execute, query};
use crate::trust::rules::Change;
use pgrx::IntoDatum;
use pgrx::datum::{TimestampWithTimeZone, Uuid};
use pgrx::pg_sys::{self, ItemPointerData};
use rustc_hash::{FxHashMap, FxHashSet};

/// From this many scenes on, their other marks are found by reading the whole table.
const SCAN_FROM: usize = 5_000;

/// Which dirty scenes may be claimed.
#[derive(Default)]
pub struct Shard {
    /// Only this one.
    pub scene: Option<Uuid>,
    pub first: Option<Uuid>,
    pub last: Option<Uuid>,
    /// Only scenes whose coarse geohash begins so, and those that are gone.
    pub region: Option<String>,
}

/// A mark as it was found.
struct Mark {
    place: ItemPointerData,
    scene: Uuid,
    generation: i64,
    marked_at: TimestampWithTimeZone,
    change: Change,
    attempts: i32,
    last_error: Option<String>,
}

impl Mark {
    fn of(row: &Fields) -> Option<Mark> {
        let attempts = row.get(9)?;
        Some(Mark {
            place: row.get(1)?,
            scene: row.get(2)?,
            generation: row.get(3)?,
            marked_at: row.get(4)?,
            change: Change {
                recount: row.get(5)?,
                alliances: row.get(6)?,
                memberships: row.get(7)?,
                membership_points: row.get(8)?,
                standing: row.get(11)?,
            },
            attempts,
            last_error: if attempts > 0 { row.get(10) } else { None },
        })
    }
}

/// A scene whose marks this session has taken, and what they say together.
pub struct Claim {
    pub scene: Uuid,
    pub change: Change,
    generation: i64,
    marked_at: TimestampWithTimeZone,
    attempts: i32,
    last_error: Option<String>,
}

impl From<Mark> for Claim {
    fn from(mark: Mark) -> Claim {
        let Mark { scene, change, generation, marked_at, attempts, last_error, .. } = mark;
        Claim { scene, change, generation, marked_at, attempts, last_error }
    }
}

impl Claim {
    fn add(&mut self, mark: Mark) {
        self.change = self.change.and(&mark.change);
        if mark.attempts > self.attempts {
            (self.attempts, self.last_error) = (mark.attempts, mark.last_error);
        }
    }
}

pub struct Batch {
    pub claims: Vec<Claim>,
    /// Marks that were due; zero when nothing was left to claim.
    pub due: u64,
    /// The next batch starts after this mark.
    pub last_generation: i64,
}

/// Takes the oldest marks after `after` that are due and that nobody else holds.
pub fn claim(after: i64, limit: i64, shard: &Shard) -> Batch {
    let mut marks: Vec<Mark> = Vec::new();
    let mut collect = |row: &Fields| marks.extend(Mark::of(row));
    let plan = Plan::for_rows(limit as usize);
    let part = || vec![arg(after), arg(limit), arg(shard.first), arg(shard.last)];
    let due = match (shard.scene, &shard.region) {
        (Some(_), _) if after > i64::MIN => 0,
        (Some(scene), _) => query(include_str!("claim_scene.sql"), Plan::Kept, || vec![arg(scene)], &mut collect),
        (None, None) => query(include_str!("claim.sql"), plan, part, &mut collect),
        (None, Some(region)) => {
            let part = || [part(), vec![arg(region.as_str())]].into_iter().flatten().collect();
            query(include_str!("claim_region.sql"), plan, part, &mut collect)
        }
    };
    let last_generation = marks.iter().map(|mark| mark.generation).max().unwrap_or(after);
    let mut claims: Vec<Claim> = Vec::new();
    let mut position: FxHashMap<[u8; 16], usize> = FxHashMap::default();
    for mark in take(marks).0 {
        match position.get(mark.scene.as_bytes()) {
            Some(&at) => claims[at].add(mark),
            None => {
                position.insert(*mark.scene.as_bytes(), claims.len());
                claims.push(mark.into());
            }
        }
    }
    if !claims.is_empty() {
        take_other_marks(&mut claims, &position);
        mark_allies(&claims);
    }
    Batch { claims, due, last_generation }
}

/// Takes these marks as far as nobody else holds them; returns those, and the scenes of the others.
fn take(marks: Vec<Mark>) -> (Vec<Mark>, FxHashSet<[u8; 16]>) {
    let mut taken: FxHashSet<i64> = FxHashSet::default();
    if let Some(table) = Writable::for_deletion(c"trust_dirty") {
        for mark in &marks {
            if table.delete(mark.place) == Taken::Done {
                taken.insert(mark.generation);
            }
            pgrx::check_for_interrupts!();
        }
        show_changes();
    } else if !marks.is_empty() {
        let places = || vec![arg(marks.iter().map(|mark| mark.place).collect::<Vec<_>>())];
        query(include_str!("take_marks.sql"), Plan::for_rows(marks.len()), places, |row| {
            taken.extend(row.get::<i64>(1))
        });
    }
    let (ours, others): (Vec<Mark>, Vec<Mark>) = marks.into_iter().partition(|mark| taken.contains(&mark.generation));
    (ours, others.iter().map(|mark| *mark.scene.as_bytes()).collect())
}

/// Takes the other marks of claimed scenes too. A scene of which somebody else holds a mark is put back: that session
/// works on it, or is about to change it.
fn take_other_marks(claims: &mut Vec<Claim>, position: &FxHashMap<[u8; 16], usize>) {
    let others = other_marks(claims, position);
    if others.is_empty() {
        return;
    }
    let (taken, contested) = take(others);
    for mark in taken {
        if let Some(&at) = position.get(mark.scene.as_bytes()) {
            claims[at].add(mark);
        }
    }
    let (left, kept): (Vec<Claim>, Vec<Claim>) =
        std::mem::take(claims).into_iter().partition(|claim| contested.contains(claim.scene.as_bytes()));
    *claims = kept;
    give_back(left.iter());
}

/// Marks the scenes that vouch for scenes which have fallen or risen. The change itself has marked those that it could
/// see; an alliance that was being made at the same time is seen only now.
fn mark_allies(claims: &[Claim]) {
    let moved: Vec<Uuid> = claims.iter().filter(|claim| claim.change.standing).map(|claim| claim.scene).collect();
    if !moved.is_empty() {
        // Those that are claimed too will be read later than this.
        let claimed = claims.iter().map(|claim| claim.scene).collect::<Vec<_>>();
        execute("SELECT trust_mark_allies($1, $2)", Plan::Kept, || vec![arg(moved), arg(claimed)]);
    }
}

fn other_marks(claims: &[Claim], position: &FxHashMap<[u8; 16], usize>) -> Vec<Mark> {
    let mut scenes: Option<Vec<Uuid>> = None;
    if claims.len() >= SCAN_FROM
        && let Some(table) = Table::open(c"trust_dirty")
        && table.wholly_readable()
    {
        let column = table.column("scene_id", pg_sys::UUIDOID);
        let mut found: FxHashSet<[u8; 16]> = FxHashSet::default();
        table.scan(column, |row| {
            let scene = row.uuid(column);
            if position.contains_key(&scene) {
                found.insert(scene);
            }
        });
        if found.is_empty() {
            return Vec::new();
        }
        scenes = Some(found.into_iter().map(Uuid::from_bytes).collect());
    }
    let scenes = scenes.unwrap_or_else(|| claims.iter().map(|claim| claim.scene).collect());
    let mut marks = Vec::new();
    query(
        include_str!("other_marks.sql"),
        Plan::for_rows(scenes.len()),
        || vec![arg(scenes.clone())],
        |row| marks.extend(Mark::of(row)),
    );
    marks
}

/// Puts the marks of scenes that were not done back, as old as they were.
pub fn give_back<'a>(claims: impl Iterator<Item = &'a Claim>) {
    let claims: Vec<&Claim> = claims.collect();
    if claims.is_empty() {
        return;
    }
    execute(include_str!("give_back.sql"), Plan::Kept, || -> Vec<Arg> {
        fn column<T>(claims: &[&Claim], value: fn(&Claim) -> T) -> Arg
        where
            Vec<T>: IntoDatum,
        {
            arg(claims.iter().map(|claim| value(claim)).collect::<Vec<_>>())
        }
        vec![
            column(&claims, |claim| claim.scene),
            column(&claims, |claim| claim.generation),
            column(&claims, |claim| claim.marked_at),
            column(&claims, |claim| claim.change.recount),
            column(&claims, |claim| claim.change.alliances),
            column(&claims, |claim| claim.change.memberships),
            column(&claims, |claim| claim.change.membership_points),
            column(&claims, |claim| claim.attempts),
            column(&claims, |claim| claim.last_error.clone()),
            column(&claims, |claim| claim.change.standing),
        ]
    });
}

/// Puts a scene back that failed: it waits longer each time, and is quarantined in the end.
pub fn record_failure(claim: &Claim, message: &str) {
    give_back(std::iter::once(claim));
    execute(include_str!("record_failure.sql"), Plan::Kept, || {
        vec![arg(claim.generation), arg(message.to_string()), arg(settings::TRUST_MAX_ATTEMPTS.get())]
    });
}
