//! Registries that are asked over HTTP, with the connections that side calls have.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use pingora::http::RequestHeader;
use serde::de::DeserializeOwned;
use tollhouse_filters::values::Url;

use super::server::{MOST, Problem, Server, joined, said};
use super::{Failed, World};
use crate::config::upstream::Tls;
use crate::upstream::MAX_WEIGHT;

/// For a whole question that is not held back by the registry.
pub(super) const AT_ONCE: Duration = Duration::from_secs(10);

/// A registry at a URL.
pub(super) struct Api {
    url: Url,
    tls: Option<Tls>,
    base: PathBuf,
    world: World,
    /// Which of its addresses is asked first, if its name has several: one that does badly is not the first again.
    first: AtomicUsize,
}

/// A question: what is asked for below the registry's URL.
pub(super) struct Question<'a> {
    pub(super) method: Method,
    /// Path and query; may hold secrets, and is told to nobody else.
    pub(super) target: String,
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) body: &'a str,
    /// For the whole of it.
    pub(super) limit: Duration,
}

/// What the registry says.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    body: Bytes,
}

impl Question<'_> {
    /// A question that is answered at once.
    pub(super) fn get(target: String) -> Self {
        let fields = vec![("accept", "application/json".to_owned())];
        Self { method: Method::GET, target, fields, body: "", limit: AT_ONCE }
    }
}

impl Answer {
    /// What a good answer holds.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Failed> {
        if self.status != StatusCode::OK {
            let said = said(&self.body).map(|said| format!(": {said}")).unwrap_or_default();
            return Err(format!("the registry answers {}{said}", self.status.as_u16()).into());
        }
        // Where it is wrong is told, not what it is: there may be a token in it.
        let wrong = |error: serde_json::Error| {
            format!("the answer of the registry is wrong at line {} column {}", error.line(), error.column())
        };
        serde_json::from_slice(&self.body).map_err(|error| wrong(error).into())
    }
}

impl Api {
    /// The registry at this URL; TLS by these settings, whose files are relative to `base`.
    pub(super) fn new(url: &Url, tls: Option<&Tls>, base: &Path, world: &World) -> Self {
        let first = AtomicUsize::new(fastrand::usize(..));
        Self { url: url.clone(), tls: tls.cloned(), base: base.to_owned(), world: world.clone(), first }
    }

    /// The path of the URL, without a slash at its end.
    pub(super) fn path(&self) -> &str {
        self.url.target().path().trim_end_matches('/')
    }

    /// Asks; the answer may be of any status.
    pub(super) async fn ask(&self, question: Question<'_>) -> Result<Answer, Failed> {
        let Question { method, target, fields, body, limit } = question;
        let wrong = |_| Failed::from("what is asked for cannot be written as a request");
        let mut head = RequestHeader::build(method, target.as_bytes(), None).map_err(wrong)?;
        for (name, value) in fields {
            head.insert_header(name, value).map_err(wrong)?;
        }
        head.insert_header("host", self.url.authority()).map_err(wrong)?;
        // Anew each time, as certificates may have been replaced. Connections are kept beyond it.
        let server = Server::new(&self.url, self.tls.as_ref(), &self.base).map_err(joined)?;
        let server = server.beginning_with(self.first.load(Ordering::Relaxed));
        let body = Bytes::copy_from_slice(body.as_bytes());
        let answer = self.asked(&server, head, body, limit).await;
        let is_well = answer.as_ref().is_ok_and(|answer| !answer.status.is_server_error());
        // An address that cannot be connected to would be waited for each time.
        if !is_well || server.has_refusals() {
            self.first.fetch_add(1, Ordering::Relaxed);
        }
        answer.map_err(|problem| problem.failed(&server))
    }

    async fn asked(
        &self,
        server: &Server,
        head: RequestHeader,
        body: Bytes,
        limit: Duration,
    ) -> Result<Answer, Problem> {
        let mut reply = server.send(&self.world, head, body, limit, limit).await?;
        let body = reply.body.read_all(MOST).await?;
        Ok(Answer { status: reply.head.status, headers: reply.head.headers.clone(), body })
    }
}

