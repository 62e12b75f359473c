//! How long a client may keep the gateway waiting: waiting uses patience up, and bytes give it back.

use std::num::NonZeroU64;
use std::time::{Duration, Instant};

/// Patience with one direction of one exchange. Who moves bytes at `rate` on average is waited for as long
/// as it takes; who does not, for `most` in all.
#[derive(Debug)]
pub struct Patience {
    most: Duration,
    left: Duration,
    /// Bytes a second that keep patience as it is; without one, any byte renews it.
    rate: Option<NonZeroU64>,
    /// Since when the client is waited for.
    since: Option<Instant>,
}

impl Patience {
    /// All patience there is.
    pub fn new(most: Duration, rate: Option<NonZeroU64>) -> Self {
        Self { most, left: most, rate, since: None }
    }

    /// The client is waited for; gives when patience is over.
    pub fn waits(&mut self, now: Instant) -> Instant {
        *self.since.get_or_insert(now) + self.left
    }

    /// When patience is over, if the client is waited for.
    pub fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + self.left)
    }

    /// The client moved so many bytes, maybe none, and is not waited for now; false if it took too long.
    pub fn moved(&mut self, bytes: usize, now: impl FnOnce() -> Instant) -> bool {
        let waited = self.since.take().map_or(Duration::ZERO, |since| now().saturating_duration_since(since));
        if waited.is_zero() && self.left == self.most {
            return true;
        }
        let left = (self.left + self.earned(bytes)).checked_sub(waited);
        self.left = left.unwrap_or_default().min(self.most);
        left.is_some()
    }

    /// The client is not waited for any more, whatever it does meanwhile.
    pub fn rests(&mut self) {
        self.since = None;
    }

    fn earned(&self, bytes: usize) -> Duration {
        let bytes = bytes as u64;
        match self.rate {
            Some(rate) => Duration::from_nanos(bytes.saturating_mul(1_000_000_000) / rate),
            None if bytes > 0 => self.most,
            None => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(30);

    /// Moves so many bytes after each wait of so many seconds; gives how many waits were suffered.
    fn suffered(rate: u64, waits: &[(u64, usize)]) -> usize {
        let mut patience = Patience::new(MOST, NonZeroU64::new(rate));
        let mut now = Instant::now();
        let moves = waits.iter().take_while(|(seconds, bytes)| {
            let end = patience.waits(now);
            now += Duration::from_secs(*seconds);
            assert!(patience.moved(*bytes, || now) || now >= end);
            patience.left > Duration::ZERO
        });
        moves.count()
    }

    #[test]
    fn a_drip_is_waited_for_once() {
        assert_eq!(suffered(240, &[(29, 1); 9]), 1);
        assert_eq!(suffered(240, &[(1, 1); 99]), 30);
        assert_eq!(suffered(0, &[(29, 1); 99]), 99, "without a rate each byte renews patience");
    }

    #[test]
    fn who_keeps_the_rate_on_average_may_pause() {
        assert_eq!(suffered(240, &[(1, 240); 9_999]), 9_999);
        assert_eq!(suffered(240, &[(29, 29 * 240); 999]), 999);
        assert_eq!(suffered(240, &[(1, 239), (0, 100_000), (29, 1), (29, 9_999), (13, 1)]), 5);
    }

    #[test]
    fn what_was_moved_at_once_buys_no_more_than_all_patience() {
        assert_eq!(suffered(240, &[(0, 100_000_000), (29, 1), (29, 1)]), 2);
    }

    #[test]
    fn time_in_which_nobody_waits_does_not_count() {
        let mut patience = Patience::new(MOST, NonZeroU64::new(240));
        let now = Instant::now();
        patience.waits(now);
        assert!(patience.moved(1, || now + Duration::from_secs(20)));
        let later = now + Duration::from_secs(3600);
        let end = patience.waits(later);
        assert!(end > later + Duration::from_secs(9) && end < later + Duration::from_secs(11));
        assert_eq!(patience.waits(later + Duration::from_secs(5)), end, "a wait begins once");
    }
}
