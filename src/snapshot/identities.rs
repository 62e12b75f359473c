//! From written identities and consumers to what `authenticate` is given.

use std::collections::BTreeMap;
use std::path::Path as FilePath;
use std::sync::Arc;

use tollhouse_filters::filter::Surroundings;
use tollhouse_filters::identity::{self, Identities, Site, Source};
use tollhouse_filters::plan::{self, Plans};
use tollhouse_filters::tree::Path;
use tollhouse_filters::world::{Stores, UpstreamId, World};

use super::compile::{Faults, did_you_mean};
use crate::config::Document;
use crate::config::observability::Redaction;
use crate::consumers::Roster;
use crate::source::Problems;

/// Finds the consumers of a document, whose files are below `base` if it may name any; what is wrong with those
/// of a file.
pub(super) fn roster(
    document: &mut Document,
    plans: &Plans,
    base: Option<&FilePath>,
    kept: Option<&Arc<Roster>>,
    faults: &mut Faults<'_>,
) -> (Arc<Roster>, Problems) {
    let (written, layout) =
        (std::mem::take(&mut document.consumers), identity::layout(&document.identities, plans));
    let (roster, found) = Roster::of(written, layout, base, kept);
    // What is the same as of another one is told with the number of that, which is another than is written where one
    // before it could not be read.
    let is_numbered = |message: &str| message.starts_with("consumers[");
    let all_there = faults.is_sound(&["consumers"]);
    for error in found.document.into_iter().filter(|error| all_there || !is_numbered(&error.message)) {
        let path = Path::default().join("consumers").concat(&error.path);
        faults.add_with_hint(&path, error.message, error.hint);
    }
    (roster, found.file)
}

/// What a document has for its identities.
pub(super) struct Around<'a> {
    pub(super) upstreams: &'a BTreeMap<Arc<str>, UpstreamId>,
    pub(super) plans: &'a Plans,
    pub(super) stores: &'a Stores,
}

impl Surroundings for Around<'_> {
    fn plans(&self) -> Option<&Plans> {
        Some(self.plans)
    }

    fn stores(&self) -> Option<&Stores> {
        Some(self.stores)
    }

    fn upstream(&self, name: &str) -> Option<UpstreamId> {
        self.upstreams.get(name).copied()
    }

    fn nearest_upstream(&self, name: &str) -> Option<String> {
        did_you_mean(name, self.upstreams.keys().map(|name| &**name))
    }
}

/// Builds the plans of a document.
pub(super) fn plans(document: &Document, faults: &mut Faults<'_>) -> Plans {
    let (plans, errors) = plan::build(&document.plans);
    for error in errors {
        faults.add_with_hint(&error.path, error.message, error.hint);
    }
    plans
}

/// Builds the identities of a document, and has its logs hide what they take credentials from. Cookies are
/// always hidden.
pub(super) fn build(
    document: &mut Document,
    roster: &Roster,
    world: &World,
    around: &Around<'_>,
    faults: &mut Faults<'_>,
) -> Identities {
    let site = Site { world, surroundings: around };
    let (identities, errors) = identity::build(&document.identities, roster.consumers(), &site);
    for error in errors {
        faults.add_with_hint(&error.path, error.message, error.hint);
    }
    let hidden = &mut document.observability.access_log.redact;
    for source in identities.secrets() {
        let redaction = match source {
            Source::Header(name) => Redaction::Header(name.clone()),
            Source::Query(name) => Redaction::Query(name.clone()),
            Source::Cookie(_) => continue,
        };
        if !hidden.contains(&redaction) {
            hidden.push(redaction);
        }
    }
    identities
}
