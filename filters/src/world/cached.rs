//! Answers that are stored: filters tell when they no longer hold.

use async_trait::async_trait;

/// What is stored of answers. URLs are as [`crate::caching::url`] writes them.
#[async_trait]
pub trait Cached: Send + Sync {
    /// Takes out all that is stored for a URL, here and in all gateways that share purges; if `soft`, it only becomes
    /// stale.
    async fn purge_url(&self, url: &[u8], soft: bool) -> Purged;

    /// Takes out, here alone, all that is stored for a URL.
    fn invalidate(&self, url: Vec<u8>);
}

/// What a purge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// How many answers it was, here.
    pub hits: u64,
    /// Whether other gateways know by now; none where purges are not shared.
    pub shared: Option<bool>,
}

/// Where nothing is stored: dry runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct NothingCached;

#[async_trait]
impl Cached for NothingCached {
    async fn purge_url(&self, _: &[u8], _: bool) -> Purged {
        Purged::default()
    }

    fn invalidate(&self, _: Vec<u8>) {}
}
