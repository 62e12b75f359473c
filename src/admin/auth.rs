//! Who may use the API: everybody on loopback may look, the token's holder may do.

use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::problem::problem;
use crate::snapshot::Live;

/// What the check needs to know.
#[derive(Clone)]
pub(super) struct Guard {
    pub(super) live: Arc<Live>,
    pub(super) on_loopback: bool,
    /// Whether the endpoint changes something.
    pub(super) write: bool,
}

/// Lets a request pass or answers it.
pub(super) async fn check(State(guard): State<Guard>, request: Request<Body>, next: Next) -> Response {
    match refusal(&guard, request.headers()) {
        Some((status, detail)) => {
            let mut answer = problem(status, detail).into_response();
            if status == StatusCode::UNAUTHORIZED {
                answer
                    .headers_mut()
                    .insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
            }
            answer
        }
        None => next.run(request).await,
    }
}

fn refusal(guard: &Guard, headers: &HeaderMap) -> Option<(StatusCode, &'static str)> {
    let write = guard.write;
    let snapshot = guard.live.load();
    let token = snapshot.admin.token.as_ref();
    if token.is_some_and(|token| bears(headers, token.expose())) {
        return None;
    }
    if token.is_none() && (write || !guard.on_loopback) {
        return Some((StatusCode::FORBIDDEN, "set `admin.token` in the configuration to use this"));
    }
    if write || !guard.on_loopback {
        return Some((
            StatusCode::UNAUTHORIZED,
            "send `Authorization: Bearer` with the token of `admin.token`",
        ));
    }
    // A page in a browser on this machine could be made to ask under a name of its own.
    if !asks_for_loopback(headers) {
        return Some((StatusCode::FORBIDDEN, "ask for a loopback address, or send the token"));
    }
    // Or to ask under ours, which it may do though it may not read the answer.
    of_foreign_page(headers).then_some((StatusCode::FORBIDDEN, "a page from elsewhere asks; send the token"))
}

/// Compares digests, so that the time taken says nothing about the token.
fn bears(headers: &HeaderMap, token: &str) -> bool {
    let given = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let given = given
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
    given.is_some_and(|(_, given)| Sha256::digest(given.trim()) == Sha256::digest(token))
}

/// Whether a browser asks on behalf of a page that did not come from loopback (RFC 6454 s7; Fetch Metadata s2.3).
fn of_foreign_page(headers: &HeaderMap) -> bool {
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let site = text("sec-fetch-site").is_some_and(|site| !matches!(site, "none" | "same-origin"));
    let origin = text("origin")
        .is_some_and(|origin| !origin.split_once("://").is_some_and(|(_, authority)| is_loopback(authority)));
    site || origin
}

fn asks_for_loopback(headers: &HeaderMap) -> bool {
    is_loopback(headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default())
}

/// Whether an authority names this machine.
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::{Compiler, Mode};
    use crate::source;

    /// A guard of a listener off loopback.
    fn guard(admin: &str) -> Guard {
        let text = format!(
            "{{version: 1, listeners: [{{name: m, address: '127.0.0.1:0'}}], admin: {{address: '127.0.0.1:0'{admin}}}}}"
        );
        let loaded = Arc::new(source::load_str(&text, "document", None, &|_| None).unwrap());
        let (registry, world) = (tollhouse_filters::builtin(), tollhouse_filters::world::World::dry());
        let compiler = Compiler { registry: &registry, world: &world, previous: None, mode: Mode::Dry };
        let live = Arc::new(Live::new(compiler.compile(&loaded).unwrap()));
        Guard { live, on_loopback: false, write: false }
    }

    fn status(guard: &Guard, authorization: Option<&str>) -> Option<u16> {
        let mut headers = HeaderMap::from_iter([(header::HOST, "localhost".parse().unwrap())]);
        headers.extend(authorization.map(|value| (header::AUTHORIZATION, value.parse().unwrap())));
        refusal(guard, &headers).map(|(status, _)| status.as_u16())
    }

    #[test]
    fn off_loopback_every_read_needs_the_token() {
        let guard = guard(", token: abc");
        assert_eq!(status(&guard, None), Some(401));
        assert_eq!(status(&guard, Some("Bearer abd")), Some(401));
        assert_eq!(status(&guard, Some("Bearer abc")), None);
    }

    #[test]
    fn a_page_from_elsewhere_asks_in_vain() {
        let guard = Guard { on_loopback: true, ..guard("") };
        let status = |fields: &[(&'static str, &'static str)]| {
            let fields = [&[("host", "127.0.0.1:9900")], fields].concat();
            let name = header::HeaderName::from_static;
            let headers = fields.into_iter().map(|(field, value)| (name(field), value.parse().unwrap()));
            refusal(&guard, &headers.collect()).map(|(status, _)| status.as_u16())
        };
        for foreign in [
            ("origin", "https://evil.example"),
            ("origin", "null"),
            ("origin", "http://127.0.0.1.evil.example"),
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-site", "same-site"),
        ] {
            assert_eq!(status(&[foreign]), Some(403), "{foreign:?}");
        }
        for own in
            [("origin", "http://localhost:9900"), ("origin", "http://[::1]:9900"), ("sec-fetch-site", "none")]
        {
            assert_eq!(status(&[own]), None, "{own:?}");
        }
    }

    #[test]
    fn off_loopback_without_a_token_nobody_reads() {
        assert_eq!(status(&guard(""), Some("Bearer ")), Some(403));
    }
}
