//! `tollhouse test`: runs the tests written in a configuration file.

use std::path::PathBuf;
use std::sync::Arc;

use tollhouse_filters::registry::Registry;

use super::{Failure, Output, print, print_json};
use crate::engine::dry;
use crate::source;

/// Arguments of `tollhouse test`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    file: PathBuf,
}

pub(super) fn run(arguments: Arguments, registry: &Registry, output: Output) -> Result<(), Failure> {
    let loaded = Arc::new(source::load(&arguments.file)?);
    let results = dry::run_tests(&loaded, registry)?;
    let failed = results.iter().filter(|result| !result.failures.is_empty()).count();
    if output == Output::Json {
        print_json(&results)?;
    } else {
        for result in &results {
            print(format_args!(
                "{} {}",
                if result.failures.is_empty() { "ok  " } else { "FAIL" },
                result.name
            ))?;
            for failure in &result.failures {
                print(format_args!("       {failure}"))?;
            }
        }
        print(format_args!("{} passed, {failed} failed", results.len() - failed))?;
    }
    match failed {
        0 => Ok(()),
        _ if output == Output::Json => Err(Failure::Said(1)),
        _ => Err(Failure::Wrong(format!("{failed} of {} tests failed", results.len()))),
    }
}
