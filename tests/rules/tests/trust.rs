//! The trust formula: the golden vectors of the trust operations guide, and what must hold for all inputs.

use proptest::prelude::*;
use rules_tests::trust::{Change, Inputs, Trust, membership_points, role_multiplier};

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
    fn order_changes_not_a_bit(
        members in prop::collection::vec((roles(), 0.0..=1.0_f64), 1..200),
        alliances in prop::collection::vec(0.0..=1.0_f64, 0..50),
    ) {
        let forward = trust(&members, &alliances);
        let (mut members, mut alliances) = (members, alliances);
        members.reverse();
        alliances.reverse();
        prop_assert_eq!(forward, trust(&members, &alliances));
    }

    #[test]
    fn agrees_with_the_formula_in_floating_point(
        members in prop::collection::vec((roles(), 0.0..=1.0_f64), 1..200),
        alliances in prop::collection::vec(0.0..=1.0_f64, 1..50),
    ) {
        let mean = members.iter().map(|(role, weight)| weight * role_multiplier(role)).sum::<f64>() / members.len() as f64;
        let factor = alliances.iter().sum::<f64>() / alliances.len() as f64;
        let found = trust(&members, &alliances);
        prop_assert!((found.membership_mean - mean).abs() < 1e-12 && (found.alliance_factor - factor).abs() < 1e-12);
        prop_assert!((found.score - mean * factor).abs() < 1e-12);
    }

    #[test]
    fn changes_in_any_portions_come_to_the_same_as_a_count(
        steps in prop::collection::vec((roles(), 0.0..=1.0_f64, any::<prop::sample::Index>(), any::<bool>()), 1..100),
        alliances in prop::collection::vec(0.0..=1.0_f64, 0..5),
        portion in 1_usize..10,
    ) {
        let mut members: Vec<(&str, f64)> = Vec::new();
        let mut stored = trust(&members, &alliances);
        let mut pending = Change::default();
        for (number, (role, weight, which, leaves)) in steps.iter().enumerate() {
            let change = if *leaves && !members.is_empty() {
                let (role, weight) = members.swap_remove(which.index(members.len()));
                Change { memberships: -1, membership_points: -membership_points(role, weight), ..Change::default() }
            } else {
                members.push((*role, *weight));
                Change { memberships: 1, membership_points: membership_points(role, *weight), ..Change::default() }
            };
            pending = pending.and(&change);
            if number % portion == 0 {
                let mut inputs = Inputs::default();
                prop_assert!(inputs.take_memberships(&stored, &pending));
                stored = inputs.trust_with(stored.alliance_factor, stored.alliances);
                pending = Change::default();
                prop_assert_eq!(stored, trust(&members, &alliances));
            }
        }
        // A count that sets the changes aside which are still to come is what they will be added to.
        let mut counted = Inputs::default();
        for (role, weight) in &members {
            counted.add_membership(role, *weight);
        }
        counted.set_aside(&pending);
        prop_assert_eq!(counted.trust_with(stored.alliance_factor, stored.alliances), stored);
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

#[test]
fn what_cannot_be_added_to_is_counted_anew() {
    let stored = trust(&[("owner", 0.5), ("guest", 1.0)], &[]);
    let takes = |stored: Trust, change: Change| Inputs::default().take_memberships(&stored, &change);
    assert!(takes(stored, Change::default()));
    assert!(!takes(stored, Change { recount: true, ..Change::default() }));
    assert!(!takes(Trust { membership_points: None, ..stored }, Change::default()));
    assert!(!takes(stored, Change { memberships: -3, ..Change::default() }), "fewer than no members");
    assert!(
        !takes(stored, Change { membership_points: i64::MAX / 2, ..Change::default() }),
        "more than members can add up to"
    );
    assert!(!takes(stored, Change { membership_points: -i64::MAX / 2, ..Change::default() }), "less than nothing");
}

#[test]
fn a_sum_that_is_too_large_asks_for_a_count() {
    let huge = Change { membership_points: i64::MAX, ..Change::default() };
    assert!(huge.and(&huge).recount && !huge.and(&Change::default()).recount);
    let many = Change { memberships: i32::MAX, ..Change::default() };
    assert!(many.and(&many).recount);
}

#[test]
fn decimal_weights_give_decimal_scores() {
    assert_eq!(score(&[("owner", 0.9), ("curator", 0.7), ("member", 0.5), ("guest", 0.8)], &[0.9, 0.7]), 0.39);
    assert_eq!(trust(&[("owner", 0.8), ("curator", 0.8)], &[]).membership_mean, 0.72);
}

#[test]
fn a_hundred_thousand_members_keep_their_sum() {
    let members = vec![("owner", 1.0); 100_000];
    assert_eq!(trust(&members, &[]).membership_points, Some(1_000_000_000_000_000_000));
    let too_many = vec![("owner", 1.0); 500_000];
    let trust = trust(&too_many, &[]);
    assert_eq!((trust.score, trust.membership_points), (1.0, None), "counted anew each time, and still right");
}
