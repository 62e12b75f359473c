//! When entries are refused for want of room, so that whoever operates the gateway is told of it once.

use std::sync::atomic::{AtomicU64, Ordering};

/// How long nothing is refused until that is over, in seconds.
const CALM: u64 = 60;

/// See the [module](self). Times are seconds, from 1.
#[derive(Default)]
pub(super) struct Refusals {
    /// When an entry was last refused; 0 where that is over.
    last: AtomicU64,
}

impl Refusals {
    /// Notes that an entry is refused; says whether that begins.
    pub(super) fn begin(&self, now: u64) -> bool {
        self.last.swap(now, Ordering::Relaxed) == 0
    }

    /// Whether it is over, for the first that asks after a while without any.
    pub(super) fn end(&self, now: u64) -> bool {
        let last = self.last.load(Ordering::Relaxed);
        let is_calm = last != 0 && now.saturating_sub(last) >= CALM;
        is_calm && self.last.compare_exchange(last, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_told_as_entries_begin_to_be_refused_and_once_when_that_is_over() {
        let refusals = Refusals::default();
        assert!(!refusals.end(1), "nothing was refused");
        assert!(refusals.begin(1));
        assert!(!refusals.begin(30) && !refusals.end(30));
        assert!(!refusals.end(89), "somebody was refused just now");
        assert!(refusals.end(90));
        assert!(!refusals.end(90), "it was told");
        assert!(refusals.begin(91));
    }
}
