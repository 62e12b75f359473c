//! Purges that gateways tell each other, over a store.
//!
//! Each purge is an entry of a journal that all read, on a thread of its own. What was missed is read later; where it
//! cannot be known any more, everything that is stored is in doubt.

use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tollhouse_filters::world::{Cached, Purged};

use super::Cache;
use super::store::{How, Purge};
use crate::store::{Journal, News, Place, RedisStore};

/// The name of the journal.
const JOURNAL: &str = "purges";
/// How long a start waits for what was purged meanwhile.
const FIRST: Duration = Duration::from_secs(1);

/// A purge as others are told of it.
#[derive(Serialize, Deserialize)]
struct Said {
    what: Purge,
    how: How,
}

/// Where purges are shared, if they are.
#[derive(Default)]
pub(super) struct Sharing(ArcSwapOption<Shared>);

struct Shared {
    store: Arc<RedisStore>,
    journal: Arc<Journal>,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<()>,
}

impl Cache {
    /// Shares purges over this store from now on, or over none. Waits, for a second at most, until it is known what
    /// others purged before.
    pub fn share(self: &Arc<Self>, store: Option<&Arc<RedisStore>>) {
        let before = self.sharing.0.load();
        let known = before.as_ref().map(|shared| &shared.store);
        if known.map(Arc::as_ptr) == store.map(Arc::as_ptr) {
            return;
        }
        let Some(store) = store else { return self.sharing.0.store(None) };
        let journal = store.journal(JOURNAL);
        let journal = match before.as_ref() {
            // What others could not be told, such as with a password of before, they are told now.
            Some(before) => journal.in_place_of(&before.journal),
            None => journal,
        };
        let journal = Arc::new(journal);
        let (stop, stopped) = oneshot::channel();
        let (tried, first) = mpsc::channel();
        let follow = follow(Arc::downgrade(self), journal.clone(), tried);
        let started = thread::Builder::new().name("cache-purges".to_owned()).spawn(move || {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(async {
                    tokio::select! {
                        _ = stopped => {}
                        () = follow => {}
                    }
                }),
                Err(error) => log::error!("cannot follow the purges of other gateways: {error}"),
            }
        });
        if let Err(error) = started {
            log::error!("cannot follow the purges of other gateways: {error}");
        }
        self.sharing.0.store(Some(Arc::new(Shared { store: store.clone(), journal, _stop: stop })));
        let _ = first.recv_timeout(FIRST);
    }

    /// Purges here and, where purges are shared, tells all others; within the store's deadline.
    pub async fn purge_everywhere(&self, what: Purge, how: How) -> Purged {
        let hits = self.purge(&what, how);
        let Some(shared) = self.sharing.0.load_full() else { return Purged { hits, shared: None } };
        let said = serde_json::to_vec(&Said { what, how }).unwrap_or_default();
        let told = shared.journal.say(said).await;
        self.counts.told(told);
        Purged { hits, shared: Some(told) }
    }

    /// The name of the store over which purges are shared, and how many wait to be told.
    #[must_use]
    pub fn shared(&self) -> Option<(Arc<str>, usize)> {
        let shared = self.sharing.0.load();
        shared.as_ref().map(|shared| (shared.store.name().clone(), shared.journal.late()))
    }

    /// Does what others did.
    fn follow(&self, news: News) {
        let mut gap = news.gap;
        for said in news.said {
            match serde_json::from_slice::<Said>(&said) {
                Ok(said) => {
                    self.counts.heard.inc();
                    self.purge(&said.what, said.how);
                }
                // Somebody missed something, or speaks as a later version does.
                Err(_) => gap = true,
            }
        }
        if gap {
            // A purge for good may be among what was missed.
            let hits = self.purge(&Purge::All, How::Doubt);
            if hits > 0 {
                self.counts.gaps.inc();
                log::warn!(answers = hits; "purges of other gateways may have been missed: what is stored is validated before it is served");
            }
        }
    }
}

/// Follows a journal until nobody wants that any more.
async fn follow(cache: Weak<Cache>, journal: Arc<Journal>, tried: mpsc::Sender<()>) {
    let mark = cache.upgrade().and_then(|cache| cache.store.mark());
    let mut reader = journal.read(mark.as_deref().and_then(Place::parse));
    loop {
        let news = reader.next().await;
        let Some(cache) = cache.upgrade() else { return };
        if let Some(news) = news {
            cache.follow(news);
            if let Some(place) = reader.place() {
                cache.store.set_mark(place.to_string());
            }
        }
        let _ = tried.send(());
    }
}

#[async_trait]
impl Cached for Cache {
    async fn purge_url(&self, url: &[u8], soft: bool) -> Purged {
        self.purge_everywhere(Purge::Url(url.to_vec()), if soft { How::Soft } else { How::Hard }).await
    }

    fn invalidate(&self, url: Vec<u8>) {
        self.purge(&Purge::Url(url), How::Hard);
    }
}
