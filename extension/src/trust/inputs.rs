//! What trust is computed from: the stored sums and what the marks say has changed, and for the other scenes the rows
//! themselves, by index for a few, in one pass over each table for many.
//!
//! In every snapshot the memberships of a scene add up to its stored points and those of all its marks. A count keeps
//! that true: what marks say that have come since ours were taken is set aside, for they will be added later.

use crate::heap::{Snapshot, Table};
use crate::statement::{Fields, Plan, arg, query};
use crate::trust::claim::Claim;
use crate::trust::rules::{Change, Inputs, Trust};
use crate::trust::store::{COLUMNS, Computed, Stored};
use pgrx::datum::Uuid;
use pgrx::pg_sys;
use rustc_hash::{FxHashMap, FxHashSet};

/// Reading one scene by index costs about as much as passing over this many memberships.
const ROWS_PER_LOOKUP: f64 = 100.0;
/// The same for the stored scores, which are narrow and one per scene.
const SCORES_PER_LOOKUP: f64 = 20.0;

/// Finds scenes by id.
struct Position(FxHashMap<[u8; 16], u32>);

impl Position {
    fn of<'a>(scenes: impl Iterator<Item = &'a Uuid>) -> Position {
        Position(scenes.zip(0_u32..).map(|(scene, at)| (*scene.as_bytes(), at)).collect())
    }

    fn at(&self, id: &[u8; 16]) -> Option<usize> {
        self.0.get(id).map(|&at| at as usize)
    }
}

/// The trust of each claimed scene, in order, beside what is stored of it.
pub fn read_inputs(claims: &[Claim]) -> Vec<Computed> {
    let stored = read_stored(&claims.iter().map(|claim| claim.scene).collect::<Vec<_>>());
    let mut computed: Vec<Computed> = Vec::with_capacity(claims.len());
    let mut unread: Vec<Unread> = Vec::new();
    for ((claim, stored), at) in claims.iter().zip(stored).zip(0..) {
        let mut inputs = Inputs::default();
        let counted = stored.as_ref().is_some_and(|stored| inputs.take_memberships(&stored.trust, &claim.change));
        let mut trust = None;
        match &stored {
            Some(stored) if counted && !claim.change.alliances => {
                trust = Some(inputs.trust_with(stored.trust.alliance_factor, stored.trust.alliances));
            }
            _ if counted => unread.push(Unread { at, scene: claim.scene, count: false, inputs, stands: true }),
            _ => unread.push(Unread { at, scene: claim.scene, count: true, inputs: Inputs::default(), stands: false }),
        }
        computed.push(Computed { trust, stored, contested: false });
    }
    if !unread.is_empty() {
        let position = Position::of(unread.iter().map(|scene| &scene.scene));
        match Tables::worth_scanning(&unread) {
            Some(tables) => tables.read(&mut unread, &position),
            None => read_by_index(&mut unread, &position),
        }
        // A statement of this session that is changing memberships marks them when it ends: such a count is no sum.
        let changing = Table::open(c"memberships").is_none_or(|table| table.in_use());
        for scene in &unread {
            let mut trust = scene.inputs.trust();
            if changing && scene.count {
                trust.membership_points = None;
            }
            computed[scene.at].trust = scene.stands.then_some(trust);
        }
        read_again(claims, &unread, &mut computed);
    }
    computed
}

/// Finds scenes whose stored score somebody has written between our reading it and our reading the rows: what they have
/// added would be counted twice, or lost.
fn read_again(claims: &[Claim], unread: &[Unread], computed: &mut [Computed]) {
    let again = read_stored(&unread.iter().map(|scene| claims[scene.at].scene).collect::<Vec<_>>());
    for (scene, now) in unread.iter().zip(again) {
        let computed = &mut computed[scene.at];
        let place =
            |stored: &Option<Stored>| stored.as_ref().map(|stored| pgrx::itemptr::item_pointer_to_u64(stored.place));
        computed.contested = place(&computed.stored) != place(&now);
    }
}

