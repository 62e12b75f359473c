//! `include: [conf.d/*.yaml]`: which files, what they may hold, and how they become one document.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use foldhash::fast::RandomState;
use tollhouse_filters::tree::{self, Error, Key, Limits, Mark, Node, Scalar, Value, suggest};

use super::{Loader, MAX_FILES, read_regular};

/// Files that include each other one inside the other, the main file among them.
const MAX_DEPTH: usize = 8;

/// What an included file may hold: key, whether it is a list, and what an entry is called. The
/// names of a list's entries are unique over all files.
const SECTIONS: [(&str, bool, &str); 8] = [
    ("upstreams", true, "upstream"),
    ("identities", false, "identity"),
    ("chains", false, "chain"),
    ("consumers", true, "consumer"),
    ("plans", false, "plan"),
    ("services", true, "service"),
    ("routes", true, "route"),
    ("tests", true, "test"),
];
/// Lists whose entries have unique names.
const NAMED: [(&str, &str); 6] = [
    ("listeners", "listener"),
    ("upstreams", "upstream"),
    ("consumers", "consumer"),
    ("services", "service"),
    ("routes", "route"),
    ("tests", "test"),
];

/// The pattern by which a file was included.
struct Source {
    at: Mark,
    place: tree::Path,
    /// Whether messages must not name the file.
    hidden: bool,
}

