//! Where the writer's thread puts lines: a standard stream, or a file that may be rotated away.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::To;

/// Bytes gathered before they are written, unless the queue runs empty first.
const BUFFER: usize = 64 * 1024;

/// How often a file's name is looked up to see whether it was rotated away.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The buffered end of the log; each `write` is one whole line.
pub(super) struct Sink {
    writer: BufWriter<Box<dyn Write + Send>>,
    file: Option<Watched>,
    unwritten: Arc<AtomicU64>,
}

struct Watched {
    path: PathBuf,
    id: (u64, u64),
    looked: Instant,
}

impl Sink {
    /// Opens the destination; counts into `unwritten` the lines it refuses.
    pub(super) fn open(to: &To, unwritten: Arc<AtomicU64>) -> io::Result<Self> {
        let (writer, file): (Box<dyn Write + Send>, _) = match to {
            To::Stdout => (Box::new(io::stdout()), None),
            To::Stderr => (Box::new(io::stderr()), None),
            To::File(path) => {
                let file = open(path)?;
                let watched = Watched { path: path.clone(), id: id(&file)?, looked: Instant::now() };
                (Box::new(file), Some(watched))
            }
        };
        Ok(Self { writer: BufWriter::with_capacity(BUFFER, writer), file, unwritten })
    }

    /// Opens the file anew if its name now leads elsewhere or nowhere.
    fn follow_rotation(&mut self) -> io::Result<()> {
        let Some(watched) = &mut self.file else { return Ok(()) };
        watched.looked = Instant::now();
        if std::fs::metadata(&watched.path).is_ok_and(|now| (now.dev(), now.ino()) == watched.id) {
            return Ok(());
        }
        self.writer.flush()?;
        let file = open(&watched.path)?;
        watched.id = id(&file)?;
        self.writer = BufWriter::with_capacity(BUFFER, Box::new(file));
        Ok(())
    }
}

impl Write for Sink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.file.as_ref().is_some_and(|file| file.looked.elapsed() >= LOOK_EVERY) {
            // A file that cannot be opened anew keeps its old place; the next look tries again.
            let _ = self.follow_rotation();
        }
        if let Err(error) = self.writer.write_all(line) {
            self.unwritten.fetch_add(1, Ordering::Relaxed);
            return Err(error);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

fn open(path: &Path) -> io::Result<File> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn id(file: &File) -> io::Result<(u64, u64)> {
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_moved_away_is_opened_anew_and_loses_no_line() {
        let path = std::env::temp_dir().join(format!("tollhouse-rotate-{}.log", std::process::id()));
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
    fn lines_that_the_destination_refuses_are_counted() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let unwritten = Arc::<AtomicU64>::default();
        let writer = BufWriter::with_capacity(8, Box::new(Full) as Box<dyn Write + Send>);
        let mut sink = Sink { writer, file: None, unwritten: unwritten.clone() };
        assert!(sink.write_all(b"a line longer than the buffer\n").is_err());
        assert_eq!(unwritten.load(Ordering::Relaxed), 1);
    }
}
