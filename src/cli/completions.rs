//! `tollhouse completions`: what a shell needs to complete commands, options and files.

use clap_complete::Shell;
use serde_json::json;

use super::{Failure, Output, print, print_json};

/// Arguments of `tollhouse completions`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The shell.
    shell: Shell,
}

pub(super) fn run(arguments: Arguments, mut command: clap::Command, output: Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut command, "tollhouse", &mut script);
    let script = String::from_utf8_lossy(&script);
    match output {
        Output::Json => print_json(&json!({"shell": arguments.shell.to_string(), "script": script})),
        Output::Text => print(script.trim_end()),
    }
}
