//! The trust formula: what a scene's score is, given who belongs to it and whom it vouches for.
//!
//! Weights are added up as whole points, so that no order of adding, however it is split, changes a score by a bit.

/// A weight of 1 in points.
pub const POINTS: f64 = 1e12;
/// Points above this are not kept beside a score; such a scene is counted anew each time.
const MOST_POINTS: i128 = i64::MAX as i128 / 2;

/// How much a member of this role counts, in tenths. Unknown roles count like members; names are case-sensitive.
fn role_tenths(role: &str) -> i64 {
    match role {
        "owner" => 10,
        "curator" => 8,
        "member" => 5,
        "guest" => 3,
        _ => 5,
    }
}

/// How much a member of this role counts.
pub fn role_multiplier(role: &str) -> f64 {
    role_tenths(role) as f64 / 10.0
}

/// A weight between 0 and 1 in points.
fn points(weight: f64) -> i64 {
    (weight * POINTS).round_ties_even() as i64
}

/// What a membership adds to its scene: weight × role multiplier, in tenths of points.
pub fn membership_points(role: &str, trust_weight: f64) -> i64 {
    points(trust_weight) * role_tenths(role)
}

/// What has been read of one scene so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inputs {
    membership_points: i128,
    alliance_points: i128,
    memberships: i64,
    alliances: i64,
}

/// A score and the parts that multiply to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trust {
    pub score: f64,
    pub alliance_factor: f64,
    pub membership_mean: f64,
    pub memberships: i32,
    pub alliances: i32,
    /// The sum that the mean is of, so that changes can be added to it; `None` if it is not known.
    pub membership_points: Option<i64>,
}

/// What marks say has changed since a score was stored.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Change {
    /// It is not known what: the scene must be counted anew.
    pub recount: bool,
    /// Its alliances must be read again.
    pub alliances: bool,
    pub memberships: i32,
    pub membership_points: i64,
    /// It has fallen or risen, which concerns the scenes that vouch for it.
    pub standing: bool,
}

impl Inputs {
    /// Adds an active membership.
    pub fn add_membership(&mut self, role: &str, trust_weight: f64) {
        self.membership_points += i128::from(membership_points(role, trust_weight));
        self.memberships += 1;
    }

    /// Adds an active alliance of the scene with one that stands.
    pub fn add_alliance(&mut self, weight: f64) {
        self.alliance_points += i128::from(points(weight));
        self.alliances += 1;
    }

    /// Takes away what a mark that stays will add later.
    pub fn set_aside(&mut self, change: &Change) {
        self.membership_points -= i128::from(change.membership_points);
        self.memberships -= i64::from(change.memberships);
    }

    /// Takes the memberships from a stored score and what has changed since; false if they must be counted.
    pub fn take_memberships(&mut self, stored: &Trust, change: &Change) -> bool {
        let Some(before) = stored.membership_points.filter(|_| !change.recount) else {
            return false;
        };
        self.membership_points = i128::from(before) + i128::from(change.membership_points);
        self.memberships = i64::from(stored.memberships) + i64::from(change.memberships);
        // Whoever wrote to the stored score by hand may have left anything there.
        self.memberships >= 0
            && (0..=i128::from(self.memberships) * (POINTS as i128) * 10).contains(&self.membership_points)
    }

    /// The score with an alliance factor that is known already.
    pub fn trust_with(&self, alliance_factor: f64, alliances: i32) -> Trust {
        let membership_mean = mean(self.membership_points, self.memberships, 10.0 * POINTS).unwrap_or(0.0);
        Trust {
            score: alliance_factor * membership_mean,
            alliance_factor,
            membership_mean,
            memberships: i32::try_from(self.memberships).unwrap_or(i32::MAX),
            alliances,
            membership_points: (0..=MOST_POINTS)
                .contains(&self.membership_points)
                .then(|| i64::try_from(self.membership_points).unwrap_or_default()),
        }
    }

    /// score = mean alliance weight (1 without alliances) × mean of weight × role multiplier (0 without memberships).
    pub fn trust(&self) -> Trust {
        let alliance_factor = mean(self.alliance_points, self.alliances, POINTS).unwrap_or(1.0);
        self.trust_with(alliance_factor, i32::try_from(self.alliances).unwrap_or(i32::MAX))
    }
}

fn mean(points: i128, count: i64, unit: f64) -> Option<f64> {
    (count > 0).then(|| points as f64 / (count as f64 * unit))
}

impl Change {
    /// Both changes together.
    pub fn and(&self, other: &Change) -> Change {
        let memberships = self.memberships.checked_add(other.memberships);
        let membership_points = self.membership_points.checked_add(other.membership_points);
        Change {
            recount: self.recount || other.recount || memberships.is_none() || membership_points.is_none(),
            alliances: self.alliances || other.alliances,
            memberships: memberships.unwrap_or_default(),
            membership_points: membership_points.unwrap_or_default(),
            standing: self.standing || other.standing,
        }
    }
}

impl Trust {
    /// Whether storing this instead of `stored` would change anything. A stored NaN differs from everything.
    pub fn differs_from(&self, stored: &Trust) -> bool {
        self != stored
    }

    /// Whether it would change anything but the points that are kept beside the score.
    pub fn moves(&self, stored: &Trust) -> bool {
        self.differs_from(&Trust { membership_points: self.membership_points, ..*stored })
    }
}
