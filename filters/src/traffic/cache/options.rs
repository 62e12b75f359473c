//! What users write.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration as Time;

use http::{Method, StatusCode};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::caching::{Plan, Rules, may_be_stored};
use crate::condition::MethodName;
use crate::filter::BuildError;
use crate::selector::Selector;
use crate::template::Template;
use crate::values::{ByteSize, Duration, DurationOrZero, FieldName, Percent, Secret, StatusRange};
use crate::when::WhenSpec;

/// What is answered from what origins answered before. A key is made of scheme, host, path, query, route and, of
/// callers that are known, who calls.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "CacheOptions")]
pub struct Options {
    /// How long answers (200, 203, 204, 300, 301, 308) are fresh whose origin does not say.
    pub ttl: Option<Duration>,
    /// The same by status, for these and all others: `{404: 10s, 500-599: 1s}`.
    pub statuses: BTreeMap<StatusRange, DurationOrZero>,
    /// Whether `ttl` and `statuses` count instead of what origins say of time. What may not be stored at all
    /// (`no-store`, `private`) is not, either way.
    pub override_origin: bool,
    /// The part of the time since `Last-Modified` that answers are fresh, where nobody says; a day at most.
    pub heuristic: Option<Percent>,
    /// Methods whose requests are answered: GET and HEAD, or one of them.
    pub methods: Vec<MethodName>,
    /// What else keys are made of, and which parts of queries.
    pub key: KeyOptions,
    /// Whose answers are kept apart, instead of each known caller's.
    pub per: Option<Selector>,
    /// Whether all callers get the same answers, though they are known.
    pub shared: bool,
    /// Fields by which answers vary, whatever origins say.
    pub vary: Vec<FieldName>,
    /// The largest body that is stored.
    pub max_object: ByteSize,
    /// How often something must be asked for before it is stored.
    pub min_uses: NonZeroU32,
    /// Names by which answers can be purged; templates such as `product-${path.id}`. Of one answer, 64 names of 255
    /// bytes count.
    pub tags: Vec<Template>,
    /// Requests for which any of these conditions holds go to the origin, and their answers are not stored.
    pub bypass: Vec<WhenSpec>,
    /// How long what is stale is served while it is fetched anew (RFC 5861), where origins do not say.
    pub stale_while_revalidate: Option<Duration>,
    /// How long what is stale is served when the origin answers 500, 502, 503 or 504, or not at all (RFC 5861), where
    /// origins do not say.
    pub stale_if_error: Option<Duration>,
    /// How long what is stale is served when the origin cannot be reached, unless it forbids that or nobody said how long
    /// it is fresh.
    pub stale_if_unreachable: DurationOrZero,
    /// Whether answers that set cookies are stored, cookies included: then all clients get the same ones.
    pub store_cookies: bool,
    /// Whether clients may ask for something fresher than what is stored (`Cache-Control` and `Pragma` of requests).
    pub client_control: bool,
    /// How long a request waits for the answer to another one for the same, before it goes to the origin itself.
    pub wait: Duration,
    /// Lets PURGE requests take out what is stored for their URL.
    pub purge: Option<PurgeOptions>,
}

/// What keys are made of beside the URL, the route and who calls.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "CacheKey")]
pub struct KeyOptions {
    /// Parts of the request, such as `header:x-country` or `cookie:currency`: all lines, cookies or parameters of that
    /// name, in order. A request without one is another.
    pub parts: Vec<Selector>,
    /// Which parameters of the query; all of them, as they stand, by default.
    pub query: QueryOptions,
}

/// Which parameters of a query make a difference. The others are not sent to the origin when it is asked for what
/// will be stored.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "CacheQuery")]
pub struct QueryOptions {
    /// Only these.
    pub only: Option<Vec<String>>,
    /// All but these.
    pub except: Vec<String>,
    /// Whether parameters in another order are the same; of one name, their order counts in any case.
    pub sort: bool,
}

