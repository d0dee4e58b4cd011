//! When to look at a queue again: at once after activity, then less and less often.

use std::time::Duration;

/// After something was found: what commits just after a look is found by the next.
const AFTER_WORK: Duration = Duration::from_millis(5);
/// After a notification: within this time others enqueue without notifying again.
const AFTER_NOTICE: Duration = Duration::from_millis(50);
/// Whoever has to wait this long has nothing to do.
const IDLE: Duration = Duration::from_millis(50);

/// The waits between looks that find nothing.
#[derive(Debug)]
pub struct Pace {
    next: Duration,
    longest: Duration,
}

impl Pace {
    /// Looks never lie further apart than this.
    pub fn new(longest: Duration) -> Self {
        Self { next: AFTER_WORK.min(longest), longest }
    }

    /// Something was found.
    pub fn found(&mut self) {
        self.next = AFTER_WORK.min(self.longest);
    }

    /// A notification came.
    pub fn noticed(&mut self) {
        self.next = self.next.min(AFTER_NOTICE);
    }

    /// How long to wait after a look that found nothing; the next wait is twice as long.
    pub fn wait(&mut self) -> Duration {
        let now = self.next;
        self.next = now.saturating_mul(2).min(self.longest);
        now
    }

    /// Whether nothing was found for so long that notifications are worth asking for.
    pub fn is_idle(&self) -> bool {
        self.next >= IDLE.min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(pace: &mut Pace, count: usize) -> Vec<u64> {
        (0..count).map(|_| pace.wait().as_millis() as u64).collect()
    }

    #[test]
    fn doubles_from_five_milliseconds_to_the_interval() {
        let mut pace = Pace::new(Duration::from_secs(1));
        assert_eq!(waits(&mut pace, 10), [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000]);
        pace.found();
        assert_eq!(waits(&mut pace, 2), [5, 10]);
    }

    #[test]
    fn a_notification_shortens_the_wait_but_never_lengthens_it() {
        let mut pace = Pace::new(Duration::from_secs(1));
        waits(&mut pace, 9);
        pace.noticed();
        assert_eq!(waits(&mut pace, 2), [50, 100]);
        pace.found();
        pace.noticed();
        assert_eq!(waits(&mut pace, 1), [5]);
    }

    #[test]
    fn is_idle_after_some_looks_without_work() {
        let mut pace = Pace::new(Duration::from_secs(1));
        assert!(!pace.is_idle());
        waits(&mut pace, 3);
        assert!(!pace.is_idle());
        waits(&mut pace, 1);
        assert!(pace.is_idle());
        pace.found();
        assert!(!pace.is_idle());
    }

    #[test]
    fn an_interval_below_the_first_wait_is_kept() {
        let mut pace = Pace::new(Duration::from_millis(2));
        assert_eq!(waits(&mut pace, 2), [2, 2]);
        assert!(pace.is_idle());
    }
}
