//! From written identities and consumers to what verifies credentials.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use http::HeaderName;
use serde::de::DeserializeOwned;

use super::api_key::{self, ApiKeys};
use super::consumers::{Clerk, Consumers, Index, Layout, Matches, Record};
use super::jwt::Jwt;
use super::spec::{ConsumerSpec, IdentitySpec, Kind};
use super::{Broken, Identity, Source};
use crate::filter::BuildError;
use crate::tree::{self, Node, Path, suggest};
use crate::values::Name;

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

/// Builds the identities of a document; their problems have paths from its root. They look up in `consumers`,
/// of this very [`layout`].
#[must_use]
pub fn build(
    identities: &BTreeMap<Name, IdentitySpec>,
    consumers: &Arc<Consumers>,
) -> (Identities, Vec<BuildError>) {
    let (mut built, mut errors) = (Identities::default(), Vec::new());
    for (name, spec) in identities {
        let identity = identity(name, spec, consumers).unwrap_or_else(|found| {
            let path: Path = ["identities", name.as_str()].into_iter().collect();
            errors.extend(
                found.into_iter().map(|error| BuildError { path: path.concat(&error.path), ..error }),
            );
            Arc::new(Broken { name: name.shared() })
        });
        built.by_name.insert(name.shared(), identity);
    }
    (built, errors)
}

/// The identities that consumers refer to.
#[must_use]
pub fn layout(identities: &BTreeMap<Name, IdentitySpec>) -> Layout {
    Layout::new(identities.iter().map(|(name, spec)| (name.shared(), spec.kind())))
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
            let jwt = Jwt::new(name, options(node)?, matches).map_err(|error| vec![error])?;
            Ok(Arc::new(jwt))
        }
        None => {
            let written = node.get("type").and_then(|node| node.as_str()).unwrap_or_default();
            let hint = suggest(written, Kind::NAMES).map(|near| format!("did you mean `{near}`?"));
            let error = BuildError::at("type", "expected the type `api_key` or `jwt`");
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
