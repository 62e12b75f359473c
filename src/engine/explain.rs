//! Explains a request: listener, route, why not the others, each filter, and where it ends.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use http::header::{self, HeaderValue};
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Serialize;
use tollhouse_filters::context::{Decision, RequestId, Verdict};
use tollhouse_filters::tree::{Node, Value};

use super::Connection;
use super::dry::{self, MadeUp, Outcome};
use super::intake::take_in;
use crate::routing::{ListenerId, View};
use crate::snapshot::Snapshot;

/// What to explain.
#[derive(Debug, Clone, Default, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Question {
    /// The method; GET when empty.
    pub method: String,
    /// An absolute URL, or a path.
    pub url: String,
    /// Header fields.
    pub headers: Vec<(String, String)>,
    /// The listener's name; the first one when absent.
    pub listener: Option<String>,
    /// The client's address; 192.0.2.1 when absent.
    pub client: Option<std::net::IpAddr>,
}

/// What would happen to a request, and why.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Explanation {
    /// The listener's name.
    pub listener: String,
    /// The path as decisions see it.
    pub path: String,
    /// The route's name.
    pub route: String,
    /// Better-ranked routes, and why each was passed over.
    pub passed_over: Vec<PassedOver>,
    /// The version of the service, and where the request said so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Taken>,
    /// What each filter decided.
    pub filters: Vec<Decision>,
    /// The variant of the split, and why this one: `forced`, `sticky` or `drawn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub variant: Option<Taken>,
    /// Where the request goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// When another backend is asked too, while one keeps the client waiting: a time or a percentile.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedged_after: Option<String>,
    /// The head that the upstream would get.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub upstream_request: Vec<String>,
    /// The status of the gateway's own answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
}

/// A version or a variant.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Taken {
    /// Its name.
    pub name: String,
    /// Why it is this one.
    pub by: String,
}

/// A route that came close.
#[derive(Debug, Serialize, JsonSchema)]
pub struct PassedOver {
    /// Its name.
    pub route: String,
    /// Why it did not take the request.
    pub why: String,
}

/// Explains a request on a snapshot made for looking.
pub async fn explain(snapshot: &Arc<Snapshot>, question: &Question) -> Result<Explanation, String> {
    let made = made_up(snapshot, question)?;
    let connection = made.connection.clone();
    let request = made.head.clone();
    let outcome = dry::run(snapshot, made).await;
    Ok(explanation(snapshot, &connection, &request, &outcome))
}

/// Fields that the gateway makes from the request alone, unless the document says otherwise.
const SHOWN: [&str; 8] = [
    "host",
    "via",
    "forwarded",
    "traceparent",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-port",
    "x-forwarded-proto",
];
/// What stands in the place of what is not told.
const HIDDEN: &str = "***";

impl Explanation {
    /// Hides what only the document can have put there, which may be a secret: values of fields, and
    /// what filters made whose options came in part from outside the document. For those who may ask
    /// but not read the document.
    pub fn hide_values(&mut self, question: &Question, document: &Node) {
        let foreign = foreign_keys(document);
        let is_foreign = |decision: &Decision| foreign.contains(decision.filter);
        let ran = |decision: &Decision| decision.verdict != Verdict::Skipped;
        let target_is_foreign = self.filters.iter().any(|decision| is_foreign(decision) && ran(decision));
        for decision in self.filters.iter_mut().filter(|decision| is_foreign(decision)) {
            decision.fields.iter_mut().for_each(|(_, value)| HIDDEN.clone_into(value));
        }
        let (authority, asked_target) = split_url(&question.url).unwrap_or_default();
        let mut lines = self.upstream_request.iter_mut();
        if let Some(line) = lines.next().filter(|_| target_is_foreign)
            && let Some((method, target)) = line.split_once(' ')
            && target != asked_target
        {
            *line = format!("{method} {HIDDEN}");
        }
        for line in lines {
            let Some((name, value)) = line.split_once(": ") else { continue };
            let asked = |(given, said): &(String, String)| given.eq_ignore_ascii_case(name) && said == value;
            let own = SHOWN.contains(&name) && !foreign.contains(name);
            let is_authority = name == "host" && authority == Some(value);
            if !own && !is_authority && !question.headers.iter().any(asked) {
                *line = format!("{name}: {HIDDEN}");
            }
        }
    }
}

