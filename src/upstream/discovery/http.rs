//! Registries that are asked over HTTP, with the connections that side calls have.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};
use pingora::http::RequestHeader;
use serde::de::DeserializeOwned;
use serde_json::json;
use tollhouse_filters::values::Url;

use super::{Failed, World};
use crate::config::upstream::Tls;
use crate::upstream::backend::Endpoint;
use crate::upstream::call::CallOptions;
use crate::upstream::{MAX_WEIGHT, Upstream};

/// The longest answer that is read, in bytes.
const LONGEST: usize = 16 << 20;
/// For a whole question that is not held back by the registry.
pub(super) const AT_ONCE: Duration = Duration::from_secs(10);

/// A registry at a URL.
pub(super) struct Api {
    url: Url,
    tls: Option<Tls>,
    base: PathBuf,
    world: World,
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
            return Err(format!("the registry answers {}", self.status.as_u16()).into());
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
        Self { url: url.clone(), tls: tls.cloned(), base: base.to_owned(), world: world.clone() }
    }

    /// The path of the URL, without a slash at its end.
    pub(super) fn path(&self) -> &str {
        self.url.target().path().trim_end_matches('/')
    }

    /// Asks; the answer may be of any status.
    pub(super) async fn ask(&self, question: Question<'_>) -> Result<Answer, Failed> {
        let upstream = self.upstream().await?;
        let Question { method, target, fields, body, limit } = question;
        let wrong = |_| Failed::from("what is asked for cannot be written as a request");
        let mut head = RequestHeader::build(method, target.as_bytes(), None).map_err(wrong)?;
        for (name, value) in fields {
            head.insert_header(name, value).map_err(wrong)?;
        }
        head.insert_header("host", self.url.authority()).map_err(wrong)?;
        let read = Some(Some(limit));
        let options = CallOptions { timeout: Some(limit), read, ..CallOptions::default() };
        let body = Bytes::copy_from_slice(body.as_bytes());
        let sent = self.world.caller.send(&upstream, head, body, options).await;
        let failed = |error: crate::upstream::call::CallError| Failed::from(error.to_string());
        let mut reply = sent.map_err(failed)?;
        let body = reply.body.read_all(LONGEST).await.map_err(failed)?;
        Ok(Answer { status: reply.head.status, headers: reply.head.headers.clone(), body })
    }

    /// Where the registry is now. Connections are kept beyond it, as they go by address and trust.
    async fn upstream(&self) -> Result<Upstream, Failed> {
        let origin = self.url.origin();
        let host =
            if origin.host.contains(':') { format!("[{}]", origin.host) } else { origin.host.to_string() };
        let written = json!({
            "name": "registry", "backends": [{"address": format!("{host}:{}", origin.port)}], "retries": {"max": 0},
        });
        let mut written: crate::config::Upstream =
            serde_json::from_value(written).map_err(|_| Failed::from("the URL leads nowhere"))?;
        if origin.tls {
            let mut tls = self.tls.clone().unwrap_or_default();
            tls.sni.get_or_insert_with(|| origin.host.to_string());
            written.tls = Some(tls);
        }
        let why = |problems: Vec<(String, String)>| {
            let first = problems.into_iter().next().map(|(path, message)| format!("{path}: {message}"));
            Failed::from(first.unwrap_or_default())
        };
        let upstream = Upstream::build(&written, &self.base, None).map_err(why)?;
        if origin.host.parse::<std::net::IpAddr>().is_err() {
            let found = self.world.lookup.lookup(&origin.host).await;
            let found = found.map_err(|why| format!("{} has no address: {why}", origin.host))?;
            let endpoint = |ip| Endpoint { address: SocketAddr::new(ip, origin.port), health: None };
            let addresses = [found.v4, found.v6].into_iter().flatten().flatten();
            upstream.backends()[0].set_endpoints(addresses.map(endpoint).collect());
        }
        Ok(upstream)
    }
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
    use super::*;

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
