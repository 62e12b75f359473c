//! Behaviour of the tree as its users see it.

mod collect;
mod de;
mod property;
mod yaml;

use std::sync::Arc;

use super::{FileId, Limits, Node, Path, Step, parse};

/// Parses a document that is right.
fn tree(text: &str) -> Arc<Node> {
    parse(text, FileId(0), &Limits::default()).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// The errors of a document that is wrong, one a line.
fn refused(text: &str) -> Vec<String> {
    let errors = parse(text, FileId(0), &Limits::default()).expect_err("a wrong document");
    errors.iter().map(ToString::to_string).collect()
}

fn path(steps: &[&str]) -> Path {
    let step = |step: &&str| step.parse().map_or_else(|_| Step::from(*step), Step::Index);
    steps.iter().map(step).collect()
}

/// The tree with `${X}` replaced by `secret` and marked as substituted.
fn substituted(text: &str, secret: &str) -> Arc<Node> {
    tree(text).map_scalars(|scalar, _, _| {
        scalar.text().contains("${X}").then(|| scalar.substitute(scalar.text().replace("${X}", secret)))
    })
}
