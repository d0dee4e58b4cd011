//! Storing the scores that changed, and keeping their history.

use crate::heap::{Writable, show_changes};
use crate::settings;
use crate::statement::{Arg, Plan, arg, execute};
use crate::trust::claim::Claim;
use crate::trust::rules::Trust;
use pgrx::datum::{TimestampWithTimeZone, Uuid};
use pgrx::pg_sys::{self, ItemPointerData};
use pgrx::prelude::*;

/// What a scene's trust is now, and what is stored of it.
pub struct Computed {
    /// `None` if the scene is gone, and with it its score.
    pub trust: Option<Trust>,
    pub stored: Option<Stored>,
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
}

/// The columns of `trust_scores`, in order.
const COLUMNS: [&str; 8] = [
    "scene_id",
    "score",
    "alliance_factor",
    "membership_mean",
    "computed_at",
    "memberships",
    "alliances",
    "membership_points",
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

fn upsert(rows: &[Row<'_>], at: TimestampWithTimeZone) {
    if !rows.is_empty() {
        execute(include_str!("upsert_scores.sql"), Plan::Kept, || {
            let mut arguments = columns(rows, at);
            let points = rows.iter().map(|(_, trust)| trust.and_then(|trust| trust.membership_points));
            arguments.push(arg(points.collect::<Vec<_>>()));
            arguments
        });
    }
}

/// Puts the scores where they were read; those whose row has moved since are returned, to be stored by key.
fn update<'a>(rows: Vec<(Row<'a>, ItemPointerData)>, at: TimestampWithTimeZone) -> Vec<Row<'a>> {
    let table = if rows.is_empty() { None } else { Writable::for_update(c"trust_scores", &COLUMNS) };
    let Some(table) = table else {
        return rows.into_iter().map(|(row, _)| row).collect();
    };
    let mut moved = Vec::new();
    for ((scene, trust), place) in rows {
        let Some(trust) = trust else { continue };
        let mut id = *scene.as_bytes();
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
        if !table.update(place, &mut values, &mut nulls) {
            moved.push((scene, Some(trust)));
        }
        pgrx::check_for_interrupts!();
    }
    show_changes();
    moved
}

/// Writes the scores that changed.
pub fn store(claims: &[Claim], computed: &[Computed]) -> Outcome {
    let mut outcome = Outcome { processed: claims.len() as i64, ..Outcome::default() };
    let (mut new, mut changed, mut gone, mut history) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (claim, computed) in claims.iter().zip(computed) {
        let row: Row<'_> = (claim.scene, computed.trust.as_ref());
        let moved = match (&computed.trust, &computed.stored) {
            (Some(_), None) => {
                new.push(row);
                true
            }
            (Some(trust), Some(stored)) => {
                outcome.had_score += 1;
                outcome.total_change += (trust.score - stored.trust.score).abs();
                if trust.differs_from(&stored.trust) {
                    changed.push((row, stored.place));
                }
                trust.moves(&stored.trust)
            }
            (None, Some(_)) => {
                gone.push(claim.scene);
                true
            }
            (None, None) => false,
        };
        if moved {
            history.push(row);
        }
    }
    outcome.changed = history.len() as i64;
    // SAFETY: reads the clock.
    let now = unsafe { pg_sys::GetCurrentTimestamp() };
    let Ok(now) = TimestampWithTimeZone::try_from(now) else { return outcome };
    new.extend(update(changed, now));
    upsert(&new, now);
    if !gone.is_empty() {
        execute("DELETE FROM trust_scores WHERE scene_id = ANY ($1)", Plan::Fresh, || vec![arg(gone)]);
    }
    if settings::TRUST_HISTORY.get() && !history.is_empty() {
        // In the order of the index, which then is not searched all over.
        history.sort_unstable_by_key(|(scene, _)| *scene.as_bytes());
        execute(include_str!("record_history.sql"), Plan::Kept, || columns(&history, now));
    }
    outcome
}
