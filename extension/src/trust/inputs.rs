//! Reading what trust is computed from: by index for a few scenes, in one pass over each table for many.

use crate::heap::Table;
use crate::statement::{Arg, Fields, Plan, arg, query};
use crate::trust::claim::Claim;
use crate::trust::rules::{Inputs, Trust};
use crate::trust::store::{Computed, Stored};
use pgrx::datum::Uuid;
use rustc_hash::{FxHashMap, FxHashSet};

/// Reading one scene by index costs about as much as passing over this many memberships.
const ROWS_PER_LOOKUP: f64 = 100.0;

/// What is read of the scenes, found by id. Columns apart: a pass over memberships touches no more than it adds to.
struct Scenes {
    position: FxHashMap<[u8; 16], u32>,
    stand: Vec<bool>,
    inputs: Vec<Inputs>,
    stored: Vec<Option<Stored>>,
}

impl Scenes {
    fn new(claims: &[Claim]) -> Scenes {
        Scenes {
            position: claims.iter().zip(0_u32..).map(|(claim, at)| (*claim.scene.as_bytes(), at)).collect(),
            stand: vec![false; claims.len()],
            inputs: vec![Inputs::default(); claims.len()],
            stored: claims.iter().map(|_| None).collect(),
        }
    }

    fn at(&self, id: &[u8; 16]) -> Option<usize> {
        self.position.get(id).map(|&at| at as usize)
    }

    fn computed(self) -> Vec<Computed> {
        let computed = |((stands, inputs), stored): ((bool, Inputs), Option<Stored>)| Computed {
            trust: stands.then(|| inputs.trust()),
            stored,
        };
        self.stand.into_iter().zip(self.inputs).zip(self.stored).map(computed).collect()
    }
}

/// The trust of each claimed scene, in order, beside what is stored of it.
pub fn read_inputs(claims: &[Claim]) -> Vec<Computed> {
    let mut scenes = Scenes::new(claims);
    match Tables::worth_scanning(claims.len()) {
        Some(tables) => tables.read(&mut scenes),
        None => read_by_index(claims, &mut scenes),
    }
    scenes.computed()
}

fn read_by_index(claims: &[Claim], scenes: &mut Scenes) {
    let ids: Vec<Uuid> = claims.iter().map(|claim| claim.scene).collect();
    let plan = Plan::for_rows(ids.len());
    let mut read = |sql: &'static str, add: fn(&mut Scenes, usize, &Fields)| {
        let arguments = || -> Vec<Arg> { vec![arg(ids.clone())] };
        query(sql, plan, arguments, |row| {
            if let Some(id) = row.get::<Uuid>(1)
                && let Some(at) = scenes.at(id.as_bytes())
            {
                add(scenes, at, row);
            }
        });
    };
    read(include_str!("read_scenes.sql"), |scenes, at, _| scenes.stand[at] = true);
    read(include_str!("read_memberships.sql"), |scenes, at, row| {
        let (role, weight) = (row.get::<&str>(2), row.get::<f64>(3));
        scenes.inputs[at].add_membership(role.unwrap_or_default(), weight.unwrap_or_default());
    });
    read(include_str!("read_alliances.sql"), |scenes, at, row| {
        scenes.inputs[at].add_alliance(row.get::<f64>(2).unwrap_or_default());
    });
    read(include_str!("read_scores.sql"), |scenes, at, row| {
        if let (
            Some(score),
            Some(alliance_factor),
            Some(membership_mean),
            Some(memberships),
            Some(alliances),
            Some(place),
        ) = (row.get(2), row.get(3), row.get(4), row.get(5), row.get(6), row.get(7))
        {
            let trust = Trust { score, alliance_factor, membership_mean, memberships, alliances };
            scenes.stored[at] = Some(Stored { trust, place });
        }
    });
}

/// The four tables, open to be read from end to end.
struct Tables {
    scenes: Table,
    memberships: Table,
    alliances: Table,
    scores: Table,
}

