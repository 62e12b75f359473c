//! What becomes of what is stored once its origin says that it still holds (RFC 9111 s4.3.4).

use std::sync::Arc;

use http::HeaderMap;
use http::header::{CONTENT_TYPE, ETAG, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, VARY};
use pingora::http::ResponseHeader;
use tollhouse_filters::caching::{Facts, NotStored, Vary};
use tollhouse_filters::problem::{self, Problem};

use super::{Came, Fill};
use crate::cache::flight::Phase;
use crate::cache::head;
use crate::cache::store::Entry;
use crate::cache::told::{Asker, Filled};
use crate::upstream::Upstream;

impl Fill {
    /// What is stored still holds, with what the 304 says of it.
    pub(super) async fn validated(mut self, mut asker: Asker, mut came: Came, upstream: Arc<Upstream>) {
        let Some(stored) = self.stored.take() else { return };
        let renewed = self.renewed(&stored, &mut came).await;
        match renewed {
            Ok(Some((entry, refused))) => {
                let entry = Arc::new(entry);
                self.renew(&stored, &entry, refused);
                self.finish(304, 0);
                asker.end(self.lead, Filled::Validated(entry, refused.map(NotStored::name)));
            }
            // It is about something else: asked again, without condition.
            Ok(None) => {
                for name in [IF_NONE_MATCH, IF_MODIFIED_SINCE] {
                    self.head.remove_header(&name);
                }
                match self.send(&upstream, &mut asker).await {
                    Ok(came) => self.answered(asker, came, &upstream).await,
                    Err(error) => self.failed(asker, &error),
                }
            }
            Err(problem) => self.own(asker, problem.into(), "filter").await,
        }
    }

    /// Stores what a 304 made of what is stored, in its place, and tells who waits; if it may not be stored, takes out
    /// what is.
    fn renew(&self, stored: &Arc<Entry>, entry: &Arc<Entry>, refused: Option<NotStored>) {
        if let Some(why) = refused {
            self.cache.counts.not_stored.inc();
            if !why.is_of_request() {
                self.cache.store.remove(stored);
            }
            return;
        }
        if entry.variant() != stored.variant() {
            // It is no longer for all that it was for, who would find it there.
            self.cache.store.remove(stored);
        }
        self.cache.put(&self.lead, entry, Some(stored));
        self.lead.tell(Phase::Stored(entry.clone()));
        self.cache.counts.stored.inc();
    }

    /// What a 304 makes of what is stored, and why that may not be stored, if so; none if it is about something else.
    async fn renewed(
        &mut self,
        stored: &Arc<Entry>,
        came: &mut Came,
    ) -> Result<Option<(Entry, Option<NotStored>)>, Problem> {
        let internal = || Problem::new(&problem::INTERNAL);
        let old = head::parse(stored.status(), &stored.lines_bytes()).map_err(|_| internal())?;
        let validated = &mut came.reply.head;
        let (one, other) = (old.headers.get(ETAG), validated.headers.get(ETAG));
        if other.is_some() && one.map(weakly) != other.map(weakly) {
            return Ok(None);
        }
        // Filters go by the type of what it is about, which a 304 seldom tells.
        if let Some(kind) =
            old.headers.get(CONTENT_TYPE).filter(|_| !validated.headers.contains_key(CONTENT_TYPE))
        {
            let _ = validated.insert_header(CONTENT_TYPE, kind.clone());
        }
        let says_by_what = validated.headers.contains_key(VARY);
        self.exchange.response(&self.head, validated).await?;
        if !says_by_what {
            keep_varying(&old.headers, validated);
        }
        let new = head::updated(old, validated).map_err(|_| internal())?;
        let known = self.facts(&new, came.times).and_then(|facts| Ok((facts, self.variant(&new)?)));
        let refused = known.as_ref().err().copied();
        let (facts, variant) = known.unwrap_or_else(|_| {
            let facts = Facts { no_cache: true, no_stale: true, ..*stored.facts() };
            (facts, stored.variant().to_vec())
        });
        Ok(Some((stored.renewed(head::lines(&new), variant, self.tags.clone(), facts), refused)))
    }
}

/// Adds to `Vary` of a 304, where only the filters behind the cache wrote one, what the stored answer varies by: they
/// added theirs to nothing, and it takes the place of what is stored (RFC 9111 s3.2).
fn keep_varying(stored: &HeaderMap, validated: &mut ResponseHeader) {
    if !validated.headers.contains_key(VARY) {
        return;
    }
    if let (Vary::By(written), Vary::By(known)) = (Vary::of(&validated.headers), Vary::of(stored)) {
        for name in known.iter().filter(|name| !written.contains(name)) {
            let _ = validated.append_header(VARY, HeaderValue::from(name.clone()));
        }
    }
}

/// A tag without its weakness.
fn weakly(tag: &HeaderValue) -> &[u8] {
    let tag = tag.as_bytes();
    tag.strip_prefix(b"W/").unwrap_or(tag)
}
