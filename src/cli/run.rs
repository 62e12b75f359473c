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
    /// Take over from the process at the other end of standard input; `tollhouse upgrade` has it started so.
    #[arg(long, hide = true)]
    take_over: bool,
    /// With --take-over: nobody's child.
    #[arg(long, hide = true, requires = "take_over")]
    orphaned: bool,
}

pub(super) fn run(arguments: Arguments, registry: Arc<Registry>) -> Result<(), Failure> {
    let origin = match (arguments.take_over, arguments.orphaned) {
        (false, _) => server::Origin::First,
        (true, false) => server::Origin::Child,
        (true, true) => server::Origin::Successor,
    };
    server::run(arguments.config, registry, origin, || Ok(()))
}
