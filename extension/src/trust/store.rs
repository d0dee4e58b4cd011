//! Storing the scores that changed, and keeping their history.

use crate::heap::{Writable, show_changes};
use crate::settings;
use crate::statement::{Arg, Plan, arg, execute, query};
use crate::trust::claim::Claim;
use crate::trust::rules::Trust;
use pgrx::datum::{TimestampWithTimeZone, Uuid};
use pgrx::pg_sys::{self, ItemPointerData};
use pgrx::prelude::*;
use rustc_hash::FxHashSet;

/// What a scene's trust is now, and what is stored of it.
pub struct Computed {
    /// `None` if the scene is gone, and with it its score.
    pub trust: Option<Trust>,
    pub stored: Option<Stored>,
    /// Somebody else has stored a score meanwhile.
    pub contested: bool,
}

/// A stored score, and where its row was when it was read.
pub struct Stored {
    pub trust: Trust,
    pub place: ItemPointerData,
}

/// What storing some scenes came to.
#[derive(Default)]
pub struct Outcome {
    pub processed: i64,
    pub changed: i64,
    pub total_change: f64,
    pub had_score: i64,
    /// The places among them of those that were not stored: somebody else has touched their score since it was read.
    pub contested: FxHashSet<usize>,
}

/// The columns of `trust_scores`, in order.
pub const COLUMNS: [(&str, pg_sys::Oid); 8] = [
    ("scene_id", pg_sys::UUIDOID),
    ("score", pg_sys::FLOAT8OID),
    ("alliance_factor", pg_sys::FLOAT8OID),
    ("membership_mean", pg_sys::FLOAT8OID),
    ("computed_at", pg_sys::TIMESTAMPTZOID),
    ("memberships", pg_sys::INT4OID),
    ("alliances", pg_sys::INT4OID),
    ("membership_points", pg_sys::INT8OID),
];

type Row<'a> = (Uuid, Option<&'a Trust>);

