//! From written identities and consumers to what verifies credentials.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use http::header::COOKIE;
use pingora_http::RequestHeader;
use serde::de::DeserializeOwned;

use super::api_key::{self, ApiKeys};
use super::basic::Basic;
use super::certificate::Certificates;
use super::consumers::{Clerk, Consumers, Index, Layout, Matches, Record};
use super::hmac::Hmac;
use super::introspection::Introspection;
use super::jwt::Jwt;
use super::oidc::Oidc;
use super::remote::Remote;
use super::spec::{ConsumerSpec, IdentitySpec, Kind};
use super::{Broken, Identity, Source};
use crate::context::Context;
use crate::filter::{self, BuildError, Surroundings};
use crate::plan::Plans;
use crate::tree::{self, Node, Path, suggest};
use crate::values::{Name, Url};
use crate::world::{Store, UpstreamId, World};

/// The identities of a document, by name.
#[derive(Default)]
pub struct Identities {
    by_name: BTreeMap<Arc<str>, Arc<dyn Identity>>,
    /// The cookies of logins, of all of them.
    sessions: Vec<Source>,
}

impl Identities {
    /// The identity of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<dyn Identity>> {
        self.by_name.get(name)
    }

    /// Their names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(|name| &**name)
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn Identity>> {
        self.by_name.values()
    }

    /// Takes the cookies of logins out of a request to an upstream: they are the gateway's own, and with them an
    /// upstream could pass for its users, also one that has no part in their login.
    pub fn hide_sessions(&self, request: &mut RequestHeader, ctx: &mut Context) {
        if self.sessions.is_empty() || !request.headers.contains_key(COOKIE) {
            return;
        }
        for source in &self.sessions {
            if !source.values(request).is_empty() {
                source.remove(request, ctx);
            }
        }
    }

    /// What the cookies of logins are called, of all of them.
    pub(crate) fn login_cookies(&self) -> impl Iterator<Item = &str> {
        self.sessions.iter().filter_map(|source| match source {
            Source::Cookie(name) => Some(&**name),
            Source::Header(_) | Source::Query(_) => None,
        })
    }

    /// Where anything of theirs is that logs must not show.
    pub fn secrets(&self) -> impl Iterator<Item = &Source> {
        self.by_name.values().flat_map(|identity| identity.secrets())
    }

    /// Whether any of them looks for credentials in this field.
    #[must_use]
    pub fn read_field(&self, name: &HeaderName) -> bool {
        let mut sources = self.by_name.values().flat_map(|identity| identity.sources());
        sources.any(|source| matches!(source, Source::Header(field) if field == name))
    }
}

/// Where a document's identities are built: the world that they reach, and what the document has besides.
pub struct Site<'a> {
    /// The world.
    pub world: &'a World,
    /// The document.
    pub surroundings: &'a dyn Surroundings,
}

impl Site<'_> {
    /// The upstream that the option `upstream` names.
    pub(super) fn via(&self, name: Option<&str>) -> Result<Option<UpstreamId>, BuildError> {
        let Some(name) = name else { return Ok(None) };
        let found = self.surroundings.upstream(name).ok_or_else(|| {
            let error = BuildError::at("upstream", format!("no upstream is named `{name}`"));
            let near = self.surroundings.nearest_upstream(name);
            BuildError { hint: near, ..error }
        });
        found.map(Some)
    }

    /// The store that the option `store` names.
    pub(super) fn store(&self, name: &str) -> Result<Arc<dyn Store>, BuildError> {
        filter::store(self.surroundings, "store", name)
    }

    /// The place at a URL that an option names. What is secret does not go over a network in the clear.
    pub(super) fn remote(
        &self,
        option: &str,
        url: &Url,
        via: Option<UpstreamId>,
        timeout: Duration,
    ) -> Result<Remote, BuildError> {
        if !url.is_https() && !url.is_loopback() && via.is_none() {
            let message = "expected an https URL; one on this machine, or through an `upstream`, may be http";
            return Err(BuildError::at(option, message));
        }
        Ok(Remote::new(&self.world.client, url, via, timeout))
    }
}

