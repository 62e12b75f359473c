//! `tests/golden/*.yaml`: a document, and what the program says about it, word by word.
//!
//! ```text
//! version: 1
//! # ---- file conf.d/a.yaml          a further file beside the document
//! # ---- env NAME=value              a variable of its environment
//! # ---- expected                    what `tollhouse check` says, a line each
//! # document:1:1: no `listeners`: ...
//! # schema: accepts                  what the JSON Schema says about the document alone
//! ```
//!
//! `TOLLHOUSE_GOLDEN=write` writes what is said now; read the difference before it is committed.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tollhouse::snapshot::{Action, Compiler, Mode, Snapshot};
use tollhouse::source::{self, Problems};
use tollhouse_filters::world::World;

use crate::{read, schema, stem, yaml_files};

const SEPARATOR: &str = "# ---- ";

/// A golden file, taken apart.
struct Case {
    document: String,
    files: Vec<(String, String)>,
    environment: BTreeMap<String, String>,
    expected: String,
}

impl Case {
    fn parse(text: &str) -> Case {
        let mut case = Case {
            document: String::new(),
            files: Vec::new(),
            environment: BTreeMap::new(),
            expected: String::new(),
        };
        let mut parts = text.split(SEPARATOR);
        case.document = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (head, body) = part.split_once('\n').expect("a line end");
            match head.split_once(' ') {
                Some(("file", name)) => case.files.push((name.to_owned(), body.to_owned())),
                Some(("env", set)) => {
                    let (name, value) = set.split_once('=').expect("NAME=value");
                    case.environment.insert(name.to_owned(), value.to_owned());
                }
                _ if head == "expected" => case.expected = body.to_owned(),
                _ => panic!("{head}: no such part"),
            }
        }
        case
    }

    /// What the program says, in the form of the part `expected`.
    fn said(&self) -> String {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in &self.files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
            std::fs::write(path, text).expect("written");
        }
        let mut lines = match self.compile(folder.path()) {
            Ok(snapshot) => summary(&snapshot),
            Err(problems) => problems.list.iter().map(ToString::to_string).collect(),
        };
        lines.extend(self.schema());
        let root = format!("{}/", folder.path().display());
        lines.iter().map(|line| format!("# {}\n", line.replace(&root, ""))).collect()
    }

    fn compile(&self, base: &Path) -> Result<Snapshot, Problems> {
        let environment = |name: &str| self.environment.get(name).cloned();
        // Files are named from the folder of the document.
        let name = base.join("document").display().to_string();
        let loaded = Arc::new(source::load_str(&self.document, &name, Some(base), &environment)?);
        let (registry, world) = (tollhouse_filters::builtin(), World::dry());
        Compiler { registry: &registry, world: &world, previous: None, mode: Mode::Dry, roster: None }
            .compile(&loaded)
    }

    /// What the schema says; nothing where the document is no YAML.
    fn schema(&self) -> Option<String> {
        let document: Value = serde_yaml::from_str(&self.document).ok()?;
        let verdict = if schema::validator().is_valid(&document) { "accepts" } else { "refuses" };
        Some(format!("schema: {verdict}"))
    }
}

fn names(upstreams: &[Arc<tollhouse::upstream::Upstream>]) -> String {
    upstreams.iter().map(|upstream| &*upstream.name).collect::<Vec<_>>().join(", ")
}

/// Routes with what they do, then warnings.
fn summary(snapshot: &Snapshot) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for route in &snapshot.routes {
        let action = match &route.action {
            Action::Upstream(upstream) => format!("upstream {}", upstream.name),
            Action::Versions(upstreams) => format!("versions at {}", names(upstreams)),
            Action::Split(split) => format!("split between {}", names(&split.upstreams)),
            Action::Answer(_) => "answer".to_owned(),
            Action::NotFound => "nothing".to_owned(),
        };
        let steps = [&route.shared, &route.own].into_iter().flat_map(|pipeline| pipeline.steps());
        let filters: Vec<&str> = steps.map(|step| &*step.instance).collect();
        lines.push(format!("route {}: [{}] {action}", route.name, filters.join(", ")));
    }
    lines.extend(snapshot.warnings.list.iter().map(|warning| format!("warning: {warning}")));
    lines.insert(0, format!("fine: {} routes", snapshot.routes.len()));
    lines
}

#[test]
fn every_document_is_answered_word_by_word() {
    let write = std::env::var("TOLLHOUSE_GOLDEN").is_ok_and(|value| value == "write");
    let files = yaml_files("tests/golden");
    assert!(files.len() > 20, "the golden files are missing");
    let mut wrong = Vec::new();
    for path in files {
        let text = read(&path);
        let case = Case::parse(&text);
        let said = case.said();
        if said == case.expected {
            continue;
        }
        if write {
            let head = text.split("# ---- expected\n").next().expect("a beginning");
            std::fs::write(&path, format!("{head}# ---- expected\n{said}")).expect("written");
        }
        wrong.push(format!("{}: expected\n{}said\n{said}", stem(&path), case.expected));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_message_tells_a_secret() {
    for path in yaml_files("tests/golden") {
        let case = Case::parse(&read(&path));
        let secrets = case
            .environment
            .values()
            .chain(case.files.iter().filter(|(name, _)| name.contains("secret")).map(|(_, text)| text));
        let said = case.said();
        for secret in secrets.map(|secret| secret.trim()).filter(|secret| secret.contains("hunter2")) {
            assert!(!said.contains(secret) && !said.contains("hunter2"), "{}: {said}", stem(&path));
        }
    }
}
