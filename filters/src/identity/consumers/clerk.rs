//! From a written consumer to a record, or what is wrong with it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::proof::proof;
use super::record::{Credential, Match, Proof, Record};
use super::{IdentityNo, Layout};
use crate::context::Consumer;
use crate::filter::BuildError;
use crate::identity::KeyHash;
use crate::identity::spec::{ConsumerSpec, CredentialSpec, Kind, MatchSpec};
use crate::tree::{Path, suggest};
use crate::values::Name;

/// How many different texts are kept to be shared; what few consumers have in common is not worth more.
const SHARED: usize = 4096;

/// Makes records of written consumers. What many of them have in common, they share.
pub struct Clerk<'a> {
    layout: &'a Layout,
    texts: HashSet<Arc<str>>,
    groups: HashSet<Arc<[Arc<str>]>>,
}

impl<'a> Clerk<'a> {
    /// A clerk for consumers of these identities.
    #[must_use]
    pub fn new(layout: &'a Layout) -> Self {
        Self { layout, texts: HashSet::new(), groups: HashSet::new() }
    }

    /// The record of a consumer, and all that is wrong with it, with paths from it. What is wrong has its place
    /// in the record, but is not found.
    pub fn record(&mut self, spec: ConsumerSpec) -> (Arc<Record>, Vec<BuildError>) {
        let mut errors = Vec::new();
        let mut credentials = Vec::with_capacity(spec.credentials.len());
        for (at, credential) in spec.credentials.iter().enumerate() {
            let path = Path::default().join("credentials").join(at);
            if spec.credentials[..at].iter().any(|other| other.id == credential.id) {
                let message = format!("another credential of this consumer is called `{}`", credential.id);
                errors.push(refused(path.join("id"), message, None));
            }
            let credential = self.credential(credential, &path, &mut errors);
            let is_same = |other: &&Credential| other.found_by() == credential.found_by();
            if matches!(credential.proof, Proof::Password(_))
                && credentials.iter().filter(is_same).count() >= 2
            {
                let message = "a user has at most two passwords, of which one follows the other";
                errors.push(refused(path.clone(), message, None));
            }
            credentials.push(credential);
        }
        let mut matches = Vec::with_capacity(spec.matches.len());
        for (at, wanted) in spec.matches.into_iter().enumerate() {
            let path = Path::default().join("match").join(at);
            matches.push(self.matched(wanted, &path, &mut errors));
        }
        let groups: Vec<_> = spec.groups.iter().map(|group| self.text(group.shared())).collect();
        let plan = spec.plan.map(|plan| self.plan(&plan, &mut errors));
        let consumer = Arc::new(Consumer { name: spec.name.shared(), groups: self.groups(groups), plan });
        let (credentials, matches) = (credentials.into(), matches.into());
        let record = Record { consumer, credentials, matches, disabled: spec.disabled };
        (Arc::new(record), errors)
    }

    fn credential(&mut self, spec: &CredentialSpec, path: &Path, errors: &mut Vec<BuildError>) -> Credential {
        let identity = self.identity_of(spec.kind.into(), spec.identity.as_ref(), path);
        let mut identity = identity.unwrap_or_else(|error| {
            errors.push(error);
            IdentityNo::NONE
        });
        let proof = proof(spec).unwrap_or_else(|error| {
            errors.push(BuildError { path: path.concat(&error.path), ..error });
            identity = IdentityNo::NONE;
            Proof::ApiKey(KeyHash::of(&[]))
        });
        let end = spec.expires.and_then(|date| date.get().duration_since(UNIX_EPOCH).ok());
        let expires = end.map_or(u64::MAX, |end| end.as_secs());
        Credential { id: self.text(spec.id.shared()), identity, disabled: spec.disabled, expires, proof }
    }

