//! Where the writer's thread puts lines: a standard stream, or a file that may be rotated away.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::fs::{Access, access};

use super::{To, Told};

/// Bytes gathered before they are written, unless the queue runs empty first.
const BUFFER: usize = 64 * 1024;

/// How often a file's name is looked up to see whether it was rotated away.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A stream or a file.
type Destination = Box<dyn Write + Send>;

/// The buffered end of the log; each `write` is one whole line.
pub(super) struct Sink {
    writer: BufWriter<Destination>,
    file: Option<Watched>,
    told: Arc<Told>,
}

struct Watched {
    path: PathBuf,
    id: (u64, u64),
    looked: Instant,
}

impl Sink {
    /// Opens the destination; counts the lines that it refuses.
    pub(super) fn open(to: &To, told: Arc<Told>) -> io::Result<Self> {
        let (destination, file): (Destination, _) = match to {
            To::Stdout => (Box::new(io::stdout()), None),
            To::Stderr => (Box::new(io::stderr()), None),
            To::File(path) => {
                let file = open(path)?;
                let watched = Watched { path: path.clone(), id: id(&file)?, looked: Instant::now() };
                (Box::new(file), Some(watched))
            }
        };
        Ok(Self { writer: buffered(destination), file, told })
    }

    /// That the destination can be opened; a file is made where there is none.
    pub(super) fn check(to: &To) -> io::Result<()> {
        match to {
            To::Stdout | To::Stderr => Ok(()),
            // Opened once more, a named pipe would tell its reader that nobody writes any more.
            To::File(path) => match std::fs::metadata(path) {
                Ok(about) if !about.is_file() && !about.is_dir() => Ok(access(path, Access::WRITE_OK)?),
                _ => appending(path).map(drop),
            },
        }
    }

    /// Opens the file anew if its name now leads elsewhere or nowhere.
    fn follow_rotation(&mut self) -> io::Result<()> {
        let Some(watched) = &mut self.file else { return Ok(()) };
        watched.looked = Instant::now();
        if std::fs::metadata(&watched.path).is_ok_and(|now| (now.dev(), now.ino()) == watched.id) {
            return Ok(());
        }
        // First of all: an old file that takes nothing more must not keep lines from the new one.
        let file = open(&watched.path)?;
        watched.id = id(&file)?;
        let mut old = std::mem::replace(&mut self.writer, buffered(Box::new(file)));
        let _ = old.flush();
        self.give_up(old);
        Ok(())
    }

    /// Counts the lines that still wait for a destination, which gets none of them.
    fn give_up(&self, writer: BufWriter<Destination>) -> Destination {
        let lost = writer.buffer().iter().filter(|byte| **byte == b'\n').count();
        self.told.unwritten.fetch_add(lost as u64, Ordering::Relaxed);
        // Dropped as it is, it would try to write them once more.
        writer.into_parts().0
    }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.file.as_ref().is_some_and(|file| file.looked.elapsed() >= LOOK_EVERY) {
            // A file that cannot be opened anew keeps its old place; the next look tries again.
            let _ = self.follow_rotation();
        }
        if let Err(error) = self.writer.write_all(line) {
            self.told.unwritten.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.writer.flush();
        if flushed.is_ok() || !self.told.is_over.load(Ordering::Relaxed) {
            return flushed;
        }
        // The writer's thread ends only once this succeeds; else it would try for ever.
        let refused = std::mem::replace(&mut self.writer, buffered(Box::new(io::sink())));
        let destination = self.give_up(refused);
        self.writer = buffered(destination);
        Ok(())
    }
}

fn buffered(destination: Destination) -> BufWriter<Destination> {
    BufWriter::with_capacity(BUFFER, destination)
}

fn open(path: &Path) -> io::Result<File> {
    appending(path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn appending(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

fn id(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::sync::mpsc::{self, RecvTimeoutError};

    use super::super::{Access, AccessLog};
    use super::*;
    use crate::observe::redact::Redactor;

    fn path_for(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("tollhouse-{name}-{}.log", std::process::id()))
    }

    #[test]
    fn a_file_moved_away_is_opened_anew_and_loses_no_line() {
        let path = path_for("rotate");
        let rotated = path.with_extension("log.1");
        let mut sink = Sink::open(&To::File(path.clone()), Arc::default()).unwrap();
        sink.write_all(b"one\n").unwrap();
        std::fs::rename(&path, &rotated).unwrap();
        sink.follow_rotation().unwrap();
        sink.write_all(b"two\n").unwrap();
        sink.flush().unwrap();
        let (old, new) = (std::fs::read_to_string(&rotated), std::fs::read_to_string(&path));
        std::fs::remove_file(&path).unwrap();
        std::fs::remove_file(&rotated).unwrap();
        assert_eq!((old.unwrap().as_str(), new.unwrap().as_str()), ("one\n", "two\n"));
    }

    #[test]
    fn a_file_is_opened_anew_though_the_old_one_takes_nothing_more() {
        // full(4): writes fail as on a full disk.
        let folder = tempfile::tempdir().unwrap();
        let (path, new) = (folder.path().join("log"), folder.path().join("new"));
        symlink("/dev/full", &path).unwrap();
        let told = Arc::<Told>::default();
        let mut sink = Sink::open(&To::File(path.clone()), told.clone()).unwrap();
        sink.write_all(b"one\n").unwrap();
        assert!(sink.flush().is_err());
        std::fs::remove_file(&path).unwrap();
        symlink(&new, &path).unwrap();
        sink.follow_rotation().unwrap();
        sink.write_all(b"two\n").unwrap();
        sink.flush().unwrap();
        assert_eq!(std::fs::read_to_string(&new).unwrap(), "two\n");
        assert_eq!(told.unwritten.load(Ordering::Relaxed), 1, "and the other line is counted");
    }

    /// Takes nothing, and says so each time.
    struct Full(mpsc::Sender<()>);

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            let _ = self.0.send(());
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A sink of so much room before a destination that takes nothing, and what tells of each try.
    fn full(room: usize, told: &Arc<Told>) -> (Sink, mpsc::Receiver<()>) {
        let (tried, tries) = mpsc::channel();
        let writer = BufWriter::with_capacity(room, Box::new(Full(tried)) as Destination);
        (Sink { writer, file: None, told: told.clone() }, tries)
    }

    #[test]
    fn lines_that_the_destination_refuses_are_counted() {
        let told = Arc::<Told>::default();
        let (mut sink, _tries) = full(8, &told);
        assert!(sink.write_all(b"a line longer than the buffer\n").is_err());
        assert_eq!(told.unwritten.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_log_that_ends_gives_up_what_its_destination_refuses() {
        let told = Arc::<Told>::default();
        let (sink, tries) = full(BUFFER, &told);
        let (log, guard) = AccessLog::start(sink, told.clone(), None);
        log.write(&Access::example(), &Redactor::new(&[]));
        tries.recv().unwrap();
        drop(log);
        drop(guard);
        let mut more = 0;
        // The writer's thread drops the destination as it ends.
        let end = loop {
            match tries.recv_timeout(Duration::from_secs(10)) {
                Ok(()) => more += 1,
                Err(end) => break end,
            }
            assert!(more < 1000, "it goes on trying");
        };
        assert_eq!(end, RecvTimeoutError::Disconnected);
        assert_eq!(told.unwritten.load(Ordering::Relaxed), 1);
    }
}
