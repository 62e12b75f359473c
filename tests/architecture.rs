//! The shape of the source: who may import whom, how long files and functions are, what every
//! filter has, and words that do not appear. Read from the text, with the standard library only.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What each module of the gateway may import. `observe` is a leaf that everyone may import.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("observe", &[]),
    ("config", &[]),
    ("handover", &[]),
    ("ledger", &["config"]),
    ("source", &["config"]),
    ("release", &["config", "ledger"]),
    ("routing", &["config"]),
    ("tls", &["config"]),
    ("store", &["config", "tls"]),
    ("upstream", &["config", "tls"]),
    ("consumers", &["source", "config"]),
    ("snapshot", &["consumers", "source", "config", "release", "routing", "store", "tls", "upstream"]),
    ("engine", &["consumers", "snapshot", "source", "config", "release", "routing", "tls", "upstream"]),
    ("cache", &["engine", "snapshot", "source", "config", "routing", "store", "tls", "upstream"]),
    ("door", &["handover", "engine", "snapshot", "source", "config", "routing", "tls", "upstream"]),
    (
        "proxy",
        &["cache", "door", "engine", "snapshot", "release", "source", "config", "routing", "tls", "upstream"],
    ),
    (
        "admin",
        &[
            "cache",
            "consumers",
            "door",
            "engine",
            "snapshot",
            "source",
            "config",
            "release",
            "routing",
            "store",
            "tls",
            "upstream",
        ],
    ),
    (
        "server",
        &[
            "cache",
            "consumers",
            "handover",
            "admin",
            "door",
            "proxy",
            "engine",
            "snapshot",
            "source",
            "config",
            "release",
            "routing",
            "store",
            "tls",
            "upstream",
            "ledger",
        ],
    ),
    (
        "cli",
        &[
            "handover", "server", "admin", "door", "proxy", "engine", "snapshot", "source", "config",
            "routing", "tls", "upstream", "ledger",
        ],
    ),
];

/// Modules that may touch Pingora's sessions and streams. `observe` measures, `upstream` calls.
const MAY_SEE_SESSIONS: [&str; 2] = ["proxy", "door"];

const LONGEST_FILE: usize = 500;
const LONGEST_FUNCTION: usize = 60;

struct Source {
    path: PathBuf,
    /// The path inside `src`, such as `door/accept.rs`.
    name: String,
    text: String,
}

impl Source {
    /// The text before the tests, without comments and the contents of strings.
    fn code(&self) -> String {
        let end = self.text.find("\n#[cfg(test)]\nmod ").unwrap_or(self.text.len());
        without_comments_and_strings(&self.text[..end])
    }

    fn module(&self) -> &str {
        self.name.split(['/', '.']).next().unwrap_or_default()
    }

    fn is_test(&self) -> bool {
        // `config/tests.rs` is a section of documents.
        self.name.contains("/tests/") || (self.name.ends_with("/tests.rs") && self.name != "config/tests.rs")
    }
}

fn sources(folder: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    found.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(found.len() > 10, "{folder} is not where it was");
    found
}

fn collect(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            collect(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("below").to_string_lossy().into_owned();
            let text = fs::read_to_string(&path).expect("UTF-8");
            found.push(Source { path, name, text });
        }
    }
}

/// Blanks comments, strings and characters; lines stay where they are.
fn without_comments_and_strings(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let end = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => find(rest, "*/").map_or(rest.len(), |end| end + 2),
            ['r', '"', ..] => find(&rest[2..], "\"").map_or(rest.len(), |end| end + 3),
            ['r', '#', '"', ..] => find(rest, "\"#").map_or(rest.len(), |end| end + 2),
            ['"', ..] => end_of_string(rest),
            ['\'', '\\', ..] => {
                rest[2..].iter().skip(1).position(|c| *c == '\'').map_or(rest.len(), |end| end + 4)
            }
            ['\'', _, '\'', ..] => 3,
            _ => 0,
        };
        if end == 0 {
            out.push(chars[at]);
            at += 1;
        } else {
            out.extend(rest[..end].iter().filter(|c| **c == '\n'));
            at += end;
        }
    }
    out
}

fn find(chars: &[char], wanted: &str) -> Option<usize> {
    let wanted: Vec<char> = wanted.chars().collect();
    chars.windows(wanted.len()).position(|window| window == wanted)
}

fn end_of_string(chars: &[char]) -> usize {
    let mut at = 1;
    while at < chars.len() {
        match chars[at] {
            '\\' => at += 2,
            '"' => return at + 1,
            _ => at += 1,
        }
    }
    chars.len()
}

/// The modules behind `crate::`, `use crate::{a, b}` included.
fn imports(code: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let group = rest.strip_prefix('{').map(|group| group.split('}').next().unwrap_or_default());
        let names: Vec<&str> = group.map_or_else(|| vec![rest], |group| group.split(',').collect());
        for name in names {
            let word: String =
                name.trim_start().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            modules.push(word);
        }
    }
    modules
}

