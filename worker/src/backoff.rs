//! Waiting longer after each failure, with full jitter so that workers do not come back all at once.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(10);
const SHORTEST: Duration = Duration::from_millis(20);

/// How often something failed in a row.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// It worked: the next failure is the first again.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How long to wait after one more failure: anything up to a limit that doubles, and is 10 s in the end.
    pub fn next(&mut self) -> Duration {
        let limit = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        limit.mul_f64(fastrand::f64()).max(SHORTEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_ten_seconds_and_are_spread() {
        let mut backoff = Backoff::default();
        assert!(backoff.next() <= FIRST);
        let waits: Vec<_> = (0..1000).map(|_| backoff.next()).collect();
        assert!(waits.iter().all(|wait| (SHORTEST..=LONGEST).contains(wait)));
        assert!(waits.iter().any(|wait| *wait > Duration::from_secs(9)));
        assert!(waits[50..].iter().any(|wait| *wait < Duration::from_secs(1)));
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
