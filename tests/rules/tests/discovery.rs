//! Gap levels and their severity: the vectors of the runbook's workers, and what must hold for all inputs.

use proptest::prelude::*;
use rules_tests::discovery::{ENOUGH, GapLevel};

#[test]
fn vectors() {
    use GapLevel::{Critical, Low, None};
    let vectors =
        [(0, Critical), (1, Low), (2, Low), (3, Low), (4, Low), (5, None), (6, None), (1_000, None), (u64::MAX, None)];
    for (inventory, expected) in vectors {
        assert_eq!(GapLevel::of(inventory), expected, "{inventory}");
    }
}

#[test]
fn names() {
    for level in GapLevel::ALL {
        assert_eq!(GapLevel::named(level.name()), Some(level));
    }
    for name in ["", "NONE", "Low", "critical ", "severe"] {
        assert_eq!(GapLevel::named(name), None, "{name}");
    }
}

#[test]
fn severity_without_demand_is_the_level() {
    assert_eq!(GapLevel::ALL.map(|level| level.severity(0)), [0.0, 1.0, 2.0]);
    assert_eq!(GapLevel::Critical.severity(1), 2.5);
    assert_eq!(GapLevel::Low.severity(3), 1.75);
}

fn levels() -> impl Strategy<Value = GapLevel> {
    prop::sample::select(GapLevel::ALL.to_vec())
}

proptest! {
    #[test]
    fn enough_is_no_gap_and_less_is_one(inventory in any::<u64>()) {
        prop_assert_eq!(GapLevel::of(inventory) == GapLevel::None, inventory >= ENOUGH);
    }

    #[test]
    fn more_inventory_is_never_worse(inventory in 0..u64::MAX) {
        prop_assert!(GapLevel::of(inventory + 1) <= GapLevel::of(inventory));
    }

    #[test]
    fn a_worse_level_is_more_severe_whatever_the_demand(level in levels(), other in levels(), demand in any::<u64>(), theirs in any::<u64>()) {
        if level > other {
            prop_assert!(level.severity(demand) > other.severity(theirs));
        }
    }

    #[test]
    fn more_demand_is_more_severe(level in levels(), demand in 0..10_000_000_u64) {
        prop_assert!(level.severity(demand + 1) > level.severity(demand));
    }

    #[test]
    fn more_demand_is_never_less_severe(level in levels(), demand in 0..u64::MAX) {
        prop_assert!(level.severity(demand + 1) >= level.severity(demand));
    }
}