fn read_stored(scenes: &[Uuid]) -> Vec<Option<Stored>> {
    let mut stored: Vec<Option<Stored>> = scenes.iter().map(|_| None).collect();
    let position = Position::of(scenes.iter());
    if let Some(table) = Table::open(c"trust_scores")
        && scenes.len() as f64 * SCORES_PER_LOOKUP > table.estimated_rows()
        && table.wholly_readable()
    {
        scan_scores(&table, &position, &mut stored);
        return stored;
    }
    query(
        include_str!("read_scores.sql"),
        Plan::for_rows(scenes.len()),
        || vec![arg(scenes.to_vec())],
        |row| {
            let found = || {
                let trust = Trust {
                    score: row.get(2)?,
                    alliance_factor: row.get(3)?,
                    membership_mean: row.get(4)?,
                    memberships: row.get(5)?,
                    alliances: row.get(6)?,
                    membership_points: row.get(7),
                };
                Some(Stored { trust, place: row.get(8)? })
            };
            if let Some(at) = row.get::<Uuid>(1).and_then(|id| position.at(id.as_bytes())) {
                stored[at] = found();
            }
        },
    );
    stored
}

fn scan_scores(table: &Table, position: &Position, stored: &mut [Option<Stored>]) {
    let columns @ [id, score, factor, mean, _, memberships, alliances, points] =
        COLUMNS.map(|(name, of)| table.column(name, of));
    table.scan(columns.into_iter().max().unwrap_or(id), |row| {
        if let Some(at) = position.at(&row.uuid(id)) {
            let trust = Trust {
                score: row.f64(score),
                alliance_factor: row.f64(factor),
                membership_mean: row.f64(mean),
                memberships: row.i32(memberships),
                alliances: row.i32(alliances),
                membership_points: (!row.is_null(points)).then(|| row.i64(points)),
            };
            stored[at] = Some(Stored { trust, place: row.place() });
        }
    });
}

/// A scene of which rows have to be read.
struct Unread {
    /// Its place among the claims.
    at: usize,
    scene: Uuid,
    /// Whether its memberships are to be counted; otherwise they are known, and so is that it stands.
    count: bool,
    inputs: Inputs,
    stands: bool,
}

fn read_by_index(unread: &mut [Unread], position: &Position) {
    let mut read = |sql: &'static str, which: fn(&Unread) -> bool, add: fn(&mut Unread, &Fields)| {
        let ids: Vec<Uuid> = unread.iter().filter(|scene| which(scene)).map(|scene| scene.scene).collect();
        if ids.is_empty() {
            return;
        }
        query(
            sql,
            Plan::for_rows(ids.len()),
            || vec![arg(ids.clone())],
            |row| {
                if let Some(id) = row.get::<Uuid>(1)
                    && let Some(at) = position.at(id.as_bytes())
                {
                    add(&mut unread[at], row);
                }
            },
        );
    };
    read(include_str!("read_scenes.sql"), |scene| scene.count, |scene, _| scene.stands = true);
    read(
        include_str!("read_memberships.sql"),
        |scene| scene.count,
        |scene, row| match row.get::<&str>(2) {
            Some(role) => scene.inputs.add_membership(role, row.get(3).unwrap_or_default()),
            None => scene.inputs.set_aside(&Change {
                memberships: row.get(4).unwrap_or_default(),
                membership_points: row.get(5).unwrap_or_default(),
                ..Change::default()
            }),
        },
    );
    read(
        include_str!("read_alliances.sql"),
        |_| true,
        |scene, row| scene.inputs.add_alliance(row.get(2).unwrap_or_default()),
    );
}

/// The tables, open to be read from end to end.
struct Tables {
    scenes: Table,
    memberships: Table,
    alliances: Table,
    marks: Table,
}

impl Tables {
    /// `None` if there are too few scenes for a pass over the tables, or if the caller may not see every row.
    fn worth_scanning(unread: &[Unread]) -> Option<Tables> {
        let tables = Tables {
            scenes: Table::open(c"scenes")?,
            memberships: Table::open(c"memberships")?,
            alliances: Table::open(c"alliances")?,
            marks: Table::open(c"trust_dirty")?,
        };
        let count = unread.iter().any(|scene| scene.count);
        let largest = if count { tables.memberships.estimated_rows() } else { tables.alliances.estimated_rows() };
        let worth = unread.len() as f64 * ROWS_PER_LOOKUP > largest.max(tables.scenes.estimated_rows());
        let readable = [&tables.scenes, &tables.memberships, &tables.alliances, &tables.marks]
            .iter()
            .all(|table| table.wholly_readable());
        (worth && readable).then_some(tables)
    }

