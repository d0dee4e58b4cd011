//! How large a gap is between what is wanted and what is offered, and which gap is worse.

/// So many listings are enough.
pub const ENOUGH: u64 = 5;

/// How badly an interest is served; worse is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum GapLevel {
    None,
    Low,
    Critical,
}

impl GapLevel {
    pub const ALL: [GapLevel; 3] = [GapLevel::None, GapLevel::Low, GapLevel::Critical];

    /// The level of a category with so many listings in stock.
    pub fn of(inventory: u64) -> GapLevel {
        match inventory {
            0 => GapLevel::Critical,
            1..ENOUGH => GapLevel::Low,
            _ => GapLevel::None,
        }
    }

    /// Its name in the tables.
    pub fn name(self) -> &'static str {
        match self {
            GapLevel::None => "none",
            GapLevel::Low => "low",
            GapLevel::Critical => "critical",
        }
    }

    /// The level of that name; names are case-sensitive.
    pub fn named(name: &str) -> Option<GapLevel> {
        GapLevel::ALL.into_iter().find(|level| level.name() == name)
    }

    /// A number that puts the worst gap first: none 0 to 1, low 1 to 2, critical 2 to 3, growing with the users who want it.
    pub fn severity(self, demand: u64) -> f64 {
        let level = match self {
            GapLevel::None => 0.0,
            GapLevel::Low => 1.0,
            GapLevel::Critical => 2.0,
        };
        let demand = demand as f64;
        // Without users it is the lower bound; huge demand must not round up to the next level.
        level + (demand / (demand + 1.0)).min(0.999_999_999)
    }
}
