//! From written identities and consumers to what verifies credentials.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use serde::de::DeserializeOwned;

use super::api_key::{self, ApiKeys, Key, KeyHash};
use super::claims::Matches;
use super::introspection::{self, Introspection};
use super::jwt::{self, Jwt};
use super::remote::Remote;
use super::spec::{ConsumerSpec, CredentialKind, CredentialSpec, IdentitySpec, Kind, MatchSpec};
use super::{Broken, Identity, Source};
use crate::context::Consumer;
use crate::filter::{BuildError, Surroundings};
use crate::plan::Plans;
use crate::tree::{self, Node, Path, suggest};
use crate::values::{Name, Url};
use crate::world::{UpstreamId, World};

/// The identities of a document, by name.
#[derive(Default)]
pub struct Identities {
    by_name: BTreeMap<Arc<str>, Arc<dyn Identity>>,
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

    /// Where any of them looks for credentials; logs must not show what is there.
    pub fn sources(&self) -> impl Iterator<Item = &Source> {
        self.by_name.values().flat_map(|identity| identity.sources())
    }

    /// Whether any of them looks for credentials in this field.
    #[must_use]
    pub fn read_field(&self, name: &HeaderName) -> bool {
        self.sources().any(|source| matches!(source, Source::Header(field) if field == name))
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

/// Builds the identities of a document; their problems have paths from its root.
#[must_use]
pub fn build(
    identities: &BTreeMap<Name, IdentitySpec>,
    consumers: &[ConsumerSpec],
    site: &Site<'_>,
) -> (Identities, Vec<BuildError>) {
    let mut builder = Builder::default();
    for (name, spec) in identities {
        builder.identity(name, spec);
    }
    let none = Plans::default();
    let plans = site.surroundings.plans().unwrap_or(&none);
    for (at, consumer) in consumers.iter().enumerate() {
        builder.consumer(at, consumer, plans);
    }
    builder.finish(site)
}

#[derive(Default)]
struct Builder {
    identities: BTreeMap<Arc<str>, Draft>,
    /// Where each key stands, by the identity it is for.
    keys: HashMap<(Arc<str>, KeyHash), Path>,
    /// Where each claim and value stands, by the identity that verifies them.
    matches: HashMap<[String; 3], Path>,
    errors: Vec<BuildError>,
}

/// An identity that waits for its consumers; one with mistakes has no options.
enum Draft {
    ApiKey(Option<api_key::Options>, HashMap<KeyHash, Key>),
    Introspection(Option<Box<introspection::Options>>, Matches),
    Jwt(Option<Box<jwt::Options>>, Matches),
    /// Of no type there is.
    Unknown,
}

impl Draft {
    fn kind(&self) -> Option<Kind> {
        match self {
            Self::ApiKey(..) => Some(Kind::ApiKey),
            Self::Introspection(..) => Some(Kind::Introspection),
            Self::Jwt(..) => Some(Kind::Jwt),
            Self::Unknown => None,
        }
    }
}

fn place(parts: &[&str]) -> Path {
    parts.iter().copied().collect()
}

fn did_you_mean<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    suggest(wanted, names).map(|near| format!("did you mean `{near}`?"))
}

impl Builder {
    fn refuse(&mut self, path: Path, message: impl Into<String>, hint: Option<String>) {
        self.errors.push(BuildError { path, message: message.into(), hint });
    }

    fn identity(&mut self, name: &Name, spec: &IdentitySpec) {
        let path = place(&["identities", name.as_str()]);
        let node = &spec.0.0;
        let written = node.get("type").and_then(|node| node.as_str());
        let draft = match written.and_then(Kind::read) {
            Some(Kind::ApiKey) => Draft::ApiKey(self.options(node, &path), HashMap::new()),
            Some(Kind::Introspection) => {
                Draft::Introspection(self.options(node, &path).map(Box::new), Matches::default())
            }
            Some(Kind::Jwt) => Draft::Jwt(self.options(node, &path).map(Box::new), Matches::default()),
            None => {
                let hint = did_you_mean(written.unwrap_or_default(), Kind::NAMES);
                self.refuse(path.join("type"), "expected the type `api_key`, `introspection` or `jwt`", hint);
                Draft::Unknown
            }
        };
        self.identities.insert(name.shared(), draft);
    }

    fn options<T: DeserializeOwned>(&mut self, node: &Arc<Node>, path: &Path) -> Option<T> {
        let errors = match tree::from_node_all(node) {
            Ok(options) => return Some(options),
            Err(errors) => errors,
        };
        self.errors.extend(errors.into_iter().map(|error| BuildError {
            path: path.concat(&error.path),
            message: error.message,
            hint: error.hint,
        }));
        None
    }

