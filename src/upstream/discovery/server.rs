//! What registries that speak HTTP have in common: a server that is asked for JSON, whole or line by line.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora::http::RequestHeader;
use serde_json::{Value, json};
use tollhouse_filters::values::{DurationRange, Url};

use super::{Failed, World};
use crate::config::retries::RouteRetries;
use crate::config::upstream::{self as written, Tls};
use crate::upstream::Upstream;
use crate::upstream::backend::Endpoint;
use crate::upstream::call::{BodyStream, CallError, CallOptions, Reply};
use crate::upstream::resolve::Found;
use crate::upstream::trust::Trust;

/// The longest that a whole answer takes.
const ANSWER: Duration = Duration::from_secs(30);
/// The longest wait for more of it.
const QUIET: Duration = Duration::from_secs(5);
/// The longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// Most bytes of an answer, and of one line of those that come line by line.
pub(super) const MOST: usize = 16 << 20;
/// Most bytes of an answer that says what went wrong.
const MOST_OF_ERRORS: usize = 64 << 10;

/// One server of a registry. Cheap to make: connections are the caller's.
pub(super) struct Server {
    upstream: Upstream,
    host: Box<str>,
    port: u16,
    /// What paths are below of; does not end in `/`.
    below: Box<str>,
    /// Which of its addresses is asked first, counted round, if its name has several.
    first: usize,
}

/// An answer line by line.
pub(super) struct Lines {
    body: BodyStream,
    read: BytesMut,
    /// Bytes of `read` in which there is no end of a line.
    searched: usize,
}

/// Why a server did not answer as it should.
#[derive(Debug)]
pub(super) enum Problem {
    /// It was not reached, or broke off.
    Call(CallError),
    /// It answered with this status, and with this body.
    Status(u16, Bytes),
    /// It answered, but what is said here is wrong with it.
    Said(String),
}

impl Server {
    /// The server at this URL; files of `tls` are relative to `base`.
    ///
    /// # Errors
    /// What is wrong with `tls`, as paths to its keys and messages.
    pub(super) fn new(url: &Url, tls: Option<&Tls>, base: &Path) -> Result<Self, Vec<(String, String)>> {
        let origin = url.origin();
        let host =
            if origin.host.contains(':') { format!("[{}]", origin.host) } else { origin.host.to_string() };
        // Whoever follows a registry asks again by himself, and later each time; of other addresses, `send` knows.
        let written = json!({
            "name": "registry", "backends": [{"address": format!("{host}:{}", origin.port)}], "retries": {"max": 0},
        });
        let written: Result<written::Upstream, _> = serde_json::from_value(written);
        let mut written = written.map_err(|error| vec![(String::new(), error.to_string())])?;
        written.tls = match (tls, origin.tls) {
            (Some(_), false) => {
                return Err(vec![("tls".to_owned(), format!("is for `https`, not for {url}"))]);
            }
            (_, false) => None,
            (tls, true) => {
                let mut tls = tls.cloned().unwrap_or_default();
                tls.sni.get_or_insert_with(|| origin.host.to_string());
                Some(tls)
            }
        };
        let mut upstream = Upstream::build(&written, base, None)?.with_keepalive();
        upstream.name = url.as_str().into();
        let below = url.target().path().trim_end_matches('/').into();
        Ok(Self { upstream, host: origin.host, port: origin.port, below, first: fastrand::usize(..) })
    }

    /// The same server, asked at this one of its addresses first, and at any without this. They are not asked in turn:
    /// what one of them says may be ahead of what the others do.
    pub(super) fn beginning_with(mut self, first: usize) -> Self {
        self.first = first;
        self
    }

    /// The same server, trusted and told who asks by what was read elsewhere.
    pub(super) fn trusting(mut self, trust: Trust) -> Self {
        self.upstream = self.upstream.trusting(trust);
        self
    }

    /// Whether some of its addresses could not be connected to.
    pub(super) fn has_refusals(&self) -> bool {
        self.upstream.backends().iter().any(|backend| backend.has_refusals())
    }

    /// What it is called.
    pub(super) fn url(&self) -> &str {
        &self.upstream.name
    }

    /// A head of a request, for a path and query below that of the server's URL.
    pub(super) fn head(&self, method: &str, target: &str) -> Result<RequestHeader, Problem> {
        let target = format!("{}{target}", self.below);
        let head = RequestHeader::build(method, target.as_bytes(), None);
        head.map_err(|_| Problem::Said(format!("it cannot be asked for {target}")))
    }

    /// The whole body of an answer with a good status.
    pub(super) async fn ask(
        &self,
        world: &World,
        head: RequestHeader,
        body: Bytes,
    ) -> Result<Bytes, Problem> {
        let mut reply = good(self.send(world, head, body, ANSWER, QUIET).await?).await?;
        Ok(reply.read_all(MOST).await?)
    }

    /// The lines of an answer with a good status, which ends with the time limit or when nothing comes for the time of
    /// `silence`.
    pub(super) async fn lines(
        &self,
        world: &World,
        head: RequestHeader,
        body: Bytes,
        (limit, silence): (Duration, Duration),
    ) -> Result<Lines, Problem> {
        let body = good(self.send(world, head, body, limit, silence).await?).await?;
        Ok(Lines { body, read: BytesMut::new(), searched: 0 })
    }

