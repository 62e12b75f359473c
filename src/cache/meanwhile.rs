//! Fetching anew what is served meanwhile (RFC 5861 s3).

use std::sync::Arc;
use std::time::Duration;

use pingora::http::RequestHeader;
use tokio::time::timeout;
use tollhouse_filters::caching::{Ask, names, variant};

use super::flight::Joined;
use super::store::Entry;
use super::{Cache, Via, forbids_storing};
use crate::engine::Exchange;

/// How long a stale answer waits for what filters before the cache wait for, such as a token, until it is fetched anew.
const MEANWHILE: Duration = Duration::from_millis(50);

impl Cache {
    /// Fetches anew what is served meanwhile, which neither fails with that nor waits for it.
    pub(super) async fn revalidate(
        self: &Arc<Self>,
        ask: &Ask,
        exchange: &mut Exchange,
        request: &RequestHeader,
        via: Via,
        entry: Option<&Arc<Entry>>,
    ) {
        if forbids_storing(request) {
            return;
        }
        let mut wanted = ask.key.clone();
        wanted.extend(entry.iter().flat_map(|entry| variant(&names(entry.variant()), &request.headers)));
        let Joined::First(lead) = self.flights.join(wanted.clone().into()) else { return };
        exchange.ctx.cache.get_or_insert_default();
        if exchange.sees_upstream_request() && !self.is_ready(wanted, exchange, request).await {
            return;
        }
        let ended_by = exchange.ctx.ended_by.clone();
        let forked = timeout(MEANWHILE, exchange.fork(request)).await;
        exchange.ctx.ended_by = ended_by;
        if let Ok(Ok(fork)) = forked {
            drop(self.begin(ask, fork, request, via, entry.cloned(), lead.for_the_store()));
        }
    }

    /// Whether the filters before the cache have what they wait for. What takes them longer goes on beside this request,
    /// for those who ask after it; until then nobody waits for that in vain.
    async fn is_ready(&self, mut wanted: Vec<u8>, exchange: &mut Exchange, request: &RequestHeader) -> bool {
        wanted.extend(b"\0ahead");
        let Joined::First(first) = self.flights.join(wanted.into()) else { return false };
        let ahead = exchange.wait_ahead(request);
        let waiting = tokio::spawn(async move {
            ahead.await;
            drop(first);
        });
        timeout(MEANWHILE, waiting).await.is_ok()
    }
}