    fn read(&self, unread: &mut [Unread], position: &Position) {
        let fallen = self.read_scenes(unread, position);
        if unread.iter().any(|scene| scene.count) {
            let snapshot = Snapshot::take();
            self.read_memberships(&snapshot, unread, position);
            self.read_marks(&snapshot, unread, position);
        }
        self.read_alliances(unread, position, &fallen);
    }

    /// Notes which scenes stand, and returns those that do not count as allies.
    fn read_scenes(&self, unread: &mut [Unread], position: &Position) -> FxHashSet<[u8; 16]> {
        let table = &self.scenes;
        let (id, deleted, moderation) = (
            table.column("id", pg_sys::UUIDOID),
            table.column("deleted_at", pg_sys::TIMESTAMPTZOID),
            table.column("moderation_status", pg_sys::TEXTOID),
        );
        let mut fallen = FxHashSet::default();
        table.scan(id.max(deleted).max(moderation), |row| {
            let scene = row.uuid(id);
            let is_deleted = !row.is_null(deleted);
            if is_deleted || matches!(row.text(moderation), b"hidden" | b"suspended") {
                fallen.insert(scene);
            }
            if !is_deleted && let Some(at) = position.at(&scene) {
                unread[at].stands = true;
            }
        });
        fallen
    }

    fn read_memberships(&self, snapshot: &Snapshot, unread: &mut [Unread], position: &Position) {
        let table = &self.memberships;
        let (scene, weight, role, status) = (
            table.column("scene_id", pg_sys::UUIDOID),
            table.column("trust_weight", pg_sys::FLOAT8OID),
            table.column("role", pg_sys::TEXTOID),
            table.column("status", pg_sys::TEXTOID),
        );
        table.scan_at(snapshot, scene.max(weight).max(role).max(status), |row| {
            if row.text(status) == b"active"
                && let Some(at) = position.at(&row.uuid(scene))
                && unread[at].count
            {
                let role = std::str::from_utf8(row.text(role)).unwrap_or_default();
                unread[at].inputs.add_membership(role, row.f64(weight));
            }
        });
    }

    fn read_marks(&self, snapshot: &Snapshot, unread: &mut [Unread], position: &Position) {
        let table = &self.marks;
        let (scene, members, points) = (
            table.column("scene_id", pg_sys::UUIDOID),
            table.column("members_change", pg_sys::INT4OID),
            table.column("points_change", pg_sys::INT8OID),
        );
        table.scan_at(snapshot, scene.max(members).max(points), |row| {
            if let Some(at) = position.at(&row.uuid(scene))
                && unread[at].count
            {
                unread[at].inputs.set_aside(&Change {
                    memberships: row.i32(members),
                    membership_points: row.i64(points),
                    ..Change::default()
                });
            }
        });
    }

    fn read_alliances(&self, unread: &mut [Unread], position: &Position, fallen: &FxHashSet<[u8; 16]>) {
        let table = &self.alliances;
        let (from, to, weight, status, deleted) = (
            table.column("from_scene_id", pg_sys::UUIDOID),
            table.column("to_scene_id", pg_sys::UUIDOID),
            table.column("weight", pg_sys::FLOAT8OID),
            table.column("status", pg_sys::TEXTOID),
            table.column("deleted_at", pg_sys::TIMESTAMPTZOID),
        );
        table.scan(from.max(to).max(weight).max(status).max(deleted), |row| {
            if row.is_null(deleted)
                && row.text(status) == b"active"
                && let Some(at) = position.at(&row.uuid(from))
                && !fallen.contains(&row.uuid(to))
            {
                unread[at].inputs.add_alliance(row.f64(weight));
            }
        });
    }
}
