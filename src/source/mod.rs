//! Where a document comes from: files, includes, `${env:}` and `${file:}`, fingerprints, watching.
//!
//! [`load`] reads a file and all it includes into one located tree (chapter "Rules for every file"
//! of the configuration manual, rules 1 to 4); what the tree means is for the config module.

mod fingerprint;
pub mod format;
mod include;
mod problems;
mod substitute;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tollhouse_filters::tree::{
    Error, FileId, Frozen, Key, Limits, Mark, Node, Resolved, Scalar, parse_bytes, suggest,
};

pub use fingerprint::Fingerprint;
use fingerprint::Recorder;
pub use problems::{Place, Problem, Problems};
pub use watch::{Stir, Tap, Timing, Watch};

/// Most files that one document is made of.
const MAX_FILES: usize = 4096;

/// Looks up an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A document with everything it includes and refers to.
#[derive(Debug)]
pub struct Loaded {
    /// The merged tree, substituted; the main file's keys first, `include` still among them.
    pub root: Arc<Node>,
    /// The files behind the marks of the tree.
    pub files: Files,
    /// Changes when anything that was read changes.
    pub fingerprint: Fingerprint,
    /// What to watch: files, directories of patterns, `${file:}` targets. Missing ones are among
    /// them.
    pub inputs: Vec<PathBuf>,
    /// Entities that share a name. The rest of the document can be looked at all the same, so whoever
    /// compiles it reports these together with what else is wrong.
    pub duplicates: Vec<Error>,
    /// What else is wrong so far, which is reported likewise; for all others there is no such document
    /// ([`Loaded::sound`]). Where a reference could not be resolved, the tree has an
    /// [unresolved](Scalar::unresolved) scalar.
    pub errors: Vec<Error>,
    /// Whether all that the document includes is there.
    pub complete: bool,
}

impl Loaded {
    /// The document, unless something is wrong with it; names that entities share aside.
    ///
    /// # Errors
    /// Every problem found, located.
    pub fn sound(self) -> Result<Loaded, Problems> {
        if self.errors.is_empty() {
            return Ok(self);
        }
        let errors = self.errors.into_iter().chain(self.duplicates);
        Err(Problems { inputs: self.inputs, ..Problems::located(errors, &self.files) })
    }

    /// Packs the document, for keeping.
    pub fn pack(&self) -> Packed {
        Packed {
            root: Frozen::new(&self.root),
            files: self.files.clone(),
            fingerprint: self.fingerprint,
            inputs: self.inputs.clone(),
        }
    }
}

/// A document without problems, packed: it is kept as long as it serves, and seldom looked at.
#[derive(Debug)]
pub struct Packed {
    root: Frozen,
    files: Files,
    fingerprint: Fingerprint,
    inputs: Vec<PathBuf>,
}

impl Packed {
    /// The document again; costs a good part of loading it.
    pub fn unpack(&self) -> Loaded {
        Loaded {
            root: self.root.thaw(),
            files: self.files.clone(),
            fingerprint: self.fingerprint,
            inputs: self.inputs.clone(),
            duplicates: Vec::new(),
            errors: Vec::new(),
            complete: true,
        }
    }

    /// What to watch.
    pub fn inputs(&self) -> &[PathBuf] {
        &self.inputs
    }
}

/// The names of files as their users wrote them, by [`FileId`].
#[derive(Clone, Debug, Default)]
pub struct Files(Vec<String>);

impl Files {
    /// The name of a file; `?` for a file of another document.
    pub fn name(&self, file: FileId) -> &str {
        self.0.get(usize::from(file.0)).map_or("?", String::as_str)
    }

    fn add(&mut self, name: String) -> FileId {
        let id = u16::try_from(self.0.len()).unwrap_or(u16::MAX);
        self.0.push(name);
        FileId(id)
    }
}