/// The keys, in lower case, of all that holds text from outside the document.
pub(super) fn foreign_keys(document: &Node) -> HashSet<String> {
    let mut foreign = HashSet::new();
    note_foreign(document, &mut foreign);
    foreign
}

/// Notes such keys; tells whether this node holds such text.
fn note_foreign(node: &Node, foreign: &mut HashSet<String>) -> bool {
    match &node.value {
        Value::Null => false,
        Value::Scalar(scalar) => scalar.is_substituted(),
        // Counted, as every item has keys to note.
        Value::List(items) => items.iter().filter(|item| note_foreign(item, foreign)).count() > 0,
        Value::Map(entries) => entries.iter().fold(false, |any, (key, value)| {
            let is = note_foreign(value, foreign);
            if is {
                foreign.insert(key.text.to_ascii_lowercase());
            }
            is || any
        }),
    }
}

fn made_up(snapshot: &Snapshot, question: &Question) -> Result<MadeUp, String> {
    let method = if question.method.is_empty() { "GET" } else { question.method.as_str() };
    let (authority, target) = split_url(&question.url)?;
    let mut head =
        RequestHeader::build(method, target.as_bytes(), None).map_err(|error| error.to_string())?;
    let named = question.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("host"));
    let named = named.map(|(_, host)| host.as_str());
    if named.is_none() {
        head.insert_header(header::HOST, authority.unwrap_or("localhost"))
            .map_err(|error| error.to_string())?;
    }
    for (name, value) in &question.headers {
        head.append_header(name.clone(), value)
            .map_err(|_| format!("`{name}` is not a valid header field"))?;
    }
    let listener = match &question.listener {
        Some(name) => {
            snapshot.listener_named(name).ok_or_else(|| format!("no listener is named `{name}`"))?
        }
        None => listener_for(snapshot, &question.url),
    };
    let client = question.client.unwrap_or_else(|| std::net::Ipv4Addr::new(192, 0, 2, 1).into());
    let connection = dry::connection(snapshot, listener, client, authority.or(named));
    Ok(MadeUp { head, body: bytes::Bytes::new(), connection })
}

/// The first listener that speaks what the URL begins with, else the first one.
fn listener_for(snapshot: &Snapshot, url: &str) -> ListenerId {
    let secure = url.starts_with("https://");
    let speaks = |plan: &&crate::snapshot::ListenerPlan| plan.options.tls.is_some() == secure;
    let found = snapshot.listeners.iter().find(speaks).filter(|_| url.contains("://"));
    found.and_then(|plan| snapshot.listener_named(&plan.name)).unwrap_or(ListenerId(0))
}

/// Authority and target of an absolute URL, or just a path.
fn split_url(url: &str) -> Result<(Option<&str>, String), String> {
    if url.starts_with('/') {
        return Ok((None, url.to_owned()));
    }
    let rest = url.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https"));
    let (_, rest) =
        rest.ok_or("expected a path such as `/users`, or a URL such as `https://api.test/users`")?;
    let at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, target) = rest.split_at(at);
    let target = if target.starts_with('/') { target.to_owned() } else { format!("/{target}") };
    Ok((Some(authority), target))
}