/// Builds the identities of a document; their problems have paths from its root. They look up in `consumers`,
/// of this very [`layout`].
#[must_use]
pub fn build(
    identities: &BTreeMap<Name, IdentitySpec>,
    consumers: &Arc<Consumers>,
    site: &Site<'_>,
) -> (Identities, Vec<BuildError>) {
    let (mut built, mut errors) = (Identities::default(), Vec::new());
    for (name, spec) in identities {
        let identity = identity(name, spec, consumers, site).unwrap_or_else(|found| {
            let path: Path = ["identities", name.as_str()].into_iter().collect();
            errors.extend(
                found.into_iter().map(|error| BuildError { path: path.concat(&error.path), ..error }),
            );
            Arc::new(Broken { name: name.shared() })
        });
        if identity.login().is_some() {
            built.sessions.extend_from_slice(identity.sources());
        }
        built.by_name.insert(name.shared(), identity);
    }
    (built, errors)
}

/// The identities and plans that consumers refer to.
#[must_use]
pub fn layout(identities: &BTreeMap<Name, IdentitySpec>, plans: &Plans) -> Layout {
    let identities = identities.iter().map(|(name, spec)| (name.shared(), spec.kind()));
    Layout::new(identities, plans.names().cloned())
}

/// The consumers of a list; their problems have paths from the list.
#[must_use]
pub fn index(layout: &Layout, consumers: Vec<ConsumerSpec>) -> (Index, Vec<BuildError>) {
    let (mut index, mut clerk, mut errors) = (Index::default(), Clerk::new(layout), Vec::new());
    let mut places: HashMap<*const Record, usize> = HashMap::new();
    for (at, spec) in consumers.into_iter().enumerate() {
        let (record, found) = clerk.record(spec);
        let path = Path::default().join(at);
        errors.extend(found.into_iter().map(|error| BuildError { path: path.concat(&error.path), ..error }));
        places.insert(Arc::as_ptr(&record), at);
        for clash in index.add(&record) {
            let other = Path::default().join(places[&Arc::as_ptr(&clash.other)]).concat(&clash.other_path);
            let message = format!("consumers{other} {}", clash.what);
            errors.push(BuildError { path: path.concat(&clash.path), message, hint: None });
        }
    }
    (index, errors)
}

fn identity(
    name: &Name,
    spec: &IdentitySpec,
    consumers: &Arc<Consumers>,
    site: &Site<'_>,
) -> Result<Arc<dyn Identity>, Vec<BuildError>> {
    let (node, name) = (&spec.0.0, name.shared());
    match spec.kind() {
        Some(Kind::ApiKey) => {
            let options: api_key::Options = options(node)?;
            if options.from.is_empty() {
                let message = "no key could ever be found; add `header:x-api-key`";
                return Err(vec![BuildError::at("from", message)]);
            }
            Ok(Arc::new(ApiKeys::new(name, options, consumers.clone())))
        }
        Some(Kind::Jwt) => {
            let matches = Matches::new(consumers.clone(), &name);
            let jwt = Jwt::new(name, options(node)?, matches, site).map_err(|error| vec![error])?;
            Ok(Arc::new(jwt))
        }
        Some(Kind::Introspection) => {
            let matches = Matches::new(consumers.clone(), &name);
            let built = Introspection::new(name, options(node)?, matches, site);
            Ok(Arc::new(built.map_err(|error| vec![error])?))
        }
        Some(Kind::Basic) => Ok(Arc::new(Basic::new(name, options(node)?, consumers.clone(), site))),
        Some(Kind::Hmac) => {
            let hmac = Hmac::new(name, options(node)?, consumers.clone(), site);
            Ok(Arc::new(hmac.map_err(|error| vec![error])?))
        }
        Some(Kind::Mtls) => Ok(Arc::new(Certificates::new(name, &options(node)?, consumers.clone()))),
        Some(Kind::Oidc) => {
            let matches = Matches::new(consumers.clone(), &name);
            let oidc = Oidc::new(name, options(node)?, matches, site);
            Ok(Arc::new(oidc.map_err(|error| vec![error])?))
        }
        None => {
            let written = node.get("type").and_then(|node| node.as_str()).unwrap_or_default();
            let hint = suggest(written, Kind::names()).map(|near| format!("did you mean `{near}`?"));
            let names: Vec<&str> = Kind::names().collect();
            let (last, others) = names.split_last().expect("there are types");
            let message = format!("expected the type `{}` or `{last}`", others.join("`, `"));
            let error = BuildError::at("type", message);
            Err(vec![BuildError { hint, ..error }])
        }
    }
}

fn options<T: DeserializeOwned>(node: &Arc<Node>) -> Result<T, Vec<BuildError>> {
    tree::from_node_all(node).map_err(|errors| {
        let errors = errors.into_iter();
        errors
            .map(|error| BuildError { path: error.path, message: error.message, hint: error.hint })
            .collect()
    })
}