/// Rows of scores as an array for each column.
fn columns(rows: &[Row<'_>], at: TimestampWithTimeZone) -> Vec<Arg> {
    fn column<T: IntoDatum>(rows: &[Row<'_>], value: fn(&Trust) -> T) -> Arg
    where
        Vec<Option<T>>: IntoDatum,
    {
        arg(rows.iter().map(|(_, trust)| trust.map(value)).collect::<Vec<Option<T>>>())
    }
    vec![
        arg(rows.iter().map(|(scene, _)| *scene).collect::<Vec<_>>()),
        column(rows, |trust| trust.score),
        column(rows, |trust| trust.alliance_factor),
        column(rows, |trust| trust.membership_mean),
        column(rows, |trust| trust.memberships),
        column(rows, |trust| trust.alliances),
        arg(at),
    ]
}

/// Scenes to be stored in one way, with where their rows were.
#[derive(Default)]
struct Scores<'a> {
    /// Their places among all scenes.
    at: Vec<usize>,
    rows: Vec<Row<'a>>,
    stored: Vec<&'a Stored>,
}

impl<'a> Scores<'a> {
    fn push(&mut self, at: usize, row: Row<'a>, stored: Option<&'a Stored>) {
        self.at.push(at);
        self.rows.push(row);
        self.stored.extend(stored);
    }

    fn places(&self) -> Arg {
        arg(self.stored.iter().map(|stored| stored.place).collect::<Vec<_>>())
    }

    /// Runs a statement that returns the scenes that it has stored; the others are contested.
    fn execute(&self, sql: &'static str, arguments: impl FnOnce() -> Vec<Arg>, contested: &mut FxHashSet<usize>) {
        if self.rows.is_empty() {
            return;
        }
        let mut stored: FxHashSet<[u8; 16]> = FxHashSet::default();
        query(sql, Plan::Kept, arguments, |row| stored.extend(row.get::<Uuid>(1).map(|scene| *scene.as_bytes())));
        if stored.len() < self.rows.len() {
            let scenes = self.at.iter().zip(&self.rows);
            contested.extend(scenes.filter(|(_, (scene, _))| !stored.contains(scene.as_bytes())).map(|(at, _)| *at));
        }
    }

    fn with_points(&self, at: TimestampWithTimeZone) -> Vec<Arg> {
        let mut arguments = columns(&self.rows, at);
        let points = self.rows.iter().map(|(_, trust)| trust.and_then(|trust| trust.membership_points));
        arguments.push(arg(points.collect::<Vec<_>>()));
        arguments
    }

    fn insert(&self, at: TimestampWithTimeZone, contested: &mut FxHashSet<usize>) {
        self.execute(include_str!("insert_scores.sql"), || self.with_points(at), contested);
    }

    fn delete(&self, contested: &mut FxHashSet<usize>) {
        let arguments = || vec![arg(self.rows.iter().map(|(scene, _)| *scene).collect::<Vec<_>>()), self.places()];
        self.execute(include_str!("delete_scores.sql"), arguments, contested);
    }

    /// Puts the scores where they were read.
    fn update(&self, at: TimestampWithTimeZone, contested: &mut FxHashSet<usize>) {
        let table = if self.rows.is_empty() { None } else { Writable::for_update(c"trust_scores", &COLUMNS) };
        let Some(table) = table else {
            let arguments = || {
                let mut arguments = self.with_points(at);
                arguments.push(self.places());
                arguments.push(arg(self.stored.iter().map(|s| s.trust.membership_points).collect::<Vec<_>>()));
                arguments.push(arg(self.stored.iter().map(|s| s.trust.alliance_factor).collect::<Vec<_>>()));
                arguments
            };
            self.execute(include_str!("update_scores.sql"), arguments, contested);
            return;
        };
        for ((scene, (id, trust)), stored) in self.at.iter().zip(&self.rows).zip(&self.stored) {
            let Some(trust) = trust else { continue };
            let mut id = *id.as_bytes();
            let mut values = [
                pg_sys::Datum::from(id.as_mut_ptr()),
                trust.score.into_datum().unwrap_or(pg_sys::Datum::null()),
                trust.alliance_factor.into_datum().unwrap_or(pg_sys::Datum::null()),
                trust.membership_mean.into_datum().unwrap_or(pg_sys::Datum::null()),
                at.into_datum().unwrap_or(pg_sys::Datum::null()),
                trust.memberships.into(),
                trust.alliances.into(),
                trust.membership_points.unwrap_or_default().into(),
            ];
            let mut nulls = [false; COLUMNS.len()];
            nulls[COLUMNS.len() - 1] = trust.membership_points.is_none();
            if !table.update(stored.place, &mut values, &mut nulls) {
                contested.insert(*scene);
            }
            pgrx::check_for_interrupts!();
        }
        show_changes();
    }
}

/// Writes the scores that changed.
///
/// Marks keep other recomputes away, but not one whose marks were made in its own transaction: they cannot be seen. So a
/// score is written only over what was read; otherwise what the other has added to it would be lost.
pub fn store(claims: &[Claim], computed: &[Computed]) -> Outcome {
    let mut outcome = Outcome::default();
    let (mut new, mut changed, mut gone) = (Scores::default(), Scores::default(), Scores::default());
    for ((at, claim), computed) in claims.iter().enumerate().zip(computed) {
        let row: Row<'_> = (claim.scene, computed.trust.as_ref());
        match (&computed.trust, &computed.stored) {
            _ if computed.contested => drop(outcome.contested.insert(at)),
            (Some(_), None) => new.push(at, row, None),
            (Some(trust), Some(stored)) if trust.differs_from(&stored.trust) => changed.push(at, row, Some(stored)),
            (None, Some(stored)) => gone.push(at, row, Some(stored)),
            _ => (),
        }
    }
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let Ok(now) = TimestampWithTimeZone::try_from(now) else {
        // A clock beyond the range of dates: nothing is stored, and every mark is put back.
        outcome.contested.extend(0..claims.len());
        return outcome;
    };
    changed.update(now, &mut outcome.contested);
    new.insert(now, &mut outcome.contested);
    gone.delete(&mut outcome.contested);

    let mut history: Vec<Row<'_>> = Vec::new();
    for ((at, claim), computed) in claims.iter().enumerate().zip(computed) {
        if outcome.contested.contains(&at) {
            continue;
        }
        outcome.processed += 1;
        let moved = match (&computed.trust, &computed.stored) {
            (Some(trust), Some(stored)) => {
                outcome.had_score += 1;
                outcome.total_change += (trust.score - stored.trust.score).abs();
                trust.moves(&stored.trust)
            }
            (trust, stored) => trust.is_some() || stored.is_some(),
        };
        if moved {
            history.push((claim.scene, computed.trust.as_ref()));
        }
    }
    outcome.changed = history.len() as i64;
    if settings::TRUST_HISTORY.get() && !history.is_empty() {
        // In the order of the index, which then is not searched all over.
        history.sort_unstable_by_key(|(scene, _)| *scene.as_bytes());
        execute(include_str!("record_history.sql"), Plan::Kept, || columns(&history, now));
    }
    outcome
}