fn explanation(
    snapshot: &Snapshot,
    connection: &Connection,
    request: &RequestHeader,
    outcome: &Outcome,
) -> Explanation {
    let exchange = &outcome.exchange;
    let upstream = outcome.upstream_request.as_ref().and(exchange.ctx.upstream.as_ref());
    Explanation {
        listener: exchange.ctx.listener.to_string(),
        path: exchange.ctx.path.matched().to_owned(),
        route: exchange.route.name.to_string(),
        passed_over: passed_over(snapshot, connection, request, exchange),
        version: version(exchange),
        variant: variant(exchange),
        filters: outcome.decisions().to_vec(),
        upstream: upstream.map(ToString::to_string),
        hedged_after: upstream.and_then(|name| hedged_after(snapshot, exchange, name, request)),
        upstream_request: outcome.upstream_request.as_ref().map(lines).unwrap_or_default(),
        status: outcome.answer.as_ref().map(|(head, _)| head.status.as_u16()),
    }
}

/// The routes that were looked at before the one that was taken.
fn passed_over(
    snapshot: &Snapshot,
    connection: &Connection,
    request: &RequestHeader,
    exchange: &super::Exchange,
) -> Vec<PassedOver> {
    // As it was when its route was looked for: some fields are dropped before, and filters change others later.
    let mut head = request.clone();
    let taken_in = take_in(snapshot, connection, &mut head, RequestId::Made(1), Instant::now());
    if taken_in.refused.is_some() {
        return Vec::new();
    }
    let view = View { listener: connection.listener, request: exchange.ctx.view(&head) };
    let considered = snapshot.router.explain(&view).into_iter();
    // A preflight is taken by a route that is not for its own method.
    let before = considered.take_while(|one| !Arc::ptr_eq(snapshot.route(one.id), &exchange.route));
    before
        .filter_map(|one| {
            let why = one.why_not?.to_string();
            Some(PassedOver { route: snapshot.route(one.id).name.to_string(), why })
        })
        .collect()
}

fn hedged_after(
    snapshot: &Snapshot,
    exchange: &super::Exchange,
    upstream: &str,
    request: &RequestHeader,
) -> Option<String> {
    let hedge = snapshot.upstream_named(upstream)?.hedge(exchange.route.hedge.as_deref())?;
    request.method.is_idempotent().then(|| hedge.after.to_string())
}

fn version(exchange: &super::Exchange) -> Option<Taken> {
    let (versions, asked) = (exchange.route.versions.as_ref()?, exchange.release.as_ref()?.asked?);
    let by = if exchange.ctx.variant.is_some() && exchange.route.splits_versions() {
        "split".to_owned()
    } else {
        versions.source(asked)
    };
    Some(Taken { name: versions.get(asked).name.to_string(), by })
}

fn variant(exchange: &super::Exchange) -> Option<Taken> {
    let why = exchange.release.as_ref()?.why?;
    Some(Taken { name: exchange.ctx.variant.as_deref()?.to_owned(), by: why.text().to_owned() })
}

