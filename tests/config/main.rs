//! Configuration as its users meet it: examples, error messages, the command line, the admin API,
//! the schema and the manual, each compared with what the program does.

mod admin;
mod admin_api;
mod cli;
mod examples;
mod fmt;
mod gateway;
mod golden;
mod http;
mod manual;
mod revocations;
mod schema;
mod tls;

use std::path::{Path, PathBuf};

/// A file or folder of this project.
fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The YAML files of a folder, sorted.
fn yaml_files(folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(project(folder)).expect("the folder exists");
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    files
}

fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|stem| stem.to_str()).expect("a name in UTF-8")
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}