impl Tables {
    /// `None` if there are too few scenes for a pass over the tables, or if the caller may not see every row.
    fn worth_scanning(scenes: usize) -> Option<Tables> {
        let tables = Tables {
            scenes: Table::open(c"scenes")?,
            memberships: Table::open(c"memberships")?,
            alliances: Table::open(c"alliances")?,
            scores: Table::open(c"trust_scores")?,
        };
        let worth = scenes as f64 * ROWS_PER_LOOKUP > tables.memberships.estimated_rows();
        let readable = [&tables.scenes, &tables.memberships, &tables.alliances, &tables.scores]
            .iter()
            .all(|table| table.wholly_readable());
        (worth && readable).then_some(tables)
    }

    fn read(&self, scenes: &mut Scenes) {
        let fallen = self.read_scenes(scenes);
        self.read_memberships(scenes);
        self.read_alliances(scenes, &fallen);
        self.read_scores(scenes);
    }

    /// Notes which scenes stand, and returns those that do not count as allies.
    fn read_scenes(&self, scenes: &mut Scenes) -> FxHashSet<[u8; 16]> {
        let table = &self.scenes;
        let (id, deleted, moderation) =
            (table.column("id"), table.column("deleted_at"), table.column("moderation_status"));
        let mut fallen = FxHashSet::default();
        table.scan(id.max(deleted).max(moderation), |row| {
            let scene = row.uuid(id);
            let is_deleted = !row.is_null(deleted);
            if is_deleted || matches!(row.text(moderation), b"hidden" | b"suspended") {
                fallen.insert(scene);
            }
            if !is_deleted && let Some(at) = scenes.at(&scene) {
                scenes.stand[at] = true;
            }
        });
        fallen
    }

    fn read_memberships(&self, scenes: &mut Scenes) {
        let table = &self.memberships;
        let (scene, weight, role, status) =
            (table.column("scene_id"), table.column("trust_weight"), table.column("role"), table.column("status"));
        table.scan(scene.max(weight).max(role).max(status), |row| {
            if row.text(status) == b"active"
                && let Some(at) = scenes.at(&row.uuid(scene))
            {
                let role = std::str::from_utf8(row.text(role)).unwrap_or_default();
                scenes.inputs[at].add_membership(role, row.f64(weight));
            }
        });
    }

    fn read_alliances(&self, scenes: &mut Scenes, fallen: &FxHashSet<[u8; 16]>) {
        let table = &self.alliances;
        let (from, to, weight, status, deleted) = (
            table.column("from_scene_id"),
            table.column("to_scene_id"),
            table.column("weight"),
            table.column("status"),
            table.column("deleted_at"),
        );
        table.scan(from.max(to).max(weight).max(status).max(deleted), |row| {
            if row.is_null(deleted)
                && row.text(status) == b"active"
                && let Some(at) = scenes.at(&row.uuid(from))
                && !fallen.contains(&row.uuid(to))
            {
                scenes.inputs[at].add_alliance(row.f64(weight));
            }
        });
    }

    fn read_scores(&self, scenes: &mut Scenes) {
        let table = &self.scores;
        let (id, score, factor, mean, memberships, alliances) = (
            table.column("scene_id"),
            table.column("score"),
            table.column("alliance_factor"),
            table.column("membership_mean"),
            table.column("memberships"),
            table.column("alliances"),
        );
        let last = [id, score, factor, mean, memberships, alliances].into_iter().max().unwrap_or(id);
        table.scan(last, |row| {
            if let Some(at) = scenes.at(&row.uuid(id)) {
                let trust = Trust {
                    score: row.f64(score),
                    alliance_factor: row.f64(factor),
                    membership_mean: row.f64(mean),
                    memberships: row.i32(memberships),
                    alliances: row.i32(alliances),
                };
                scenes.stored[at] = Some(Stored { trust, place: row.place() });
            }
        });
    }
}
