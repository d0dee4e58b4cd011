//! Storing what changed, and clearing the marks that were claimed for it.

use crate::settings;
use crate::statement::{Arg, Plan, arg, execute};
use crate::trust::claim::Claim;
use crate::trust::rules::Trust;
use pgrx::datum::Uuid;
use pgrx::pg_sys::ItemPointerData;

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

/// The columns of the scores to write, as arrays.
#[derive(Default)]
struct Scores {
    scenes: Vec<Uuid>,
    scores: Vec<f64>,
    alliance_factors: Vec<f64>,
    membership_means: Vec<f64>,
    memberships: Vec<i32>,
    alliances: Vec<i32>,
}

impl Scores {
    fn push(&mut self, scene: Uuid, trust: &Trust) {
        self.scenes.push(scene);
        self.scores.push(trust.score);
        self.alliance_factors.push(trust.alliance_factor);
        self.membership_means.push(trust.membership_mean);
        self.memberships.push(trust.memberships);
        self.alliances.push(trust.alliances);
    }

    fn arguments(&self) -> Vec<Arg> {
        vec![
            arg(self.scenes.clone()),
            arg(self.scores.clone()),
            arg(self.alliance_factors.clone()),
            arg(self.membership_means.clone()),
            arg(self.memberships.clone()),
            arg(self.alliances.clone()),
        ]
    }

    fn upsert(&self) {
        if !self.scenes.is_empty() {
            execute(include_str!("upsert_scores.sql"), Plan::Kept, || self.arguments());
        }
    }

    /// Updates the rows where they were read; if somebody has moved one since, all of them by key.
    fn update(&self, places: Vec<ItemPointerData>) {
        if self.scenes.is_empty() {
            return;
        }
        let updated = execute(include_str!("update_scores.sql"), Plan::Kept, || {
            let mut arguments = self.arguments();
            arguments.push(arg(places));
            arguments
        });
        if updated < self.scenes.len() as u64 {
            self.upsert();
        }
    }
}

/// Writes the scores that changed and clears the claimed marks.
pub fn store(claims: &[Claim], computed: &[Computed]) -> Outcome {
    let mut outcome = Outcome { processed: claims.len() as i64, ..Outcome::default() };
    let (mut new, mut changed) = (Scores::default(), Scores::default());
    let mut places: Vec<ItemPointerData> = Vec::new();
    let mut gone: Vec<Uuid> = Vec::new();
    for (claim, computed) in claims.iter().zip(computed) {
        match (&computed.trust, &computed.stored) {
            (Some(trust), None) => new.push(claim.scene, trust),
            (Some(trust), Some(stored)) => {
                outcome.had_score += 1;
                if trust.differs_from(&stored.trust) {
                    outcome.total_change += (trust.score - stored.trust.score).abs();
                    changed.push(claim.scene, trust);
                    places.push(stored.place);
                }
            }
            (None, Some(_)) => gone.push(claim.scene),
            (None, None) => (),
        }
    }
    outcome.changed = (new.scenes.len() + changed.scenes.len() + gone.len()) as i64;
    new.upsert();
    changed.update(places);
    if !gone.is_empty() {
        execute("DELETE FROM trust_scores WHERE scene_id = ANY ($1)", Plan::Fresh, || vec![arg(gone)]);
    }
    execute("DELETE FROM trust_dirty WHERE ctid = ANY ($1)", Plan::for_rows(claims.len()), || {
        vec![arg(claims.iter().flat_map(Claim::marks).collect::<Vec<_>>())]
    });
    outcome
}

/// Notes that a scene failed: it waits longer each time, and is quarantined in the end.
pub fn record_failure(claim: &Claim, message: &str) {
    execute(include_str!("record_failure.sql"), Plan::Kept, || {
        vec![arg(claim.marks().collect::<Vec<_>>()), arg(message.to_string()), arg(settings::TRUST_MAX_ATTEMPTS.get())]
    });
}