impl Loader<'_> {
    /// Reads what `root` includes, and what that includes, into `parts`, in order.
    pub(super) fn includes(
        &mut self,
        root: &Node,
        base: Option<&Path>,
        stack: &mut Vec<PathBuf>,
        parts: &mut Vec<Arc<Node>>,
    ) {
        let Some(include) = root.get("include").filter(|node| node.value != Value::Null) else { return };
        let Some(patterns) = include.as_list() else {
            return self.refuse(
                include.at,
                path(&["include"]),
                "expected a list of files, such as `[conf.d/*.yaml]`",
            );
        };
        for (index, pattern) in patterns.iter().enumerate() {
            let place = path(&["include"]).join(index);
            let (Some(text), Some(base)) = (pattern.as_str(), base) else {
                let message = match base {
                    Some(_) => "expected the path of a file, such as `conf.d/*.yaml`",
                    None => "a document from an API cannot include files",
                };
                self.refuse(pattern.at, place, message);
                continue;
            };
            let source = Source { at: pattern.at, place, hidden: is_substituted(pattern) };
            match self.expand(text, base) {
                Ok(files) => {
                    for file in files {
                        self.include(&file, &source, stack, parts);
                    }
                }
                Err(message) => self.refuse_file(&source, message),
            }
        }
    }

    fn include(
        &mut self,
        file: &Path,
        source: &Source,
        stack: &mut Vec<PathBuf>,
        parts: &mut Vec<Arc<Node>>,
    ) {
        self.inputs.insert(file.to_owned());
        let bytes = match self.admit(file, stack) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(message) => return self.refuse_file(source, message),
        };
        let id = self.files.add(file.display().to_string());
        if let Some(root) = self.parse(&bytes, id, file.parent()) {
            self.check_sections(&root);
            parts.push(Arc::clone(&root));
            self.includes(&root, file.parent(), stack, parts);
        }
        stack.pop();
    }

    /// Reads a file unless it was read before, and puts it on the stack.
    fn admit(&mut self, file: &Path, stack: &mut Vec<PathBuf>) -> Result<Option<Vec<u8>>, String> {
        let shown = file.display();
        let real = fs::canonicalize(file).map_err(|error| format!("cannot include {shown}: {error}"))?;
        if stack.contains(&real) {
            return Err(format!("{shown} includes itself"));
        }
        if stack.len() >= MAX_DEPTH {
            return Err(format!("{shown} is included more than {MAX_DEPTH} files deep"));
        }
        if self.files.0.len() >= MAX_FILES {
            return Err(format!("more than {MAX_FILES} files"));
        }
        if self.included.contains(&real) {
            return Ok(None);
        }
        let bytes = read_regular(file, Limits::default().bytes)?;
        self.recorder.record("file", file.as_os_str().as_encoded_bytes(), &bytes);
        self.included.insert(real.clone());
        stack.push(real);
        Ok(Some(bytes))
    }

    fn check_sections(&mut self, root: &Node) {
        let Value::Map(entries) = &root.value else {
            if root.value != Value::Null {
                self.refuse(root.at, tree::Path::new(), "expected a map such as `routes: [..]`");
            }
            return;
        };
        for (key, node) in entries {
            let section = SECTIONS.iter().find(|(known, ..)| **known == *key.text);
            let fits = match section {
                None if *key.text == *"include" => true,
                None => {
                    self.complete = false;
                    self.errors.push(misplaced(key));
                    true
                }
                Some(_) if node.value == Value::Null => true,
                Some((_, true, _)) => node.as_list().is_some(),
                Some((_, false, _)) => node.as_map().is_some(),
            };
            if !fits {
                let is_list = section.is_some_and(|(_, is_list, _)| *is_list);
                let message = if is_list { "expected a list" } else { "expected a map" };
                self.refuse(node.at, path(&[&key.text]), message);
            }
        }
    }

    /// Appends the sections of included files to those of the main one.
    pub(super) fn merge(&mut self, root: &Arc<Node>, parts: &[Arc<Node>]) -> Arc<Node> {
        let mut root = Arc::clone(root);
        for (name, is_list, kind) in SECTIONS {
            let entry = |part: &Arc<Node>| {
                let (key, node) = part.as_map()?.iter().find(|(key, _)| *key.text == *name)?;
                (node.value != Value::Null).then(|| (key.clone(), Arc::clone(node)))
            };
            let more: Vec<_> = parts.iter().filter_map(entry).collect();
            let Some((key, _)) = more.first().cloned() else { continue };
            let all = entry(&root).into_iter().chain(more).map(|(_, node)| node);
            let merged = if is_list { self.concat(all, name) } else { self.union(all, name, kind) };
            root = root.with(key, merged);
        }
        root
    }

    fn concat(&mut self, nodes: impl Iterator<Item = Arc<Node>>, name: &str) -> Arc<Node> {
        let (mut items, mut at) = (Vec::new(), None);
        for node in nodes {
            at.get_or_insert(node.at);
            match node.as_list() {
                Some(more) => items.extend_from_slice(more),
                None if node.at.file.0 == 0 => self.refuse(node.at, path(&[name]), "expected a list"),
                // Reported when its file was read.
                None => {}
            }
        }
        Node::list(items, at.unwrap_or_default())
    }

    fn union(&mut self, nodes: impl Iterator<Item = Arc<Node>>, name: &str, kind: &str) -> Arc<Node> {
        let mut entries: Vec<(Key, Arc<Node>)> = Vec::new();
        let (mut seen, mut at) = (HashMap::new(), None);
        for node in nodes {
            at.get_or_insert(node.at);
            if node.as_map().is_none() && node.at.file.0 == 0 {
                self.refuse(node.at, path(&[name]), "expected a map");
            }
            for (key, value) in node.as_map().unwrap_or_default() {
                match seen.get(&key.text) {
                    None => {
                        seen.insert(key.text.clone(), key.at);
                        entries.push((key.clone(), Arc::clone(value)));
                    }
                    Some(first) => {
                        let error = Error::new(key.at, format!("duplicate {kind} `{}`", key.text));
                        self.duplicates.push(error.on(path(&[name, &key.text])).first_at(*first));
                    }
                }
            }
        }
        Node::map(entries, at.unwrap_or_default())
    }

    /// Reports entries of one list that share a name.
    pub(super) fn check_names(&mut self, root: &Node) {
        for (section, kind) in NAMED {
            let items = root.get(section).and_then(|node| node.as_list()).unwrap_or_default();
            let mut seen: HashMap<&str, Mark, RandomState> = HashMap::default();
            for (index, item) in items.iter().enumerate() {
                let Some(name) = item.get("name") else { continue };
                let Some(text) = name.as_str() else { continue };
                let Some(first) = seen.get(text) else {
                    seen.insert(text, name.at);
                    continue;
                };
                let shown = if is_substituted(name) { String::new() } else { format!(" `{text}`") };
                let error = Error::new(name.at, format!("duplicate {kind} name{shown}"));
                let place = path(&[section]).join(index).join("name");
                self.duplicates.push(error.on(place).first_at(*first));
            }
        }
    }

    /// The files that a pattern stands for, sorted by name.
    fn expand(&mut self, pattern: &str, base: &Path) -> Result<Vec<PathBuf>, String> {
        if pattern.is_empty() {
            return Err("the path of a file is empty".to_owned());
        }
        if !pattern.contains('*') {
            return Ok(vec![base.join(pattern)]);
        }
        let (directory, name) = pattern.rsplit_once('/').unwrap_or(("", pattern));
        let directory = if directory.is_empty() && pattern.starts_with('/') { "/" } else { directory };
        if directory.contains('*') || name.contains("**") {
            return Err("`*` may stand only in the last part of a path, as in `conf.d/*.yaml`".to_owned());
        }
        let directory = base.join(directory);
        let names = matching(&directory, name)?;
        self.recorder.record(
            "include",
            directory.as_os_str().as_encoded_bytes(),
            names.join("\0").as_bytes(),
        );
        let files = names.iter().map(|name| directory.join(name)).collect();
        self.inputs.insert(if directory.as_os_str().is_empty() { PathBuf::from(".") } else { directory });
        Ok(files)
    }

    fn refuse_file(&mut self, source: &Source, message: String) {
        let hidden = "the file that the reference names cannot be included (its name is not shown)";
        let message = if source.hidden { hidden.to_owned() } else { message };
        self.refuse(source.at, source.place.clone(), message);
    }

    fn refuse(&mut self, at: Mark, path: tree::Path, message: impl Into<String>) {
        self.complete = false;
        // Of a reference that could not be resolved enough was said.
        if !self.unresolved.contains(&at) {
            self.errors.push(Error::new(at, message).on(path));
        }
    }
}

