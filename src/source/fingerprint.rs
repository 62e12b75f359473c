//! Whether anything that a document was made of has changed.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::read_regular;

/// Longest file whose content the watcher compares.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// SHA-256 over names and contents of all inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Display for Fingerprint {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Fingerprint {
    /// The state of files and directories as they are now, missing ones included.
    pub fn of_inputs(inputs: &[PathBuf]) -> Fingerprint {
        let mut recorder = Recorder::default();
        for input in inputs {
            let name = input.as_os_str().as_encoded_bytes();
            match fs::metadata(input) {
                Ok(about) if about.is_dir() => {
                    recorder.record("directory", name, names(input).join("\0").as_bytes());
                }
                Ok(_) => match read_regular(input, MAX_BYTES) {
                    Ok(bytes) => recorder.record("file", name, &bytes),
                    Err(_) => recorder.record("unreadable", name, b""),
                },
                Err(_) => recorder.record("missing", name, b""),
            }
        }
        recorder.finish()
    }
}

/// Sorted names of what is in a directory; none if it cannot be read.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A fingerprint in the making. Parts are length-prefixed, so that none runs into the next.
#[derive(Default)]
pub(super) struct Recorder(Sha256);

impl Recorder {
    pub(super) fn record(&mut self, kind: &str, name: &[u8], content: &[u8]) {
        for part in [kind.as_bytes(), name, content] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
    }

    pub(super) fn finish(self) -> Fingerprint {
        Fingerprint(self.0.finalize().into())
    }
}