fn lines(head: &RequestHeader) -> Vec<String> {
    let target = head.uri.path_and_query().map_or("/", |target| target.as_str());
    let shown = |value: &HeaderValue| match value.is_sensitive() {
        true => HIDDEN.to_owned(),
        false => String::from_utf8_lossy(value.as_bytes()).into_owned(),
    };
    let fields = head.headers.iter().map(|(name, value)| format!("{name}: {}", shown(value)));
    std::iter::once(format!("{} {target}", head.method)).chain(fields).collect()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "listener   {}", self.listener)?;
        writeln!(f, "path       {}", self.path)?;
        for passed in &self.passed_over {
            writeln!(f, "not        {}: {}", passed.route, passed.why)?;
        }
        writeln!(f, "route      {}", self.route)?;
        if let Some(Taken { name, by }) = &self.version {
            writeln!(f, "version    {name} ({by})")?;
        }
        for decision in &self.filters {
            let verdict = match decision.verdict {
                Verdict::Passed => "passed",
                Verdict::Skipped => "skipped",
                Verdict::Changed => "changed",
                Verdict::Answered => "answered",
                Verdict::WouldAnswer => "would answer",
                Verdict::FailedOpen => "failed open",
                Verdict::Failed => "failed",
            };
            writeln!(
                f,
                "filter     {} ({}): {verdict} {}",
                decision.filter, decision.instance, decision.reason
            )?;
        }
        if let Some(Taken { name, by }) = &self.variant {
            writeln!(f, "variant    {name} ({by})")?;
        }
        if let Some(upstream) = &self.upstream {
            writeln!(f, "upstream   {upstream}")?;
        }
        if let Some(after) = &self.hedged_after {
            writeln!(f, "hedged     after {after}")?;
        }
        for line in &self.upstream_request {
            writeln!(f, "           {line}")?;
        }
        if let Some(status) = self.status {
            writeln!(f, "answer     {status}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn values_that_the_document_put_into_fields_can_be_hidden() {
        let text = "
version: 1
listeners: [{name: main, address: '127.0.0.1:0'}]
upstreams: [{name: u, backends: [{address: '127.0.0.1:9'}]}]
routes: [{name: any, upstream: u, filters: [{headers: {request: {set: {authorization: 'Bearer ${env:T}'}}}}]}]
";
        let loaded = crate::source::load_str(text, "test", None, &|_| Some("secret".to_owned()));
        let loaded = Arc::new(loaded.expect("loads"));
        let snapshot = dry::snapshot(&loaded, &tollhouse_filters::builtin()).expect("compiles");
        let headers = vec![("x-mine".to_owned(), "1".to_owned())];
        let question = Question { url: "http://a.test/".to_owned(), headers, ..Question::default() };
        let mut explained = explain(&snapshot, &question).await.expect("explained");
        assert!(explained.upstream_request.iter().any(|line| line == "authorization: Bearer secret"));
        explained.hide_values(&question, &loaded.root);
        for line in ["authorization: ***", "x-mine: 1", "host: a.test"] {
            assert!(explained.upstream_request.iter().any(|shown| shown == line), "{line}");
        }
    }
    /// What the API tells of a request, on a document whose references stand for `s3cret`.
    async fn told(upstream: &str, filters: &str) -> Explanation {
        let text = format!(
            "
version: 1
listeners: [{{name: main, address: '127.0.0.1:0'}}]
upstreams: [{{name: u, backends: [{{address: '127.0.0.1:9'}}]{upstream}}}]
routes: [{{name: any, upstream: u, filters: [{filters}]}}]
"
        );
        let loaded = crate::source::load_str(&text, "test", None, &|_| Some("s3cret".to_owned()));
        let loaded = Arc::new(loaded.expect("loads"));
        let snapshot = dry::snapshot(&loaded, &tollhouse_filters::builtin()).expect("compiles");
        let question = Question { url: "http://a.test/x".to_owned(), ..Question::default() };
        let mut explained = explain(&snapshot, &question).await.expect("explained");
        explained.hide_values(&question, &loaded.root);
        explained
    }

    #[tokio::test]
    async fn what_came_from_outside_the_document_is_hidden_wherever_it_went() {
        for (upstream, filters) in [
            ("", "{rewrite: {add_prefix: '/${env:S}'}}"),
            ("", "{rewrite: {path: '/%73%33cret/${env:S}/%41/'}}"),
            ("", "{headers: {request: {set: {X-Forwarded-Proto: '${env:S}'}}}}"),
            ("", "{headers: {request: {set: {x-forwarded-mine: '${env:S}'}}}}"),
            (", host: '${env:S}.test'", ""),
        ] {
            let shown = serde_json::to_string(&told(upstream, filters).await).expect("JSON");
            assert!(!shown.contains("s3cret") && shown.contains("***"), "{filters}{upstream}: {shown}");
        }
    }

    #[tokio::test]
    async fn what_the_document_says_itself_about_the_target_is_told() {
        let told =
            told(", host: b.test", "{rewrite: {add_prefix: /v1}}, {headers: {request: {set: {a: b}}}}").await;
        assert_eq!(told.upstream_request[0], "GET /v1/x");
        assert_eq!(told.filters[0].fields, [("to", "/v1/x".to_owned())]);
        assert!(told.upstream_request.contains(&"host: b.test".to_owned()), "{:?}", told.upstream_request);
    }
}
