//! The two queues that a worker serves; they differ in names only.

/// A queue of leased work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    Events,
    Discovery,
}

impl Queue {
    pub const ALL: [Self; 2] = [Self::Events, Self::Discovery];

    /// Its name in notifications, log lines and progress.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Discovery => "discovery",
        }
    }

    /// One piece of its work, in words.
    pub fn item(self) -> &'static str {
        match self {
            Self::Events => "event",
            Self::Discovery => "discovery item",
        }
    }

    /// A value for two fields of a log line: the one of events, or the one of discovery items.
    pub fn fields<T>(self, value: T) -> (Option<T>, Option<T>) {
        match self {
            Self::Events => (Some(value), None),
            Self::Discovery => (None, Some(value)),
        }
    }
}
