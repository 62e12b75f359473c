//! A gateway with a cache before an origin that counts.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Answer, Gateway, Head, Origin, request};

/// An origin, and a gateway before it whose only route has the filter `cache`.
pub(crate) struct Cached {
    pub(crate) gateway: Gateway,
    /// Gone with it.
    _origin: Origin,
    seen: Arc<Mutex<Vec<Head>>>,
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
        let rest = format!(
            "upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]\n\
             routes: [{{name: all, match: {{paths: [/*]}}, upstream: o, filters: {filters}}}]\n",
            origin.address
        );
        let gateway = Gateway::administered(&rest).await;
        Self { gateway, _origin: origin, seen }
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
