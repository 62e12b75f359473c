//! The versions of a service: which one a request asks for, and what its answers say of it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, HeaderName, LINK, VARY};
use http::{HeaderMap, HeaderValue};
use pingora::http::{RequestHeader, ResponseHeader};
use tollhouse_filters::condition::query_values;
use tollhouse_filters::path::NormalPath;
use tollhouse_filters::problem::{self, Problem};
use tollhouse_filters::values::Date;
use tollhouse_filters::world::{Clock, World};

use super::accept::{self, Wish};
use super::calls::Calls;
use crate::config::{ApiVersion, Brownout, Service, VersionSource};

const DEPRECATION: &str = "Deprecation";
const SUNSET: &str = "Sunset";
/// Most that is repeated of what a client wrote.
const LONGEST: usize = 64;

/// The versions of a service.
pub struct Versions {
    service: Arc<str>,
    sources: Box<[VersionSource]>,
    list: Box<[Version]>,
    default: Option<usize>,
    /// What `Vary` says when so many of the sources were looked at.
    vary: Box<[Option<HeaderValue>]>,
    clock: Arc<dyn Clock>,
}

/// One version.
pub struct Version {
    /// Its name.
    pub name: Arc<str>,
    deprecation: Option<HeaderValue>,
    sunset: Option<(Date, HeaderValue)>,
    /// Links to what tells more.
    docs: Option<HeaderValue>,
    successor: Option<usize>,
    brownouts: Box<[Brownout]>,
    calls: Calls,
}

/// The version that a request asks for, and which of the sources said so; none for the default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Its place among the versions.
    pub version: usize,
    source: Option<usize>,
}

impl Asked {
    /// A version that was chosen for a request that names none.
    #[must_use]
    pub const fn unasked(version: usize) -> Self {
        Self { version, source: None }
    }

    /// Whether the request named it.
    #[must_use]
    pub const fn is_named(self) -> bool {
        self.source.is_some()
    }
}

/// A version's name without the `v` that may stand before it.
#[must_use]
pub fn bare(name: &str) -> &str {
    name.strip_prefix(['v', 'V']).filter(|rest| !rest.is_empty()).unwrap_or(name)
}

/// Whether a segment of a path is meant as a version, even one that nobody knows: `v` and digits.
#[must_use]
pub fn looks_like_a_version(segment: &str) -> bool {
    let number = segment.strip_prefix(['v', 'V']).unwrap_or_default();
    let digits = |byte: u8| byte.is_ascii_digit() || byte == b'.' || byte == b'-';
    number.starts_with(|first: char| first.is_ascii_digit()) && number.bytes().all(digits)
}

impl Versions {
    /// The versions of a service that has some; what its document says was checked.
    #[must_use]
    pub fn new(written: &Service, world: &World) -> Option<Self> {
        let versioning = written.versioning.as_ref()?;
        let place = |name: &str| written.versions.keys().position(|known| *known.as_str() == *name);
        let default = versioning.default.as_ref().and_then(|name| place(name.as_str()));
        let service = written.name.shared();
        let list = written.versions.iter().enumerate().map(|(at, (name, version))| {
            let name = name.shared();
            let successor = version.successor.as_ref().map_or(default, |name| place(name.as_str()));
            let is_old = version.deprecated.is_some() || version.sunset.is_some();
            Version {
                deprecation: version.deprecated.map(deprecation),
                sunset: version.sunset.map(|date| (date, sunset(date))),
                docs: docs(version),
                successor: successor.filter(|successor| is_old && *successor != at),
                brownouts: version.brownouts.as_slice().into(),
                calls: Calls::new(&service, &name, is_old, world),
                name,
            }
        });
        let list = list.collect();
        let sources: Box<[VersionSource]> = versioning.from.as_slice().into();
        let vary = (0..=sources.len()).map(|looked_at| vary(&sources[..looked_at])).collect();
        Some(Self { service, sources, list, default, vary, clock: world.clock.clone() })
    }

    /// The version at this place.
    #[must_use]
    pub fn get(&self, asked: Asked) -> &Version {
        &self.list[asked.version]
    }

