//! `tollhouse check`: every problem of a configuration file at once, whether of references, keys, types or meaning.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use tollhouse_filters::registry::Registry;
use tollhouse_filters::world::World;

use super::{Failure, Output, print, print_json};
use crate::snapshot::{Compiler, Mode};
use crate::source;

/// Arguments of `tollhouse check`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    file: PathBuf,
}

pub(super) fn run(arguments: Arguments, registry: &Registry, output: Output) -> Result<(), Failure> {
    let loaded = Arc::new(source::load(&arguments.file)?);
    let world = World::dry();
    let snapshot = Compiler { registry, world: &world, previous: None, mode: Mode::Dry, roster: None }
        .compile(&loaded)?;
    if output == Output::Json {
        let warnings = &snapshot.warnings;
        return print_json(&json!({"ok": true, "routes": snapshot.routes.len(), "warnings": warnings}));
    }
    for warning in &snapshot.warnings.list {
        let _ = writeln!(std::io::stderr(), "warning: {warning}");
    }
    print(format_args!(
        "{}: fine ({} routes, {} upstreams, {} tests)",
        arguments.file.display(),
        snapshot.routes.len(),
        snapshot.upstreams.len(),
        snapshot.tests.len()
    ))
}
