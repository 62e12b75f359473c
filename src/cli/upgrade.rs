//! `tollhouse upgrade`: has this program take the place of a running one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tollhouse_filters::tree::{FileId, Limits, Node, from_node_all, parse_bytes};

use super::{Failure, Output, print, print_json};
use crate::config::Document;
use crate::handover::{Answer, Ask, Place};
use crate::source::{self, Problems};

/// How long the new process may take to come up, and the old one to notice that it does not.
const PATIENCE: Duration = Duration::from_secs(180);

/// Arguments of `tollhouse upgrade`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The running gateway's configuration file; its `server.upgrade_socket` is where the gateway is asked.
    #[arg(short, long, env = "TOLLHOUSE_CONFIG")]
    config: Option<PathBuf>,
    /// Where the gateway is asked, whatever the file says.
    #[arg(long)]
    socket: Option<PathBuf>,
}

#[derive(Serialize)]
struct Upgraded {
    old: u32,
    new: u32,
}

pub(super) fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let (place, config) = match (arguments.socket, arguments.config.as_deref()) {
        (Some(socket), _) => (Place::at(socket), None),
        (None, config) => (written(config)?.unwrap_or_else(Place::likely), config),
    };
    match ask(&place, config)? {
        Answer::Replaced { old, new } if output == Output::Json => print_json(&Upgraded { old, new }),
        Answer::Replaced { old, new } => {
            print(format_args!("process {new} serves; process {old} finishes what is under way, then ends"))
        }
        Answer::Refused { reason, configuration: true } => Err(Failure::Wrong(reason)),
        Answer::Refused { reason, configuration: false } => Err(Failure::Runtime(reason)),
    }
}

/// What the document says of the place. What else its references name may be there for the gateway only, such as
/// variables of a service.
fn written(config: Option<&Path>) -> Result<Option<Place>, Failure> {
    let Some(config) = config else { return Ok(None) };
    let root = parsed(config)?;
    let Some(node) = root.get("server").and_then(|server| server.get("upgrade_socket")) else {
        return Ok(None);
    };
    let located = |mut problems: Problems| {
        for problem in &mut problems.list {
            (problem.place.line, problem.place.column) = (node.at.line, node.at.column);
        }
        problems
    };
    let alone = serde_json::json!({"version": 1, "server": {"upgrade_socket": node}}).to_string();
    let name = config.display().to_string();
    let loaded = source::load_str(&alone, &name, config.parent(), &source::process_environment);
    let loaded = loaded.and_then(source::Loaded::sound).map_err(located)?;
    let document: Document =
        from_node_all(&loaded.root).map_err(|errors| located(Problems::located(errors, &loaded.files)))?;
    Ok(document.server.upgrade_socket.map(|socket| Place::at(socket.path().into())))
}

/// The file itself, with its references as they are; what it includes says nothing of the server.
fn parsed(config: &Path) -> Result<Arc<Node>, Failure> {
    let bytes = std::fs::read(config).ok();
    match bytes.and_then(|bytes| parse_bytes(&bytes, FileId(0), &Limits::default()).ok()) {
        Some(root) => Ok(root),
        // This tells what is wrong with it.
        None => Ok(source::load(config)?.root),
    }
}

/// Asks the gateway there, if it serves this document, where one is named.
fn ask(place: &Place, config: Option<&Path>) -> Result<Answer, Failure> {
    let failed =
        |error: std::io::Error| Failure::Runtime(format!("the running gateway does not answer: {error}"));
    let program = std::env::current_exe()
        .map_err(|error| Failure::Runtime(format!("cannot tell where this program is: {error}")))?;
    let mut gateway = place.connect().map_err(|error| Failure::Runtime(error.to_string()))?;
    gateway.set_patience(PATIENCE).map_err(failed)?;
    // What is not text cannot be told.
    let config = config.and_then(|config| config.canonicalize().ok()).filter(|path| path.to_str().is_some());
    gateway.send(&Ask { program, config }).map_err(failed)?;
    gateway.receive().map_err(failed)
}
