//! A gateway with a cache before an origin that counts.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::Value;

use super::{Answer, Gateway, Head, Origin, request, soon};

/// Between two looks at the numbers, which cost the gateway time.
const PAUSE: Duration = Duration::from_millis(5);

/// An origin, and a gateway before it whose only route has the filter `cache`.
pub(crate) struct Cached {
    pub(crate) gateway: Gateway,
    /// Gone with it.
    _origin: Origin,
    seen: Arc<Mutex<Vec<Head>>>,
    /// The document's upstreams and routes.
    rest: String,
}

fn document(server: &str, rest: &str) -> String {
    format!("server: {{cache: {{{server}}}}}\n{rest}")
}

impl Cached {
    /// With these options; the origin answers its `n`-th request, from 1, with these bytes.
    pub(crate) async fn new(
        options: &str,
        answer: impl Fn(usize, &Head) -> String + Send + Sync + 'static,
    ) -> Self {
        Self::with(&format!("[cache: {options}]"), answer).await
    }

    /// With these filters.
    pub(crate) async fn with(
        filters: &str,
        answer: impl Fn(usize, &Head) -> String + Send + Sync + 'static,
    ) -> Self {
        Self::kept("", filters, answer).await
    }

    /// With these filters, and this in `server.cache`.
    pub(crate) async fn kept(
        server: &str,
        filters: &str,
        answer: impl Fn(usize, &Head) -> String + Send + Sync + 'static,
    ) -> Self {
        let routes =
            format!("routes: [{{name: all, match: {{paths: [/*]}}, upstream: o, filters: {filters}}}]\n");
        Self::routed(server, &routes, answer).await
    }

    /// With these routes, and whatever else stands in a document, before the upstream `o`.
    pub(crate) async fn routed(
        server: &str,
        routes: &str,
        answer: impl Fn(usize, &Head) -> String + Send + Sync + 'static,
    ) -> Self {
        let seen: Arc<Mutex<Vec<Head>>> = Arc::default();
        let (heads, answer) = (seen.clone(), Arc::new(answer));
        let origin = Origin::new(move |mut wire| {
            let (heads, answer) = (heads.clone(), answer.clone());
            async move {
                while let Ok(head) = wire.head().await {
                    let Ok(_) = wire.body(&head).await else { return };
                    let nth = {
                        let mut heads = heads.lock();
                        heads.push(head.clone());
                        heads.len()
                    };
                    let bytes = answer(nth, &head);
                    let last = bytes.is_empty() || bytes.contains("connection: close");
                    wire.send(bytes).await;
                    if last {
                        return;
                    }
                }
            }
        })
        .await;
        let rest =
            format!("upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\n{routes}", origin.address);
        let gateway = Gateway::administered(&document(server, &rest)).await;
        Self { gateway, _origin: origin, seen, rest }
    }

    /// Ends the gateway, does something, and starts it again.
    pub(crate) async fn restart(self, meanwhile: impl FnOnce()) -> Self {
        let Self { mut gateway, .. } = self;
        gateway.signal("TERM");
        assert!(gateway.ended().await.success(), "it ends by itself");
        meanwhile();
        Self { gateway: gateway.again().await, ..self }
    }

    /// Reloads with something else in `server.cache`.
    pub(crate) async fn reload(&self, server: &str) {
        self.gateway.rewrite_administered(&document(server, &self.rest));
        let answer = self.gateway.ask_admin("POST /api/reload", "").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }

    /// What the admin API tells of the store.
    pub(crate) async fn numbers(&self) -> Value {
        self.gateway.ask_admin("GET /api/cache", "").await.json()
    }

    /// Waits until so many answers are stored; who asked has them a little earlier.
    pub(crate) async fn stored(&self, answers: usize) {
        let line = format!("tollhouse_cache_fills_total{{result=\"stored\"}} {answers}\n");
        let stored = async {
            while !self.gateway.ask_admin("GET /metrics", "").await.text().contains(&line) {
                tokio::time::sleep(PAUSE).await;
            }
        };
        soon(&line, stored).await;
    }

    /// Waits until one of these numbers, such as `/disk/writes`, is so high.
    pub(crate) async fn counts(&self, pointer: &str, least: u64) {
        let counted = async {
            while self.numbers().await.pointer(pointer).and_then(Value::as_u64).unwrap_or(0) < least {
                tokio::time::sleep(PAUSE).await;
            }
        };
        soon(pointer, counted).await;
    }

    /// What the origin was asked.
    pub(crate) fn seen(&self) -> Vec<Head> {
        self.seen.lock().clone()
    }

    /// How often the origin was asked.
    pub(crate) fn asked(&self) -> usize {
        self.seen.lock().len()
    }

    /// Sends a request such as `GET /a` with further lines.
    pub(crate) async fn send(&self, line: &str, fields: &str) -> Answer {
        request(self.gateway.address(), line, fields).await
    }

    /// Asks for a path.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(&format!("GET {path}"), "").await
    }
}

/// An answer with these lines and a body that tells which one it is.
pub(crate) fn numbered(nth: usize, fields: &str) -> String {
    let body = format!("answer {nth}");
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n{fields}\r\n{body}", body.len())
}
