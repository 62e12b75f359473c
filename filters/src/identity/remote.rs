//! Calls to whoever vouches for callers: bounded in time and size, and redirects are not followed.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use pingora_http::RequestHeader;
use serde_json::{Map, Value};

use super::json;
use crate::values::Url;
use crate::world::{Client, UpstreamId};

/// The largest answer that is read, in bytes.
const LARGEST: usize = 256 * 1024;

/// A place that is called.
#[derive(Clone)]
pub(crate) struct Remote {
    client: Arc<dyn Client>,
    /// None where there is no network.
    to: Option<UpstreamId>,
    url: Url,
    timeout: Duration,
}

/// What came back.
pub(crate) struct Answer {
    pub(super) status: StatusCode,
    fields: HeaderMap,
    body: Bytes,
}

impl Remote {
    /// The place at this URL, called through an upstream of the document, or through its origin's own.
    pub(crate) fn new(
        client: &Arc<dyn Client>,
        url: &Url,
        via: Option<UpstreamId>,
        timeout: Duration,
    ) -> Self {
        let to = via.or_else(|| client.origin(&url.origin()));
        Self { client: client.clone(), to, url: url.clone(), timeout }
    }

    /// A place that somebody else than the document's author named: it has to be public, if it is not where
    /// this one is.
    pub(super) fn beside(&self, url: &Url) -> Self {
        let mut origin = url.origin();
        let to = if origin == self.url.origin() {
            self.to
        } else {
            origin.public_only = true;
            self.client.origin(&origin)
        };
        Self { to, url: url.clone(), ..self.clone() }
    }

    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// Asks for what is there.
    pub(super) async fn get(&self) -> Result<Answer, String> {
        self.send(Method::GET, Bytes::new(), Vec::new()).await
    }

    /// Sends a form (`application/x-www-form-urlencoded`).
    pub(crate) async fn post(
        &self,
        form: String,
        mut fields: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Answer, String> {
        fields.push((CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded")));
        self.send(Method::POST, form.into(), fields).await
    }

    async fn send(
        &self,
        method: Method,
        body: Bytes,
        fields: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Answer, String> {
        let to = self.to.ok_or("there is no network")?;
        let target = self.url.target().as_str();
        let head = RequestHeader::build(method, target.as_bytes(), Some(fields.len() + 2));
        let mut head = head.map_err(|error| error.to_string())?;
        let accept = (ACCEPT, HeaderValue::from_static("application/json"));
        for (name, value) in fields.into_iter().chain([accept]) {
            head.insert_header(name, value).map_err(|error| error.to_string())?;
        }
        head.insert_header(HOST, self.url.authority()).map_err(|error| error.to_string())?;
        let sent = self.client.send(to, head, body, Some(self.timeout)).await;
        let mut reply = sent.map_err(|error| error.to_string())?;
        let body = reply.read_all(LARGEST).await.map_err(|error| error.to_string())?;
        Ok(Answer { status: reply.head.status, fields: reply.head.headers.clone(), body })
    }
}

impl Answer {
    /// The object that it is, if all is well.
    pub(crate) fn object(&self) -> Result<Map<String, Value>, String> {
        if self.status.is_redirection() {
            return Err(format!("the answer is {}, and redirects are not followed", self.status.as_u16()));
        }
        if self.status != StatusCode::OK {
            return Err(format!("the answer is {}", self.status.as_u16()));
        }
        json::object(&self.body).ok_or_else(|| "the answer is no JSON object".to_owned())
    }

    /// The code of an error of OAuth that it is (RFC 6749 s5.2).
    pub(super) fn refusal(&self) -> Option<String> {
        let is_one = [StatusCode::BAD_REQUEST, StatusCode::UNAUTHORIZED].contains(&self.status);
        let object = json::object(&self.body).filter(|_| is_one)?;
        object.get("error").and_then(Value::as_str).map(str::to_owned)
    }

    /// Bytes of its content.
    pub(super) fn len(&self) -> usize {
        self.body.len()
    }

    /// How long it says that it is good for; none if it does not say.
    pub(super) fn max_age(&self) -> Option<Duration> {
        max_age(&self.fields)
    }
}

/// How long an answer with these fields says that it is good for (RFC 9111 s5.2.2), by the strictest of what it says;
/// none if it does not say.
pub(crate) fn max_age(fields: &HeaderMap) -> Option<Duration> {
    let lines = fields.get_all(CACHE_CONTROL).into_iter().filter_map(|line| line.to_str().ok());
    let directives = lines.flat_map(|line| line.split(',')).map(str::trim);
    let times = directives.filter_map(|directive| match directive.split_once('=') {
        Some((name, seconds)) if name.eq_ignore_ascii_case("max-age") => {
            seconds.trim_matches('"').parse().ok().map(Duration::from_secs)
        }
        None if ["no-store", "no-cache"].iter().any(|name| directive.eq_ignore_ascii_case(name)) => {
            Some(Duration::ZERO)
        }
        _ => None,
    });
    times.min()
}