/// Who may purge by PURGE requests, and how.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "CachePurge")]
pub struct PurgeOptions {
    /// What such requests must bring: `Authorization: Bearer TOKEN`.
    pub token: Secret,
    /// Whether what is purged only becomes stale, to be validated when it is asked for again.
    #[serde(default)]
    pub soft: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ttl: None,
            statuses: BTreeMap::new(),
            override_origin: false,
            heuristic: None,
            methods: Vec::new(),
            key: KeyOptions::default(),
            per: None,
            shared: false,
            vary: Vec::new(),
            max_object: ByteSize::from_bytes(8 << 20),
            min_uses: NonZeroU32::MIN,
            tags: Vec::new(),
            bypass: Vec::new(),
            stale_while_revalidate: None,
            stale_if_error: None,
            stale_if_unreachable: DurationOrZero::from_secs(3600),
            store_cookies: false,
            client_control: true,
            wait: Duration::from_secs(5),
            purge: None,
        }
    }
}

impl Options {
    pub(super) fn methods(&self) -> Result<Vec<Method>, BuildError> {
        let written: Vec<Method> = self.methods.iter().cloned().map(Method::from).collect();
        match written.iter().find(|method| ![Method::GET, Method::HEAD].contains(method)) {
            Some(method) => Err(BuildError::at(
                "methods",
                format!("answers to {method} cannot be stored; GET and HEAD can"),
            )),
            None if written.is_empty() => Ok(vec![Method::GET, Method::HEAD]),
            None => Ok(written),
        }
    }

    /// Refuses what would do nothing (times are counted in seconds, and of some statuses no answer is stored), and ranges
    /// of which nobody can tell which counts.
    pub(super) fn check(&self) -> Result<(), BuildError> {
        const WHOLE: &str = "expected whole seconds, such as `1s`";
        let is_whole = |time: Time| time.subsec_nanos() == 0;
        for (option, time) in [
            ("ttl", self.ttl.map(Duration::get)),
            ("stale_while_revalidate", self.stale_while_revalidate.map(Duration::get)),
            ("stale_if_error", self.stale_if_error.map(Duration::get)),
            ("stale_if_unreachable", Some(self.stale_if_unreachable.get())),
        ] {
            if !time.is_none_or(is_whole) {
                return Err(BuildError::at(option, WHOLE));
            }
        }
        let is_stored = |range: &StatusRange| {
            let mut codes = (100..=599).filter(|code| range.contains(*code));
            codes.any(|code| StatusCode::from_u16(code).is_ok_and(may_be_stored))
        };
        for (status, ttl) in &self.statuses {
            let message = match (is_stored(status), is_whole(ttl.get())) {
                (true, true) => continue,
                (false, _) => "answers with this status are never stored",
                (true, false) => WHOLE,
            };
            let mut error = BuildError::at("statuses", message);
            error.path.push(status.to_string().as_str());
            return Err(error);
        }
        for (at, one) in self.statuses.keys().enumerate() {
            if let Some(other) = self.statuses.keys().take(at).find(|other| one.crosses(**other)) {
                let told = format!("overlaps `{other}`; write ranges that do not, or one within the other");
                let mut error = BuildError::at("statuses", told);
                error.path.push(one.to_string().as_str());
                return Err(error);
            }
        }
        Ok(())
    }

    pub(super) fn plan(&self, credentials: bool) -> Plan {
        let whole = |time: Time| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let written = |time: Option<Duration>| time.map_or(0, |time| whole(time.get()));
        let statuses = self.statuses.iter().map(|(status, ttl)| (*status, whole(ttl.get())));
        let mut statuses: Vec<_> = statuses.collect();
        // The first that holds a status counts: a status by itself before a range that it is in.
        statuses.sort_by_key(|(status, _)| status.width());
        Plan {
            rules: Rules {
                ttl: self.ttl.map(|ttl| whole(ttl.get())),
                overrides: self.override_origin,
                statuses,
                heuristic: self.heuristic.map(Percent::fraction),
                while_revalidate: written(self.stale_while_revalidate),
                if_error: written(self.stale_if_error),
                if_unreachable: whole(self.stale_if_unreachable.get()),
                set_cookie: self.store_cookies,
                credentials,
            },
            vary: self.vary.iter().cloned().map(FieldName::into_inner).collect(),
            max_object: self.max_object.get(),
            min_uses: self.min_uses.get(),
            tags: self.tags.clone(),
            wait: self.wait.get(),
        }
    }
}
