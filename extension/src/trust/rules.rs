//! The trust formula: what a scene's score is, given who belongs to it and whom it vouches for.

/// Differences up to this are rounding of the sums, not a change of the score.
pub const TOLERANCE: f64 = 1e-12;

/// How much a member of this role counts. Unknown roles count like members; names are case-sensitive.
pub fn role_multiplier(role: &str) -> f64 {
    match role {
        "owner" => 1.0,
        "curator" => 0.8,
        "member" => 0.5,
        "guest" => 0.3,
        _ => 0.5,
    }
}

/// What has been read of one scene so far.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Inputs {
    membership_sum: f64,
    memberships: i32,
    alliance_sum: f64,
    alliances: i32,
}

/// A score and the parts that multiply to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Trust {
    pub score: f64,
    pub alliance_factor: f64,
    pub membership_mean: f64,
    pub memberships: i32,
    pub alliances: i32,
}

impl Inputs {
    /// Adds an active membership.
    pub fn add_membership(&mut self, role: &str, trust_weight: f64) {
        self.membership_sum += trust_weight * role_multiplier(role);
        self.memberships += 1;
    }

    /// Adds an active alliance of the scene with one that stands.
    pub fn add_alliance(&mut self, weight: f64) {
        self.alliance_sum += weight;
        self.alliances += 1;
    }

    /// score = mean alliance weight (1 without alliances) × mean of weight × role multiplier (0 without memberships).
    pub fn trust(&self) -> Trust {
        let alliance_factor = match self.alliances {
            0 => 1.0,
            n => self.alliance_sum / f64::from(n),
        };
        let membership_mean = match self.memberships {
            0 => 0.0,
            n => self.membership_sum / f64::from(n),
        };
        Trust {
            score: alliance_factor * membership_mean,
            alliance_factor,
            membership_mean,
            memberships: self.memberships,
            alliances: self.alliances,
        }
    }
}

impl Trust {
    /// Whether storing this instead of `stored` would change anything but rounding.
    pub fn differs_from(&self, stored: &Trust) -> bool {
        // Written so that a stored NaN counts as different.
        let close = |a: f64, b: f64| (a - b).abs() <= TOLERANCE;
        !(close(self.score, stored.score)
            && close(self.alliance_factor, stored.alliance_factor)
            && close(self.membership_mean, stored.membership_mean)
            && self.memberships == stored.memberships
            && self.alliances == stored.alliances)
    }
}
