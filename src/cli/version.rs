//! `tollhouse version`.

use serde_json::json;

use super::{Failure, Output, print, print_json};

pub(super) fn run(output: Output) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match output {
        Output::Json => print_json(&json!({"version": version})),
        Output::Text => print(format_args!("tollhouse {version}")),
    }
}