/// Reads a file and all it includes, with the environment of this process.
///
/// # Errors
/// Every problem of a document that cannot be looked at: one that is not there, is no YAML or is not of version 1. All
/// others are [in what was read](Loaded::errors).
pub fn load(path: &Path) -> Result<Loaded, Problems> {
    load_with(path, &process_environment)
}

/// As [`load`], with an environment of the caller's.
///
/// # Errors
/// As [`load`].
pub fn load_with(path: &Path, environment: Environment<'_>) -> Result<Loaded, Problems> {
    let mut loader = Loader::new(environment);
    let file = loader.files.add(path.display().to_string());
    loader.inputs.insert(path.to_owned());
    let root = match read(path, Limits::default().bytes) {
        Ok(bytes) => {
            loader.recorder.record("file", path.as_os_str().as_encoded_bytes(), &bytes);
            let stack = fs::canonicalize(path).into_iter().collect();
            loader.document(&bytes, file, path.parent(), stack)
        }
        Err(message) => {
            loader.errors.push(Error::new(Mark { file, line: 0, column: 0 }, message));
            None
        }
    };
    loader.finish(root)
}

/// Reads a document that came over an API; `name` stands for it in messages.
///
/// Includes and `${file:}` are relative to `base`; without one they are refused, as a caller from
/// afar must not read this machine's files.
///
/// # Errors
/// As [`load`].
pub fn load_str(
    text: &str,
    name: &str,
    base: Option<&Path>,
    environment: Environment<'_>,
) -> Result<Loaded, Problems> {
    let mut loader = Loader::new(environment);
    let file = loader.files.add(name.to_owned());
    loader.recorder.record("text", name.as_bytes(), text.as_bytes());
    let root = loader.document(text.as_bytes(), file, base, Vec::new());
    loader.finish(root)
}

/// The variables of this process; one that is not UTF-8 counts as unset.
pub fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// One load under way.
struct Loader<'a> {
    environment: Environment<'a>,
    files: Files,
    inputs: BTreeSet<PathBuf>,
    /// Canonical paths of the files included so far.
    included: BTreeSet<PathBuf>,
    recorder: Recorder,
    errors: Vec<Error>,
    /// Where references could not be resolved.
    unresolved: HashSet<Mark>,
    duplicates: Vec<Error>,
    complete: bool,
}