fn path(keys: &[&str]) -> tree::Path {
    keys.iter().copied().collect()
}

fn is_substituted(node: &Node) -> bool {
    node.as_scalar().is_some_and(Scalar::is_substituted)
}

fn misplaced(key: &Key) -> Error {
    let names = || SECTIONS.iter().map(|(name, ..)| *name);
    let message = format!("`{}` cannot be in an included file; move it to the main file", key.text);
    let hint = match suggest(&key.text, names()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => format!("included files hold {}", names().collect::<Vec<_>>().join(", ")),
    };
    Error::new(key.at, message).on(path(&[&key.text])).hint(hint)
}

/// Sorted names of the files in a directory that match; none if there is no such directory.
fn matching(directory: &Path, pattern: &str) -> Result<Vec<String>, String> {
    let opened = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let failed = |error: std::io::Error| format!("cannot list {}: {error}", opened.display());
    let entries = match fs::read_dir(opened) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| matches(name, pattern)) else { continue };
        // A dangling link is kept, so that reading it reports it.
        if !entry.path().is_dir() {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// Whether a name fits a pattern of text and `*`. As in a shell, a hidden file is matched only by a
/// pattern that names the dot.
fn matches(name: &str, pattern: &str) -> bool {
    if name.starts_with('.') && !pattern.starts_with('.') {
        return false;
    }
    let Some((first, rest)) = pattern.split_once('*') else { return name == pattern };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut middle: Vec<&str> = rest.split('*').collect();
    let last = middle.pop().unwrap_or_default();
    for part in middle {
        match left.split_once(part) {
            Some((_, after)) => left = after,
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_any_text_but_a_leading_dot() {
        for (name, pattern) in [("a.yaml", "*.yaml"), ("a.b.yaml", "a*b*.yaml"), (".x", ".*"), ("ab", "a*b")]
        {
            assert!(matches(name, pattern), "{name} {pattern}");
        }
        for (name, pattern) in [(".a.yaml", "*.yaml"), ("a.yaml~", "*.yaml"), ("a", "a*a"), ("ab", "b*")] {
            assert!(!matches(name, pattern), "{name} {pattern}");
        }
    }
}
