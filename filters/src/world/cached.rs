//! Answers that are stored: filters tell when they no longer hold.

/// What is stored of answers.
pub trait Cached: Send + Sync {
    /// Takes out all that is stored for a URL, as [`crate::caching::url`] writes it; if `soft`, it only becomes
    /// stale. Gives how many answers it was.
    fn purge_url(&self, url: &[u8], soft: bool) -> u64;
}

/// Where nothing is stored: dry runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingCached;

impl Cached for NothingCached {
    fn purge_url(&self, _: &[u8], _: bool) -> u64 {
        0
    }
}
