//! Disabling consumers and credentials, and enabling them again: written to the end of the file first, so that
//! nothing that took effect is forgotten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path as FilePath;
use std::sync::Arc;

use tollhouse_filters::identity::consumers::{Clerk, Record};

use super::entry::{self, Entry};
use super::feed::Feed;
use super::{Look, Looked, Roster, Source};
use crate::source::Problems;

/// How often a file that is replaced meanwhile is written to again.
const ATTEMPTS: usize = 5;

/// Why a consumer was not changed.
#[derive(Debug)]
pub enum WriteError {
    /// The consumers are a list in the document, which nobody but its authors changes.
    Inline,
    /// There is no such consumer.
    NoConsumer,
    /// It has no such credential.
    NoCredential,
    /// The file has problems, so that its lines cannot be told.
    Refused(Problems),
    /// The file cannot be written, or is changed by somebody else all the time.
    Io(io::Error),
}

impl Roster {
    /// Disables or enables a consumer, or one of its credentials. Blocks until that is on the disk; requests go by
    /// it when this returns.
    ///
    /// # Errors
    /// Nothing was changed then.
    pub fn switch(
        &self,
        name: &str,
        credential: Option<&str>,
        disabled: bool,
    ) -> Result<Arc<Record>, WriteError> {
        let source = self.file.as_ref().ok_or(WriteError::Inline)?;
        let mut feed = source.feed.lock();
        for _ in 0..ATTEMPTS {
            let record = self.consumers.load().get(name).cloned().ok_or(WriteError::NoConsumer)?;
            let is_so = match credential {
                None => record.is_disabled(),
                Some(id) => {
                    let mut all = record.credentials().iter();
                    all.find(|known| **known.id() == *id).ok_or(WriteError::NoCredential)?.is_disabled()
                }
            };
            if is_so == disabled {
                return Ok(record);
            }
            let line = feed.line_of(&self.consumers.load(), name);
            let Some(line) = line.map_err(WriteError::Io)? else {
                self.catch_up(source, &mut feed)?;
                continue;
            };
            let line = entry::switched(&line, credential, disabled).ok_or(WriteError::NoCredential)?;
            if append(&source.path, &line).map_err(WriteError::Io)? {
                return self.written(source, &mut feed, name, &line);
            }
        }
        Err(WriteError::Io(io::Error::other("the file is replaced all the time")))
    }

    /// Reads the file again: it is not what it was.
    fn catch_up(&self, source: &Source, feed: &mut Feed) -> Result<(), WriteError> {
        match self.look_at(source, feed, Look::Settled) {
            Looked::Refused { problems, .. } => Err(WriteError::Refused(problems)),
            Looked::Same | Looked::Changed { .. } | Looked::Busy | Looked::Unsettled => Ok(()),
        }
    }

    /// Has requests go by a line that was added, whatever else is wrong with the file.
    fn written(
        &self,
        source: &Source,
        feed: &mut Feed,
        name: &str,
        line: &[u8],
    ) -> Result<Arc<Record>, WriteError> {
        if let Looked::Busy | Looked::Unsettled = self.look_at(source, feed, Look::Early)
            && let Ok(Some(Entry::Consumer(spec))) = entry::read(line)
        {
            let (record, _) = Clerk::new(self.consumers.layout()).record(*spec);
            let next = self.consumers.load().changed([], &[record]);
            next.into_iter().for_each(|next| self.consumers.store(next));
        }
        self.consumers.load().get(name).cloned().ok_or(WriteError::NoConsumer)
    }
}

/// Adds a line to a file and waits until it is on the disk; false if another file stands in its place by then.
fn append(path: &FilePath, line: &[u8]) -> io::Result<bool> {
    let mut file = OpenOptions::new().read(true).append(true).open(path)?;
    let about = file.metadata()?;
    let mut whole = Vec::with_capacity(line.len() + 1);
    if about.size() > 0 && last_byte(&mut file)? != b'\n' {
        whole.push(b'\n');
    }
    whole.extend_from_slice(line);
    // In one piece: others may add lines, too.
    file.write_all(&whole)?;
    file.sync_data()?;
    let now = fs::metadata(path)?;
    Ok((now.dev(), now.ino()) == (about.dev(), about.ino()))
}

fn last_byte(file: &mut File) -> io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}
