//! From written identities and consumers to what `authenticate` is given.

use std::path::Path as FilePath;
use std::sync::Arc;

use tollhouse_filters::identity::{self, Identities, Source};
use tollhouse_filters::tree::Path;

use super::compile::Faults;
use crate::config::Document;
use crate::config::observability::Redaction;
use crate::consumers::Roster;
use crate::source::Problems;

/// Finds the consumers of a document, whose files are below `base` if it may name any; what is wrong with those
/// of a file.
pub(super) fn roster(
    document: &mut Document,
    base: Option<&FilePath>,
    kept: Option<&Arc<Roster>>,
    faults: &mut Faults<'_>,
) -> (Arc<Roster>, Problems) {
    let (written, layout) = (std::mem::take(&mut document.consumers), identity::layout(&document.identities));
    let (roster, found) = Roster::of(written, layout, base, kept);
    for error in found.document {
        let path = Path::default().join("consumers").concat(&error.path);
        faults.add_with_hint(&path, error.message, error.hint);
    }
    (roster, found.file)
}

/// Builds the identities of a document, and has its logs hide what they take credentials from. Cookies are
/// always hidden.
pub(super) fn build(document: &mut Document, roster: &Roster, faults: &mut Faults<'_>) -> Identities {
    let (identities, errors) = identity::build(&document.identities, roster.consumers());
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