    fn consumer(&mut self, at: usize, spec: &ConsumerSpec, plans: &Plans) {
        let path = place(&["consumers"]).join(at);
        let groups = spec.groups.iter().map(Name::shared).collect();
        let plan = spec.plan.as_ref().map(Name::shared);
        if let Some(error) = plan.as_deref().and_then(|plan| plans.find(plan).err()) {
            self.refuse(path.join("plan"), error.message, error.hint);
        }
        let consumer = Arc::new(Consumer { name: spec.name.shared(), groups, plan });
        for (nth, wanted) in spec.matches.iter().enumerate() {
            self.matched(&consumer, wanted, &path.join("match").join(nth));
        }
        for (nth, credential) in spec.credentials.iter().enumerate() {
            let path = path.join("credentials").join(nth);
            if spec.credentials[..nth].iter().any(|other| other.id == credential.id) {
                let message = format!("another credential of this consumer is called `{}`", credential.id);
                self.refuse(path.join("id"), message, None);
            }
            let CredentialKind::ApiKey = credential.kind;
            self.key(&consumer, credential, &path);
        }
    }

    fn matched(&mut self, consumer: &Arc<Consumer>, wanted: &MatchSpec, path: &Path) {
        let name = wanted.identity.as_str();
        let message = match self.identities.get_mut(name) {
            Some(Draft::Introspection(_, matches) | Draft::Jwt(_, matches)) => {
                matches.add(wanted, consumer);
                let key = [name.to_owned(), wanted.claim.clone(), wanted.value.clone()];
                let Some(other) = self.matches.insert(key, path.clone()) else { return };
                let message = format!("{other} has the same claim and value");
                return self.refuse(path.join("value"), message, None);
            }
            Some(Draft::ApiKey(..)) => format!("`{name}` is of type `api_key`, which has no claims"),
            Some(Draft::Unknown) => return,
            None => format!("no identity is named `{name}`"),
        };
        let hint = did_you_mean(name, self.identities.keys().map(|name| &**name));
        self.refuse(path.join("identity"), message, hint.filter(|_| !self.identities.contains_key(name)));
    }

    fn key(&mut self, consumer: &Arc<Consumer>, spec: &CredentialSpec, path: &Path) {
        let Some(identity) = self.identity_of(spec, path) else { return };
        let Some(Draft::ApiKey(_, keys)) = self.identities.get_mut(&identity) else { return };
        let expires = spec.expires.map(crate::values::Date::get);
        keys.insert(spec.hash, Key { consumer: consumer.clone(), id: spec.id.shared(), expires });
        if let Some(other) = self.keys.insert((identity, spec.hash), path.clone()) {
            self.refuse(path.join("hash"), format!("{other} is the same key"), None);
        }
    }

    /// The identity that a key is for: the one it names, else the only one there is.
    fn identity_of(&mut self, spec: &CredentialSpec, path: &Path) -> Option<Arc<str>> {
        let of_keys = self.identities.iter().filter(|(_, draft)| draft.kind() == Some(Kind::ApiKey));
        let names: Vec<Arc<str>> = of_keys.map(|(name, _)| name.clone()).collect();
        let Some(wanted) = &spec.identity else {
            let message = match names.as_slice() {
                [only] => return Some(only.clone()),
                [] if self.identities.values().any(|draft| draft.kind().is_none()) => return None,
                [] => "no identity is of type `api_key`, so this key opens nothing".to_owned(),
                several => {
                    let names = several.join("`, `");
                    format!("several identities are of type `api_key`: add `identity`, one of `{names}`")
                }
            };
            self.refuse(path.clone(), message, None);
            return None;
        };
        if names.contains(&wanted.shared()) {
            return Some(wanted.shared());
        }
        let message = match self.identities.get(wanted.as_str()) {
            Some(Draft::Unknown) => return None,
            Some(_) => format!("`{wanted}` is not of type `api_key`"),
            None => format!("no identity is named `{wanted}`"),
        };
        let hint = did_you_mean(wanted.as_str(), names.iter().map(|name| &**name));
        self.refuse(path.join("identity"), message, hint);
        None
    }

    fn finish(mut self, site: &Site<'_>) -> (Identities, Vec<BuildError>) {
        let mut built = Identities::default();
        for (name, draft) in std::mem::take(&mut self.identities) {
            let identity: Result<Arc<dyn Identity>, BuildError> = match draft {
                Draft::ApiKey(Some(options), _) if options.from.is_empty() => {
                    Err(BuildError::at("from", "no key could ever be found; add `header:x-api-key`"))
                }
                Draft::ApiKey(Some(options), keys) => Ok(Arc::new(ApiKeys::new(name.clone(), options, keys))),
                Draft::Introspection(Some(options), matches) => {
                    Introspection::new(name.clone(), *options, matches, site)
                        .map(|built| Arc::new(built) as _)
                }
                Draft::Jwt(Some(options), matches) => {
                    Jwt::new(name.clone(), *options, matches, site).map(|jwt| Arc::new(jwt) as _)
                }
                Draft::ApiKey(None, _)
                | Draft::Introspection(None, _)
                | Draft::Jwt(None, _)
                | Draft::Unknown => Ok(Arc::new(Broken { name: name.clone() })),
            };
            let identity = identity.unwrap_or_else(|error| {
                let path = place(&["identities", &name]).concat(&error.path);
                self.errors.push(BuildError { path, ..error });
                Arc::new(Broken { name: name.clone() })
            });
            built.by_name.insert(name, identity);
        }
        (built, self.errors)
    }
}