#[test]
fn nothing_imports_upward() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let mut wrong = Vec::new();
    for source in sources("src") {
        let is_root = ["lib.rs", "main.rs"].contains(&source.name.as_str());
        if is_root || source.module() == "manual" || source.is_test() {
            continue;
        }
        let own = allowed.get(source.module());
        let own = own.unwrap_or_else(|| panic!("{}: a module that has no layer", source.name));
        for module in imports(&source.code()) {
            let known = allowed.contains_key(module.as_str());
            let fine = module == source.module() || module == "observe" || own.contains(&module.as_str());
            if known && !fine {
                wrong.push(format!("{} imports {module}", source.name));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_proxy_and_door_see_sessions_and_streams() {
    for source in sources("src").iter().filter(|source| !source.is_test()) {
        let code = source.code();
        let sees = ["pingora::proxy::Session", "pingora::protocols::Stream", "l4::stream::Stream"]
            .into_iter()
            .find(|name| code.contains(name));
        let may = MAY_SEE_SESSIONS.contains(&source.module());
        assert!(may || sees.is_none(), "{} uses {sees:?}", source.name);
    }
}

#[test]
fn filters_never_see_the_proxy() {
    for source in sources("filters/src") {
        let code = source.code();
        assert!(!code.contains("pingora_proxy") && !code.contains("pingora::"), "{}", source.name);
    }
}

#[test]
fn files_are_short() {
    let all = ["src", "filters/src", "tests", "benches"].into_iter().flat_map(all_files);
    for (path, text) in all {
        let lines = text.lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines", path.display());
    }
}

fn all_files(folder: &str) -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut found = Vec::new();
    collect(&root, &root, &mut found);
    found.into_iter().map(|source| (source.path, source.text)).collect()
}

#[test]
fn functions_are_short() {
    for folder in ["src", "filters/src"] {
        for source in sources(folder) {
            let code = without_comments_and_strings(&source.text);
            for (line, length) in functions(&code) {
                assert!(
                    length <= LONGEST_FUNCTION,
                    "{folder}/{}:{line}: a function of {length} lines",
                    source.name
                );
            }
        }
    }
}

/// First line and length of each function with a body.
fn functions(code: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let starts_word = !code[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
        let Some(open) = code[at..].find(['{', ';']).map(|offset| at + offset).filter(|_| starts_word) else {
            continue;
        };
        if code.as_bytes()[open] == b';' {
            continue;
        }
        let mut depth = 0_usize;
        let end = code[open..].char_indices().find_map(|(offset, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0).then_some(open + offset)
        });
        let line = |at: usize| code[..at].matches('\n').count() + 1;
        found.extend(end.map(|end| (line(at), line(end) - line(at) + 1)));
    }
    found
}

#[test]
fn functions_are_found_and_measured() {
    let code = without_comments_and_strings("fn a() {\n  // }\n  let x = \"}\";\n}\ntrait T { fn b(); }\n");
    assert_eq!(functions(&code), [(1, 4)]);
    assert_eq!(imports("use crate::{a, b::c}; crate::d::e"), ["a", "b", "d"]);
}

/// Name, file and text of each filter.
fn filters() -> Vec<(String, Source)> {
    let mut found = Vec::new();
    for source in sources("filters/src") {
        let code = &source.text[..source.text.find("\n#[cfg(test)]").unwrap_or(source.text.len())];
        let name = code.split("const NAME: &'static str = \"").nth(1).and_then(|rest| rest.split('"').next());
        if let Some(name) = name.map(str::to_owned) {
            found.push((name, source));
        }
    }
    assert!(found.len() >= 8, "filters are not where they were");
    found
}

#[test]
fn every_filter_has_the_name_of_its_file_an_example_and_docs() {
    for (name, source) in filters() {
        let stem = source.path.file_stem().expect("a name").to_string_lossy().into_owned();
        let folder = source.path.parent().expect("a folder").file_name().expect("a name").to_string_lossy();
        assert!(name == stem || name == *folder, "`{name}` is in {}", source.name);
        let docs: String = source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        let written =
            docs.starts_with(&format!("//! `{name}`: ")) && docs.contains(&format!("```yaml//! - {name}:"));
        assert!(written, "{}: the docs show no YAML of `{name}`", source.name);
        let example = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("conf/examples/{name}.yaml"));
        assert!(example.is_file(), "{} is missing", example.display());
    }
}

#[test]
fn every_file_says_what_it_is_for() {
    for folder in ["src", "filters/src"] {
        for source in sources(folder).iter().filter(|source| !source.is_test()) {
            assert!(source.text.starts_with("//! "), "{folder}/{}", source.name);
        }
    }
}

#[test]
fn forbidden_words_do_not_appear() {
    for folder in ["src", "filters/src"] {
        for source in sources(folder).iter().filter(|source| !source.is_test()) {
            let code = source.code();
            for word in ["unsafe ", "#[allow(", "#![allow(", "todo!", "unimplemented!", ".unwrap()", "dbg!"] {
                assert!(!code.contains(word), "{folder}/{}: `{word}`", source.name);
            }
        }
    }
}
