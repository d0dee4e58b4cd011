//! How much to take at a time: more while it goes well, half after it was too much.

use std::time::Duration;

/// A full batch that took longer is large enough.
const QUICK: Duration = Duration::from_millis(500);
/// Above the size that was last found good after a failure, a batch grows by this part of itself.
const CAREFUL_STEP: i32 = 8;

/// The size of the next batch.
#[derive(Debug, Clone, PartialEq)]
pub struct BatchSize {
    now: i32,
    least: i32,
    most: i32,
    /// Up to here it doubles.
    proven: i32,
}

impl BatchSize {
    /// Begins with a quarter of the largest size.
    pub fn up_to(most: i32) -> Self {
        Self { now: (most / 4).max(1), least: 1, most, proven: most }
    }

    /// Begins with the largest size, and never gets below the smallest.
    pub fn between(least: i32, most: i32) -> Self {
        Self { now: most, least, most, proven: most }
    }

    pub fn now(&self) -> i32 {
        self.now
    }

    /// A batch of this many ended well in this time.
    pub fn went_well(&mut self, count: usize, took: Duration) {
        if count < usize::try_from(self.now).unwrap_or_default() || took > QUICK {
            return;
        }
        let larger = match self.now < self.proven {
            true => self.now.saturating_mul(2).min(self.proven),
            false => self.now.saturating_add((self.now / CAREFUL_STEP).max(1)),
        };
        self.now = larger.min(self.most);
    }

    /// A batch ran into a timeout or a deadlock.
    pub fn was_too_much(&mut self) {
        self.now = (self.now / 2).max(self.least);
        self.proven = self.now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    fn after(mut size: BatchSize, full_batches: usize) -> BatchSize {
        for _ in 0..full_batches {
            size.went_well(size.now() as usize, SHORT);
        }
        size
    }

    #[test]
    fn starts_at_a_quarter_and_doubles_to_the_limit() {
        let sizes: Vec<_> = (0..4).map(|n| after(BatchSize::up_to(100), n).now()).collect();
        assert_eq!(sizes, [25, 50, 100, 100]);
        assert_eq!(BatchSize::up_to(1).now(), 1);
        assert_eq!(after(BatchSize::up_to(3), 2).now(), 3);
    }

    #[test]
    fn stays_when_a_batch_is_not_full_or_not_quick() {
        let mut size = BatchSize::up_to(100);
        size.went_well(24, SHORT);
        size.went_well(25, Duration::from_secs(1));
        size.went_well(0, SHORT);
        assert_eq!(size.now(), 25);
    }

    #[test]
    fn halves_to_one_and_grows_back_with_care() {
        let mut size = after(BatchSize::up_to(64), 2);
        size.was_too_much();
        assert_eq!(size.now(), 32);
        assert_eq!(after(size.clone(), 1).now(), 36);
        assert_eq!(after(size.clone(), 6).now(), 63);
        assert_eq!(after(size.clone(), 7).now(), 64);
        for _ in 0..10 {
            size.was_too_much();
        }
        assert_eq!(size.now(), 1);
        assert_eq!(after(size.clone(), 1).now(), 2);
        assert_eq!(after(size, 100).now(), 64);
    }

    #[test]
    fn never_leaves_its_bounds() {
        let mut size = BatchSize::between(500, 8000);
        assert_eq!(after(size.clone(), 3).now(), 8000);
        for _ in 0..10 {
            size.was_too_much();
        }
        assert_eq!(size.now(), 500);
        assert_eq!(after(BatchSize::up_to(i32::MAX), 100).now(), i32::MAX);
    }
}