    /// The place of the version of this name.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<usize> {
        let name = bare(name);
        self.list.iter().position(|version| bare(&version.name).eq_ignore_ascii_case(name))
    }

    /// Whether requests may name the version in their path.
    #[must_use]
    pub fn reads_path(&self) -> bool {
        self.sources.contains(&VersionSource::Path)
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.list.iter().map(|version| &version.name)
    }

    /// Where a request said which version it wants: `path`, `header:x-api-version`, `default`.
    #[must_use]
    pub fn source(&self, asked: Asked) -> String {
        asked.source.map_or_else(|| "default".to_owned(), |source| self.sources[source].to_string())
    }

    /// The version that a request asks for, if it names one or there is a default; `in_path` is what its path begins
    /// with, if that names a version.
    ///
    /// # Errors
    /// 406 for one that does not exist.
    pub fn resolve(&self, request: &RequestHeader, in_path: Option<&str>) -> Result<Option<Asked>, Problem> {
        for (nth, source) in self.sources.iter().enumerate() {
            let name = match source {
                VersionSource::Path => in_path.map(ToOwned::to_owned),
                VersionSource::Header(name) => joined(&request.headers, name),
                VersionSource::Query(name) => {
                    let query = request.uri.query().unwrap_or_default();
                    query_values(query, name).next().map(|value| value.into_owned())
                }
                VersionSource::Accept => match self.accepted(&request.headers) {
                    Wish::Nothing => None,
                    Wish::Version(None) => break,
                    Wish::Version(Some(version)) => return Ok(Some(Asked { version, source: Some(nth) })),
                    Wish::Unknown(name) => Some(name),
                },
            };
            if let Some(name) = name {
                let found = self.named(name.trim()).map(|version| Asked { version, source: Some(nth) });
                return found.map(Some).ok_or_else(|| self.unknown(&name));
            }
        }
        Ok(self.default.map(Asked::unasked))
    }

    fn accepted(&self, headers: &HeaderMap) -> Wish {
        accept::wish(headers, |name| self.named(name), |version| !self.list[version].is_over(&*self.clock))
    }

    /// Why a version is refused at this moment, if it is: it has ended, or does so for a while.
    #[must_use]
    pub fn refusal(&self, asked: Asked) -> Option<Problem> {
        let version = self.get(asked);
        let (ends, _) = version.sunset.as_ref()?;
        let instead = match version.successor {
            Some(successor) => format!("; use version `{}`", self.list[successor].name),
            None => String::new(),
        };
        let name = &version.name;
        if version.is_over(&*self.clock) {
            let detail = format!("version `{name}` ended on {}{instead}", ends);
            return Some(Problem::new(&problem::VERSION_GONE).detail(detail));
        }
        let now = self.clock.wall();
        let left = version.brownouts.iter().filter_map(|brownout| left(brownout, now)).max()?;
        let detail = format!("version `{name}` is refused for a while, since it ends on {}{instead}", ends);
        let mut problem = Problem::new(&problem::VERSION_BROWNOUT).detail(detail);
        problem.retry_after = Some(left.as_secs_f64().ceil().max(1.0) as u64);
        Some(problem)
    }

    fn unknown(&self, name: &str) -> Problem {
        let shown: String = name.chars().filter(char::is_ascii_graphic).take(LONGEST).collect();
        self.not_acceptable(&format!("`{}` has no version `{shown}`", self.service))
    }

    /// 406 for a request that names no version where there is no default.
    #[must_use]
    pub fn unnamed(&self) -> Problem {
        self.not_acceptable(&format!("the request names no version of `{}`", self.service))
    }

    /// 406 that lists what exists.
    fn not_acceptable(&self, what: &str) -> Problem {
        let there: Vec<&str> = self
            .list
            .iter()
            .filter(|version| !version.is_over(&*self.clock))
            .map(|version| &*version.name)
            .collect();
        let list = there.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        let detail = format!("{what}; there are: {list}");
        Problem::new(&problem::NO_SUCH_VERSION).detail(detail).member("versions", there)
    }

    /// Says in an answer what it depended on, and what becomes of the version; `path` is the request's, without
    /// a version.
    pub fn write_fields(&self, asked: Option<Asked>, path: &NormalPath, response: &mut ResponseHeader) {
        let looked_at = asked.and_then(|asked| asked.source).map_or(self.sources.len(), |source| source + 1);
        if let Some(vary) = &self.vary[looked_at] {
            let _ = response.append_header(VARY, vary.clone());
        }
        let Some(version) = asked.map(|asked| self.get(asked)) else { return };
        if let Some(deprecation) = &version.deprecation {
            let _ = response.insert_header(DEPRECATION, deprecation.clone());
        }
        if let Some((_, sunset)) = &version.sunset {
            let _ = response.insert_header(SUNSET, sunset.clone());
        }
        if let Some(docs) = &version.docs {
            let _ = response.append_header(LINK, docs.clone());
        }
        if let Some(link) = version.successor.and_then(|successor| self.link(successor, path)) {
            let _ = response.append_header(LINK, link);
        }
    }

    /// Where this version of a resource is (RFC 5829 s3.3); none where versions share their addresses.
    fn link(&self, version: usize, path: &NormalPath) -> Option<HeaderValue> {
        let name = &self.list[version].name;
        let path = path.wire();
        let target = self.sources.iter().find_map(|source| match source {
            VersionSource::Path => Some(format!("/v{}{path}", bare(name))),
            VersionSource::Query(parameter) => Some(format!("{path}?{parameter}={name}")),
            VersionSource::Accept | VersionSource::Header(_) => None,
        })?;
        // What would end the link is in no URI (RFC 3986 s2).
        let is_uri = !target.contains(['<', '>', '"', ' ']);
        let link = is_uri.then(|| format!("<{target}>; rel=\"successor-version\""))?;
        HeaderValue::try_from(link).ok()
    }

    /// Counts a request that is over.
    pub fn count(&self, asked: Asked, consumer: Option<&Arc<str>>) {
        self.get(asked).calls.count(consumer);
    }
}