    /// An answer of any status, which ends with the time limit or when nothing comes for the time of `silence`.
    pub(super) async fn send(
        &self,
        world: &World,
        head: RequestHeader,
        body: Bytes,
        limit: Duration,
        silence: Duration,
    ) -> Result<Reply, Problem> {
        let others = self.resolve(world).await?;
        let (timeout, read) = (Some(Some(limit)), Some(Some(silence)));
        // One that cannot be connected to has others tried, each at once.
        let retries = RouteRetries {
            max: Some(u8::try_from(others).unwrap_or(u8::MAX)),
            backoff: Some(DurationRange::from_millis(0, 0)),
            ..RouteRetries::default()
        };
        let options = CallOptions {
            timeout,
            connect: Some(CONNECT),
            read,
            retries: Some(retries),
            ..CallOptions::default()
        };
        Ok(world.caller.send(&self.upstream, head, body, options).await?)
    }

    /// Looks the server's name up, if it has one: each time, as it is asked seldom. Gives how many addresses it has
    /// besides the first.
    async fn resolve(&self, world: &World) -> Result<usize, Problem> {
        if self.host.parse::<std::net::IpAddr>().is_ok() {
            return Ok(0);
        }
        let found = world.lookup.lookup(&self.host).await;
        let Found { v4, v6, .. } = found.map_err(|why| {
            Problem::Call(CallError::Connect(format!("{} has no address: {why}", self.host).into()))
        })?;
        let addresses = [v4, v6].into_iter().flatten().flatten();
        let endpoints: Vec<_> = addresses
            .map(|address| Endpoint { address: SocketAddr::new(address, self.port), health: None })
            .collect();
        let others = endpoints.len().saturating_sub(1);
        let backends = self.upstream.backends();
        backends[0].set_endpoints(endpoints);
        backends[0].begin_with(self.first);
        Ok(others)
    }
}

/// The body of an answer with a good status.
async fn good(mut reply: Reply) -> Result<BodyStream, Problem> {
    match reply.head.status.as_u16() {
        200..=299 => Ok(reply.body),
        // What is longer says nothing that anybody reads.
        status => {
            let body = reply.body.read_all(MOST_OF_ERRORS).await;
            Err(Problem::Status(status, body.unwrap_or_default()))
        }
    }
}

impl Lines {
    /// The next line, without its end; none once the answer is complete. What comes after the last end of a line is
    /// one too.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, CallError> {
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.read[self.searched..]) {
                let mut line = self.read.split_to(self.searched + at + 1).freeze();
                line.truncate(line.len() - 1);
                self.searched = 0;
                return Ok(Some(line));
            }
            self.searched = self.read.len();
            match self.body.next().await? {
                Some(piece) if piece.len() > MOST.saturating_sub(self.read.len()) => {
                    return Err(CallError::TooLarge);
                }
                Some(piece) => self.read.extend_from_slice(&piece),
                None if self.read.is_empty() => return Ok(None),
                None => {
                    self.searched = 0;
                    return Ok(Some(self.read.split().freeze()));
                }
            }
        }
    }
}

impl Problem {
    /// Why the registry cannot be followed.
    pub(super) fn failed(self, server: &Server) -> Failed {
        let url = server.url();
        match self {
            Self::Call(error) => format!("{url}: {error}").into(),
            Self::Status(status, body) => match said(&body) {
                Some(said) => format!("{url} answered {status}: {said}").into(),
                None => format!("{url} answered {status}").into(),
            },
            Self::Said(what) => format!("{url}: {what}").into(),
        }
    }
}

impl From<CallError> for Problem {
    fn from(error: CallError) -> Self {
        Self::Call(error)
    }
}

/// What an answer says went wrong: most servers that speak JSON have a message in it.
pub(super) fn said(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let text = value.get("message").or_else(|| value.get("error"))?.as_str()?;
    Some(brief(text)).filter(|text| !text.is_empty())
}

/// The beginning of what a server says, on one line.
pub(super) fn brief(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect::<String>().trim().to_owned()
}

/// Why servers cannot be made of what is written.
pub(super) fn joined(problems: Vec<(String, String)>) -> Failed {
    problems.into_iter().map(|(_, message)| message).collect::<Vec<_>>().join("; ").into()
}

#[cfg(test)]
mod tests {
    use tollhouse_filters::values::Scalar;

    use super::*;

    // Consul holds a question back for ten minutes, if that is written; who is to answer it may be gone long before.
    #[test]
    fn a_connection_is_found_to_be_dead_while_an_answer_is_waited_for() {
        let url = Url::read("http://127.0.0.1:8500").unwrap();
        let server = Server::new(&url, None, Path::new("")).unwrap();
        let peer = server.upstream.peer_at("127.0.0.1:8500".parse().unwrap(), "");
        let keepalive = peer.options.tcp_keepalive.expect("its other end is asked");
        let asked = u32::try_from(keepalive.count).unwrap();
        assert!(keepalive.idle + keepalive.interval * asked <= Duration::from_secs(60));
    }
}
