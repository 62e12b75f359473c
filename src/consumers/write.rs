//! Disabling consumers and credentials, and enabling them again: written to the end of the file first, so that
//! nothing that took effect is forgotten.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path as FilePath;
use std::sync::Arc;

use memchr::memrchr;
use tollhouse_filters::identity::ConsumerSpec;
use tollhouse_filters::identity::consumers::{Clerk, Credential, Record};

use super::entry::{self, Entry};
use super::feed::{Feed, LONG_QUIET, age};
use super::lines::LONGEST;
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
    /// The file ends in half a line: who writes it is not done, and would go on in the middle of what is added.
    HalfLine,
    /// The file cannot be written, or is changed by somebody else all the time.
    Io(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Roster {
    /// Disables or enables a consumer, or one of its credentials. Blocks until that is on the disk; requests go by
    /// it when this returns.
    ///
    /// # Errors
    /// Nothing was written then.
    pub fn switch(
        &self,
        name: &str,
        credential: Option<&str>,
        disabled: bool,
    ) -> Result<Arc<Record>, WriteError> {
        let source = self.file.as_ref().ok_or(WriteError::Inline)?;
        let mut feed = source.feed.lock();
        for _ in 0..ATTEMPTS {
            let index = self.consumers.load();
            let record = index.get(name).cloned().ok_or(WriteError::NoConsumer)?;
            source.switched.lock().insert(index.hash_of(name));
            let newest = feed.newest(&index, self.consumers.layout(), name)?;
            drop(index);
            let Some(line) = newest else {
                self.catch_up(source, &mut feed)?;
                continue;
            };
            let Ok(Some(Entry::Consumer(spec))) = entry::read(&line) else {
                // Its end was written, and not taken for something else that is wrong with the file.
                self.go_by(&mut feed, &line);
                return Err(WriteError::NoConsumer);
            };
            let is_written = written_off(&spec, credential).ok_or(WriteError::NoCredential)?;
            if is_written == disabled && switched_off(&record, credential) == Some(disabled) {
                return Ok(record);
            }
            let line = entry::switched(&line, credential, disabled).ok_or(WriteError::NoCredential)?;
            if append(&source.path, &line)? {
                return self.written(source, &mut feed, name, &line);
            }
        }
        Err(WriteError::Io(io::Error::other("the file is replaced all the time")))
    }

    /// Reads the file again: it is not what it was.
    fn catch_up(&self, source: &Source, feed: &mut Feed) -> Result<(), WriteError> {
        match self.look_at(source, feed, Look::Settled) {
            Looked::Refused { problems, .. } => Err(WriteError::Refused(problems)),
            Looked::Same | Looked::Partly | Looked::Changed { .. } | Looked::Busy | Looked::Unsettled => {
                Ok(())
            }
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
        if let Looked::Busy | Looked::Unsettled = self.look_at(source, feed, Look::Early) {
            self.go_by(feed, line);
        }
        self.consumers.load().get(name).cloned().ok_or(WriteError::NoConsumer)
    }

    /// Has requests go by the lines that those of another list of the same file go by and these do not: what it did not
    /// take yet, such as behind a line with something wrong, and who was switched in a file that changed elsewhere since
    /// this one read it.
    pub fn catch_up_with(&self, other: &Self) {
        let (Some(source), Some(others)) = (&self.file, &other.file) else { return };
        let (ahead, switched) = (others.feed.lock().ahead.clone(), others.switched.lock().clone());
        if source.path != others.path || ahead.is_empty() && switched.is_empty() {
            return;
        }
        let (index, known) = (other.consumers.load(), self.consumers.load());
        let is_behind = |record: &Record| {
            let name = &*record.consumer().name;
            let hash = index.hash_of(name);
            let differs = || index.get(name).is_some_and(|there| !are_switched_alike(there, record));
            ahead.contains(&hash) || switched.contains(&hash) && differs()
        };
        for record in known.iter().filter(|record| is_behind(record)) {
            let name = &*record.consumer().name;
            let mut feed = source.feed.lock();
            let own = feed.newest(&self.consumers.load(), self.consumers.layout(), name);
            // Its place may be known to the other one alone, which has read what changed before it.
            let theirs = || others.feed.lock().newest(&index, other.consumers.layout(), name).ok().flatten();
            if let Some(line) = own.ok().flatten().or_else(theirs) {
                self.go_by(&mut feed, &line);
            }
        }
    }

    /// Has requests go by a line before it is taken.
    fn go_by(&self, feed: &mut Feed, line: &[u8]) {
        let index = self.consumers.load();
        let (name, next) = match entry::read(line) {
            Ok(Some(Entry::Consumer(spec))) => {
                let (record, _) = Clerk::new(self.consumers.layout()).record(*spec);
                (record.consumer().name.clone(), index.changed([], &[record]))
            }
            Ok(Some(Entry::Gone(name))) => (name.shared(), index.changed([name.as_str()], &[])),
            Ok(None) | Err(_) => return,
        };
        if let Ok(next) = next {
            feed.run_ahead(index.hash_of(&name));
            self.consumers.store(next);
        }
    }
}

/// Whether a consumer or this credential of it is disabled as it is written; none if there is no such credential.
fn written_off(spec: &ConsumerSpec, credential: Option<&str>) -> Option<bool> {
    let Some(id) = credential else { return Some(spec.disabled) };
    spec.credentials.iter().find(|known| known.id.as_str() == id).map(|known| known.disabled)
}

/// The same of one that requests go by.
fn switched_off(record: &Record, credential: Option<&str>) -> Option<bool> {
    let Some(id) = credential else { return Some(record.is_disabled()) };
    record.credentials().iter().find(|known| **known.id() == *id).map(Credential::is_disabled)
}

/// Whether a consumer and those of its credentials that both records have are switched on and off alike.
fn are_switched_alike(one: &Record, other: &Record) -> bool {
    let is_alike = |known: &Credential| {
        switched_off(other, Some(&**known.id())).is_none_or(|is_off| is_off == known.is_disabled())
    };
    one.is_disabled() == other.is_disabled() && one.credentials().iter().all(is_alike)
}

/// Adds a line to a file and waits until it is on the disk; false if another file stands in its place by then.
///
/// # Errors
/// [`WriteError::HalfLine`] or [`WriteError::Io`].
fn append(path: &FilePath, line: &[u8]) -> Result<bool, WriteError> {
    let mut file = OpenOptions::new().read(true).append(true).open(path)?;
    let about = file.metadata()?;
    let mut whole = Vec::with_capacity(line.len() + 1);
    if about.size() > 0 && last_byte(&mut file)? != b'\n' {
        // Half a line that nobody goes on with for so long is what a dead process left.
        let is_young = age(&about).is_none_or(|age| age < LONG_QUIET);
        if is_young && entry::read(&last_line(&mut file, about.size())?).is_err() {
            return Err(WriteError::HalfLine);
        }
        whole.push(b'\n');
    }
    whole.extend_from_slice(line);
    add(&file, about.size(), &file, &whole)?;
    let now = fs::metadata(path)?;
    Ok((now.dev(), now.ino()) == (about.dev(), about.ino()))
}

/// Writes all of this to the end of a file of this size and waits until it is on the disk, or takes back what was
/// written: with half a line at its end, all of the file would be refused.
fn add(file: &File, size: u64, mut to: impl Write, whole: &[u8]) -> io::Result<()> {
    let mut left = whole;
    let added = loop {
        if left.is_empty() {
            break file.sync_data();
        }
        // In one piece, if it can be: others may add lines, too.
        match to.write(left) {
            Ok(0) => break Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => left = &left[count..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => break Err(error),
        }
    };
    let end = size + (whole.len() - left.len()) as u64;
    // Not what others added meanwhile.
    if added.is_err() && end > size && file.metadata().is_ok_and(|now| now.size() == end) {
        file.set_len(size)?;
    }
    added
}

fn last_byte(file: &mut File) -> io::Result<u8> {
    let mut byte = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// What stands behind the last line break of a file of this size; of a line that is too long, its end.
fn last_line(file: &mut File, size: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file.seek(SeekFrom::Start(size.saturating_sub(LONGEST as u64)))?;
    file.read_to_end(&mut text)?;
    let begin = memrchr(b'\n', &text).map_or(0, |at| at + 1);
    Ok(text.split_off(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk<'a> {
        file: &'a File,
        room: usize,
    }

    impl Write for Disk<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let written = self.file.write(&bytes[..self.room.min(bytes.len())])?;
            self.room -= written;
            Ok(written)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_line_that_the_disk_has_no_room_for_leaves_the_file_as_it_was() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("consumers.jsonl");
        let (before, line) = ("before\n", "a line\n");
        for room in 0..=line.len() {
            fs::write(&path, before).expect("written");
            let file = OpenOptions::new().append(true).open(&path).expect("there");
            let disk = Disk { file: &file, room };
            let added = add(&file, before.len() as u64, disk, line.as_bytes());
            let text = fs::read_to_string(&path).expect("text");
            match room == line.len() {
                true => assert_eq!((added.is_ok(), text), (true, format!("{before}{line}"))),
                false => assert_eq!((added.is_ok(), &*text), (false, before), "{room} bytes"),
            }
        }
    }

    #[test]
    fn what_others_added_meanwhile_is_not_taken_back() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("consumers.jsonl");
        fs::write(&path, "before\nanother\n").expect("written");
        let file = OpenOptions::new().append(true).open(&path).expect("there");
        add(&file, 7, Disk { file: &file, room: 3 }, b"a line\n").expect_err("full");
        assert!(fs::read_to_string(&path).expect("text").starts_with("before\nanother\n"));
    }
}