impl<'a> Loader<'a> {
    fn new(environment: Environment<'a>) -> Loader<'a> {
        Loader {
            environment,
            files: Files::default(),
            inputs: BTreeSet::new(),
            included: BTreeSet::new(),
            recorder: Recorder::default(),
            errors: Vec::new(),
            unresolved: HashSet::new(),
            duplicates: Vec::new(),
            complete: true,
        }
    }

    /// Reads the main document; `stack` holds its canonical path if it is a file.
    fn document(
        &mut self,
        bytes: &[u8],
        file: FileId,
        base: Option<&Path>,
        mut stack: Vec<PathBuf>,
    ) -> Option<Arc<Node>> {
        let root = self.parse(bytes, file, base)?;
        if let Some(error) = foreign(&root) {
            // What else may be wrong with it, nobody can tell.
            self.errors = vec![error];
            return None;
        }
        let root = self.versioned(&root);
        let mut parts = Vec::new();
        self.includes(&root, base, &mut stack, &mut parts);
        let root = self.merge(&root, &parts);
        self.check_names(&root);
        Some(root)
    }

    /// The document as one of version 1, where it does not say of which it is, or nobody knows what it says.
    fn versioned(&mut self, root: &Arc<Node>) -> Arc<Node> {
        let at = match root.get("version") {
            // That it could not be resolved was told.
            Some(version) if version.as_scalar().is_some_and(Scalar::is_unresolved) => version.at,
            Some(_) => return Arc::clone(root),
            None => {
                self.errors.push(unversioned(root));
                root.at
            }
        };
        root.with(Key { text: "version".into(), at }, Node::scalar(Scalar::plain("1"), at))
    }

    fn parse(&mut self, bytes: &[u8], file: FileId, base: Option<&Path>) -> Option<Arc<Node>> {
        match parse_bytes(bytes, file, &Limits::default()) {
            Ok(root) if may_refer(bytes) => Some(self.substitute(&root, base)),
            Ok(root) => Some(root),
            Err(errors) => {
                self.errors.extend(errors);
                self.complete = false;
                None
            }
        }
    }

    fn finish(mut self, root: Option<Arc<Node>>) -> Result<Loaded, Problems> {
        let inputs = self.inputs.into_iter().collect();
        let Some(root) = root else {
            return Err(Problems { inputs, ..Problems::located(self.errors, &self.files) });
        };
        if !self.errors.is_empty() {
            // Nobody is to take it for the document in use.
            self.recorder.record("errors", b"", b"");
        }
        Ok(Loaded {
            root,
            files: self.files,
            fingerprint: self.recorder.finish(),
            inputs,
            duplicates: self.duplicates,
            errors: self.errors,
            complete: self.complete,
        })
    }
}

/// Why a document is not one of this gateway's.
fn foreign(root: &Node) -> Option<Error> {
    if root.as_map().is_none() {
        return Some(Error::new(root.at, "expected a document that begins with `version: 1`"));
    }
    let version = root.get("version")?;
    let may_be_ours = |scalar: &Scalar| scalar.is_unresolved() || scalar.resolve() == Resolved::Unsigned(1);
    let is_foreign = !version.as_scalar().is_some_and(may_be_ours);
    let error = Error::new(version.at, "this gateway reads version 1; write `version: 1`");
    is_foreign.then(|| error.on(["version"].into_iter().collect()))
}

/// What is wrong with a document that does not say of which version it is.
fn unversioned(root: &Node) -> Error {
    let mut keys = root.as_map().unwrap_or_default().iter().map(|(key, _)| key);
    match keys.find(|key| suggest(&key.text, ["version"]).is_some()) {
        Some(key) => Error::new(key.at, format!("unknown key `{}`", key.text))
            .on([&*key.text].into_iter().collect())
            .hint("did you mean `version`?"),
        None => Error::new(root.at, "missing key `version`; write `version: 1` at the top"),
    }
}

/// Whether there may be references in a document: they begin with a dollar sign, or with an escape that stands for one.
fn may_refer(bytes: &[u8]) -> bool {
    bytes.contains(&b'$') || bytes.contains(&b'\\')
}

/// Longest file that can be a document.
pub const LONGEST: usize = 64 << 20;

/// Reads the bytes of one file of a document.
///
/// # Errors
/// When it is no regular file, cannot be read, or is longer than [`LONGEST`].
pub fn read_document(path: &Path) -> Result<Vec<u8>, String> {
    read_regular(path, LONGEST)
}

/// Reads a whole file of at most `limit` bytes.
fn read(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let file = fs::File::open(path).map_err(failed)?;
    // In one piece, as a rule; how long it is, a file may not know.
    let length = file.metadata().map_or(0, |about| about.len());
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(limit).min(limit) + 1);
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(format!("{} is longer than {limit} bytes", path.display()));
    }
    Ok(bytes)
}

/// The text of a file that a document names; why not, without telling the path, which may be secret.
///
/// # Errors
/// It cannot be read, is over 64 MiB or no UTF-8.
pub fn read_text(path: &Path) -> Result<String, String> {
    let unnamed = |message: String| message.replacen(&path.display().to_string(), "the file", 1);
    let bytes = read_regular(path, fingerprint::MAX_BYTES).map_err(unnamed)?;
    String::from_utf8(bytes).map_err(|_| "the file is not UTF-8".to_owned())
}

/// As [`read`], refusing what is no regular file: a pipe would block for ever.
fn read_regular(path: &Path, limit: usize) -> Result<Vec<u8>, String> {
    match fs::metadata(path) {
        Ok(about) if !about.is_file() => Err(format!("cannot read {}: not a file", path.display())),
        _ => read(path, limit),
    }
}