    /// The identity that a credential is for: the one it names, else the only one there is of its type. None
    /// where an identity of no known type may have been meant, which is an error of its own.
    fn identity_of(&self, kind: Kind, wanted: Option<&Name>, path: &Path) -> Result<IdentityNo, BuildError> {
        let fitting: Vec<IdentityNo> = self.layout.of_kind(kind).collect();
        let names = || fitting.iter().map(|number| &**self.layout.name(*number));
        let Some(wanted) = wanted else {
            let message = match fitting.as_slice() {
                [only] => return Ok(*only),
                [] if self.layout.identities.iter().any(|(_, kind)| kind.is_none()) => {
                    return Ok(IdentityNo::NONE);
                }
                [] => format!("no identity is of type `{kind}`, so this credential opens nothing"),
                _ => {
                    let names = names().collect::<Vec<_>>().join("`, `");
                    format!("several identities are of type `{kind}`: add `identity`, one of `{names}`")
                }
            };
            return Err(refused(path.clone(), message, None));
        };
        let number = self.layout.number(wanted.as_str());
        let message = match number.map(|number| (number, self.layout.kind(number))) {
            Some((number, Some(other))) if other == kind => return Ok(number),
            Some((_, None)) => return Ok(IdentityNo::NONE),
            Some(_) => format!("`{wanted}` is not of type `{kind}`"),
            None => format!("no identity is named `{wanted}`"),
        };
        Err(refused(path.join("identity"), message, did_you_mean(wanted.as_str(), names())))
    }

    fn matched(&mut self, wanted: MatchSpec, path: &Path, errors: &mut Vec<BuildError>) -> Match {
        let identity = self.claims_of(wanted.identity.as_str(), path).unwrap_or_else(|error| {
            errors.push(error);
            IdentityNo::NONE
        });
        Match { identity, claim: self.text(wanted.claim.into()), value: wanted.value.into() }
    }

    /// The identity of this name, which verifies claims.
    fn claims_of(&self, name: &str, path: &Path) -> Result<IdentityNo, BuildError> {
        let number = self.layout.number(name);
        let path = path.join("identity");
        match number.map(|number| (number, self.layout.kind(number))) {
            Some((identity, Some(kind))) if kind.has_claims() => Ok(identity),
            Some((_, Some(kind))) => Err(refused(
                path,
                format!("`{name}` is of type `{kind}`, which knows consumers by `credentials`"),
                None,
            )),
            Some((_, None)) => Ok(IdentityNo::NONE),
            None => {
                let hint = did_you_mean(name, self.layout.names());
                Err(refused(path, format!("no identity is named `{name}`"), hint))
            }
        }
    }

    fn plan(&self, plan: &Name, errors: &mut Vec<BuildError>) -> Arc<str> {
        let plans = &self.layout.plans;
        plans.get(plan.as_str()).cloned().unwrap_or_else(|| {
            let hint = did_you_mean(plan.as_str(), plans.iter().map(|name| &**name));
            errors.push(refused(Path::default().join("plan"), format!("no plan is named `{plan}`"), hint));
            plan.shared()
        })
    }

    fn text(&mut self, text: Arc<str>) -> Arc<str> {
        if let Some(known) = self.texts.get(&text) {
            return known.clone();
        }
        if self.texts.len() < SHARED {
            self.texts.insert(text.clone());
        }
        text
    }

    fn groups(&mut self, groups: Vec<Arc<str>>) -> Arc<[Arc<str>]> {
        if let Some(known) = self.groups.get(&*groups) {
            return known.clone();
        }
        let groups: Arc<[Arc<str>]> = groups.into();
        if self.groups.len() < SHARED {
            self.groups.insert(groups.clone());
        }
        groups
    }
}

fn refused(path: Path, message: impl Into<String>, hint: Option<String>) -> BuildError {
    BuildError { path, message: message.into(), hint }
}

fn did_you_mean<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Option<String> {
    suggest(wanted, names).map(|near| format!("did you mean `{near}`?"))
}
