//! `tollhouse explain`: what would happen to a request, and why.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tollhouse_filters::registry::Registry;

use super::{Failure, Output, print, print_json};
use crate::engine::dry;
use crate::engine::explain::{Question, explain};
use crate::source;

/// Arguments of `tollhouse explain`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The configuration file.
    #[arg(short, long, env = "TOLLHOUSE_CONFIG")]
    config: PathBuf,
    /// The method, such as GET.
    method: String,
    /// An absolute URL or a path.
    url: String,
    /// A header field, `name: value`; may be repeated.
    #[arg(short = 'H', long = "header", value_parser = header)]
    headers: Vec<(String, String)>,
    /// The listener that the request comes in through; the first one by default.
    #[arg(long)]
    listener: Option<String>,
    /// The client's address.
    #[arg(long)]
    client: Option<IpAddr>,
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected `name: value`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

pub(super) fn run(arguments: Arguments, registry: &Registry, output: Output) -> Result<(), Failure> {
    let loaded = Arc::new(source::load(&arguments.config)?);
    let snapshot = dry::snapshot_now(&loaded, registry)?;
    let question = Question {
        method: arguments.method,
        url: arguments.url,
        headers: arguments.headers,
        listener: arguments.listener,
        client: arguments.client,
    };
    let explanation = dry::block_on(explain(&snapshot, &question))
        .ok_or_else(|| Failure::Runtime("a filter did not come to a decision".to_owned()))?
        .map_err(Failure::Wrong)?;
    match output {
        Output::Json => print_json(&explanation),
        Output::Text => print(explanation.to_string().trim_end()),
    }
}
