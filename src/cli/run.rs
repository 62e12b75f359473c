//! `tollhouse run`: serves traffic.

use std::path::PathBuf;
use std::sync::Arc;

use tollhouse_filters::registry::Registry;

use super::Failure;
use crate::server;

/// Arguments of `tollhouse run`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    #[arg(short, long, env = "TOLLHOUSE_CONFIG")]
    config: PathBuf,
}

pub(super) fn run(arguments: Arguments, registry: Arc<Registry>) -> Result<(), Failure> {
    serve(arguments.config, registry)
}

pub(super) fn serve(config: PathBuf, registry: Arc<Registry>) -> Result<(), Failure> {
    server::run(config, registry).map_err(|error| match error {
        server::StartError::Document(problems) => Failure::Problems(problems),
        server::StartError::Runtime(message) => Failure::Runtime(message),
    })
}
