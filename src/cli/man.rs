//! `tollhouse man`: manual pages, made from the arguments themselves.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::{Failure, Output, print, print_json};

/// Arguments of `tollhouse man`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Writes tollhouse.1 and a page for each command into this folder, instead of printing tollhouse.1.
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
}

pub(super) fn run(arguments: Arguments, command: clap::Command, output: Output) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::Runtime(format!("cannot write manual pages: {error}"));
    if let Some(folder) = arguments.into {
        fs::create_dir_all(&folder).map_err(failed)?;
        clap_mangen::generate_to(command, &folder).map_err(failed)?;
        if output == Output::Json {
            print_json(&json!({"into": folder}))?;
        }
        return Ok(());
    }
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page).map_err(failed)?;
    let page = String::from_utf8_lossy(&page);
    match output {
        Output::Json => print_json(&json!({"page": page})),
        Output::Text => print(page.trim_end()),
    }
}