impl Version {
    fn is_over(&self, clock: &dyn Clock) -> bool {
        self.sunset.as_ref().is_some_and(|(ends, _)| ends.get() <= clock.wall())
    }
}

/// How much is left of a brownout that is under way.
fn left(brownout: &Brownout, now: SystemTime) -> Option<Duration> {
    let since = now.duration_since(brownout.at.get()).ok()?;
    let into = match brownout.every {
        Some(every) => {
            let nanos = since.as_nanos() % every.get().as_nanos();
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        }
        None => since,
    };
    brownout.length.get().checked_sub(into).filter(|left| !left.is_zero())
}

/// All lines of a field as one value, so that two that contradict each other name nothing that exists.
fn joined(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let mut lines = headers.get_all(name).iter().map(|line| String::from_utf8_lossy(line.as_bytes()));
    let first = lines.next()?.into_owned();
    Some(lines.fold(first, |all, line| format!("{all}, {line}")))
}

/// The fields of a request that were looked at (RFC 9110 s12.5.5).
fn vary(sources: &[VersionSource]) -> Option<HeaderValue> {
    let fields = sources.iter().filter_map(|source| match source {
        VersionSource::Accept => Some(ACCEPT.to_string()),
        VersionSource::Header(name) => Some(name.to_string()),
        VersionSource::Path | VersionSource::Query(_) => None,
    });
    let fields = fields.collect::<Vec<_>>().join(", ");
    (!fields.is_empty()).then(|| HeaderValue::try_from(fields).ok()).flatten()
}

/// A date of structured fields (RFC 9745 s2, RFC 9651 s3.3.7).
fn deprecation(date: Date) -> HeaderValue {
    let seconds = date.get().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    HeaderValue::try_from(format!("@{seconds}")).expect("digits are visible")
}

/// RFC 8594 s3: a date of HTTP (RFC 9110 s5.6.7).
fn sunset(date: Date) -> HeaderValue {
    HeaderValue::try_from(httpdate::fmt_http_date(date.get())).expect("dates are visible")
}

/// RFC 9745 s3 and RFC 8594 s6: where there is more to read.
fn docs(version: &ApiVersion) -> Option<HeaderValue> {
    let url = version.docs.as_ref()?;
    let rels = [(version.deprecated.is_some(), "deprecation"), (version.sunset.is_some(), "sunset")];
    let rels = rels.iter().filter(|(is, _)| *is).map(|(_, rel)| *rel).collect::<Vec<_>>().join(" ");
    let link = format!("<{}>; rel=\"{rels}\"; type=\"text/html\"", url.as_str());
    HeaderValue::try_from(link).ok()
}

#[cfg(test)]
mod tests;
