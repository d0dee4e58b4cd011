//! The trust formula: the golden vectors of the trust operations guide, and what must hold for all inputs.

use proptest::prelude::*;
use rules_tests::trust::{Inputs, Trust, role_multiplier};

fn score(memberships: &[(&str, f64)], alliances: &[f64]) -> f64 {
    trust(memberships, alliances).score
}

fn trust(memberships: &[(&str, f64)], alliances: &[f64]) -> Trust {
    let mut inputs = Inputs::default();
    for (role, weight) in memberships {
        inputs.add_membership(role, *weight);
    }
    for weight in alliances {
        inputs.add_alliance(*weight);
    }
    inputs.trust()
}

#[test]
fn golden_vectors() {
    type Vector = (&'static [(&'static str, f64)], &'static [f64], f64);
    let vectors: [Vector; 14] = [
        (&[], &[], 0.0),
        (&[("member", 0.8)], &[], 0.4),
        (&[("curator", 0.8)], &[], 0.64),
        (&[("owner", 0.5)], &[], 0.5),
        (&[("owner", 0.8)], &[], 0.8),
        (&[("guest", 1.0)], &[], 0.3),
        (&[("member", 0.6), ("curator", 0.8), ("owner", 1.0)], &[], 1.94 / 3.0),
        (&[("member", 1.0)], &[0.5], 0.25),
        (&[("member", 1.0)], &[0.4, 0.6, 0.8], 0.3),
        (&[("owner", 0.9), ("curator", 0.7), ("member", 0.5), ("guest", 0.8)], &[0.9, 0.7], 0.39),
        (&[("curator", 0.8)], &[0.6, 0.8], 0.448),
        (&[("unknown_role", 0.5)], &[], 0.25),
        (&[("member", 0.0)], &[], 0.0),
        (&[("member", 1.0)], &[0.0], 0.0),
    ];
    for (memberships, alliances, expected) in vectors {
        let found = score(memberships, alliances);
        assert!((found - expected).abs() < 1e-9, "{memberships:?} {alliances:?}: {found}, expected {expected}");
    }
}

#[test]
fn roles_are_case_sensitive() {
    for role in ["OWNER", "Owner", "admin", "moderator", ""] {
        assert_eq!(role_multiplier(role), 0.5, "{role}");
    }
}

#[test]
fn alliances_alone_give_nothing() {
    assert_eq!(score(&[], &[1.0, 1.0]), 0.0);
}

fn roles() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["owner", "curator", "member", "guest", "other"])
}

proptest! {
    #[test]
    fn stays_within_zero_and_one(
        members in prop::collection::vec((roles(), 0.0..=1.0_f64), 0..50),
        alliances in prop::collection::vec(0.0..=1.0_f64, 0..20),
    ) {
        let trust = trust(&members, &alliances);
        prop_assert!((0.0..=1.0 + 1e-9).contains(&trust.score));
    }

    #[test]
    fn parts_multiply_to_the_score(
        members in prop::collection::vec((roles(), 0.0..=1.0_f64), 0..50),
        alliances in prop::collection::vec(0.0..=1.0_f64, 0..20),
    ) {
        let trust = trust(&members, &alliances);
        prop_assert_eq!(trust.score, trust.alliance_factor * trust.membership_mean);
        prop_assert_eq!(trust.memberships as usize, members.len());
        prop_assert_eq!(trust.alliances as usize, alliances.len());
    }

    #[test]
    fn order_changes_no_more_than_rounding(
        members in prop::collection::vec((roles(), 0.0..=1.0_f64), 1..200),
        alliances in prop::collection::vec(0.0..=1.0_f64, 0..50),
    ) {
        let forward = trust(&members, &alliances);
        let (mut members, mut alliances) = (members, alliances);
        members.reverse();
        alliances.reverse();
        prop_assert!(!forward.differs_from(&trust(&members, &alliances)));
    }

    #[test]
    fn more_trusted_members_never_lower_it(
        members in prop::collection::vec((roles(), 0.0..=0.5_f64), 1..20),
        which in any::<prop::sample::Index>(),
    ) {
        let before = score(&members, &[]);
        let mut members = members;
        let which = which.index(members.len());
        members[which].1 += 0.5;
        prop_assert!(score(&members, &[]) >= before - 1e-12);
    }

    #[test]
    fn without_alliances_a_full_alliance_changes_nothing(members in prop::collection::vec((roles(), 0.0..=1.0_f64), 0..20)) {
        prop_assert_eq!(score(&members, &[]), score(&members, &[1.0]));
    }
}

#[test]
fn a_stored_nan_differs() {
    let fine = trust(&[("owner", 1.0)], &[]);
    let broken = Trust { score: f64::NAN, ..fine };
    assert!(fine.differs_from(&broken));
    assert!(!fine.differs_from(&fine));
}
