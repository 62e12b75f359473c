//! From written identities and consumers to what `authenticate` is given.

use tollhouse_filters::identity::{self, Identities, Source};
use tollhouse_filters::plan::{self, Plans};

use super::compile::Faults;
use crate::config::Document;
use crate::config::observability::Redaction;

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
pub(super) fn build(document: &mut Document, plans: &Plans, faults: &mut Faults<'_>) -> Identities {
    let (identities, errors) = identity::build(&document.identities, &document.consumers, plans);
    for error in errors {
        faults.add_with_hint(&error.path, error.message, error.hint);
    }
    let hidden = &mut document.observability.access_log.redact;
    for source in identities.sources() {
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