/// Checks how a registry is reached, files included.
///
/// # Errors
/// What is wrong, as paths to keys and messages.
pub(super) fn check(url: &Url, tls: Option<&Tls>, base: &Path) -> Result<(), Vec<(String, String)>> {
    Server::new(url, tls, base).map(drop)
}

/// The value of `Authorization` for a user and a password (RFC 7617).
pub(super) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}")))
}

/// A text as a part of a path or a query (RFC 3986 s2.3).
pub(super) fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

/// A query of these; what is not set is left out.
pub(super) fn query(pairs: &[(&str, Option<&str>)]) -> String {
    let pair = |(name, value): &(&str, Option<&str>)| value.map(|value| format!("{name}={}", encoded(value)));
    pairs.iter().filter_map(pair).collect::<Vec<_>>().join("&")
}

/// Weights as a registry has them, in their proportion, as whole numbers of at most 1000: as they are if they fit. What
/// is not nothing does not become nothing.
pub(super) fn scaled(weights: &[f64]) -> Vec<u32> {
    let most = f64::from(MAX_WEIGHT);
    let heaviest = weights.iter().copied().filter(|weight| weight.is_finite()).fold(0.0, f64::max);
    let fits = |weight: &f64| weight.fract() == 0.0 && (0.0..=most).contains(weight);
    let factor = if weights.iter().all(fits) || heaviest == 0.0 { 1.0 } else { most / heaviest };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is from 0 to 1000")]
    let scale = |weight: &f64| match (weight * factor).clamp(0.0, most) {
        scaled if *weight > 0.0 => scaled.round().max(1.0) as u32,
        _ => 0,
    };
    weights.iter().map(scale).collect()
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::sync::Arc;

    use async_trait::async_trait;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tollhouse_filters::values::Scalar;

    use super::*;
    use crate::config::Dns;
    use crate::config::discovery::Family;
    use crate::upstream::call::Caller;
    use crate::upstream::resolve::{Found, Lookup, Service};

    /// Every name has two addresses.
    struct Two;

    #[async_trait]
    impl Lookup for Two {
        async fn addresses(&self, _: &str, _: Family) -> Result<Found, Failed> {
            let v4 = [1, 2].map(|last| IpAddr::from([127, 0, 0, last])).into();
            Ok(Found { v4: Some(v4), v6: Some(Vec::new()), ttl: Duration::ZERO })
        }

        async fn services(&self, _: &str) -> Result<(Vec<Service>, Duration), Failed> {
            Err(Failed::from("there are no services here"))
        }

        fn set(&self, _: &Dns) {}
    }

    #[tokio::test]
    async fn an_address_that_cannot_be_connected_to_is_not_the_first_again() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://registry.test:{}", listener.local_addr().unwrap().port());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut room = [0; 4096];
                    while stream.read(&mut room).await.is_ok_and(|count| count > 0) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.unwrap();
                    }
                });
            }
        });
        let world = World { lookup: Arc::new(Two), caller: Caller::new() };
        let api = Api::new(&Url::read(&url).unwrap(), None, Path::new(""), &world);
        // Nobody listens at the second one.
        api.first.store(1, Ordering::Relaxed);
        for _ in 0..2 {
            let answer = api.ask(Question::get("/".to_owned())).await.unwrap();
            assert_eq!(answer.status, StatusCode::OK);
            assert_eq!(api.first.load(Ordering::Relaxed), 2, "the other one, and then it stays");
        }
    }

    #[test]
    fn weights_keep_their_proportion_and_what_is_not_nothing_stays_so() {
        assert_eq!(scaled(&[1.0, 3.0, 0.0]), [1, 3, 0]);
        assert_eq!(scaled(&[0.5, 1.0, 0.001]), [500, 1000, 1]);
        assert_eq!(scaled(&[65535.0, 1.0]), [1000, 1]);
        assert_eq!(scaled(&[0.0, f64::NAN, -1.0]), [0, 0, 0]);
    }

    #[test]
    fn what_has_a_meaning_in_urls_is_escaped() {
        let query = query(&[("a", Some("x&y=z/ü")), ("b", None), ("c", Some("@"))]);
        assert_eq!(query, "a=x%26y%3Dz%2F%C3%BC&c=%40");
    }
}
