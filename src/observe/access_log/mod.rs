//! The access log: one line a request, written by a thread of its own that requests never wait for.

mod format;
mod layout;
mod line;
mod sink;

use std::borrow::Cow;
use std::cell::RefCell;
use std::convert::Infallible;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

pub use self::format::Format;
pub use self::layout::Layout;
pub use self::line::Access;
use self::line::{Inert, Line};
use self::sink::Sink;
use super::redact::Redactor;

/// Lines waiting for the writer; with the longest possible lines about 60 MB.
const MAX_WAITING_LINES: usize = 8192;

/// A line buffer beyond this is given back after use.
const KEEP_BUFFER: usize = 16 * 1024;

/// Where lines go.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum To {
    /// Standard output.
    #[default]
    Stdout,
    /// Standard error.
    Stderr,
    /// A file, appended to; moved away (log rotation), it is opened anew within a second.
    File(PathBuf),
}

impl FromStr for To {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "stdout" => Self::Stdout,
            "stderr" => Self::Stderr,
            path => Self::File(path.into()),
        })
    }
}

impl fmt::Display for To {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("stdout"),
            Self::Stderr => f.write_str("stderr"),
            Self::File(path) => path.display().fmt(f),
        }
    }
}

impl Serialize for To {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for To {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        if text.is_empty() {
            return Err(serde::de::Error::custom("expected `stdout`, `stderr` or a path"));
        }
        if text.contains('\0') {
            return Err(serde::de::Error::custom("a path cannot hold the character NUL"));
        }
        text.parse().map_err(|never: Infallible| match never {})
    }
}

impl JsonSchema for To {
    fn schema_name() -> Cow<'static, str> {
        "To".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "`stdout`, `stderr` or a path.",
            "minLength": 1,
        })
    }
}

/// How long the end of a log is waited for: somewhat longer than its writer is given.
const LONGEST_END: Duration = Duration::from_millis(1200);

/// Writes requests down; clones write to the same place.
#[derive(Clone)]
pub struct AccessLog {
    /// None where nothing is written.
    inner: Option<Arc<Inner>>,
    /// What the logs before this one lost: as they end, it may still become more.
    before: Vec<Lost>,
}

struct Inner {
    /// JSON where there is none.
    layout: Option<Layout>,
    queue: NonBlocking,
    lost: Lost,
}

/// Counts the lines that a log does not write.
#[derive(Clone)]
struct Lost {
    /// Those that found the queue full.
    overflowed: ErrorCounter,
    /// Where the writer's thread counts those that the destination refused.
    told: Arc<Told>,
}

impl Lost {
    fn lines(&self) -> u64 {
        let overflowed = u64::try_from(self.overflowed.dropped_lines()).unwrap_or(u64::MAX);
        overflowed.saturating_add(self.told.unwritten.load(Ordering::Relaxed))
    }
}

/// What a log and its writer's thread tell each other.
#[derive(Debug, Default)]
struct Told {
    /// Lines that the destination refused.
    unwritten: AtomicU64,
    /// The log ends: what cannot be written now is lost.
    is_over: AtomicBool,
}

/// Dropped at the end of the process (or of this log), it waits up to a second for the waiting lines to be written.
#[must_use = "lines are lost when the guard is dropped early"]
pub struct FlushGuard(Option<(WorkerGuard, Arc<Told>)>);

impl Drop for FlushGuard {
    fn drop(&mut self) {
        let Some((guard, told)) = self.0.take() else { return };
        told.is_over.store(true, Ordering::Relaxed);
        let (ended, end) = mpsc::channel::<()>();
        // When the queue stays full it says so on standard output, which takes for ever if nobody reads that.
        let ending = thread::Builder::new().name("access-log-end".to_owned()).spawn(move || {
            drop(guard);
            drop(ended);
        });
        if ending.is_ok() {
            let _ = end.recv_timeout(LONGEST_END);
        }
    }
}

impl AccessLog {
    /// Opens the log. Fails when the file cannot be opened.
    pub fn open(format: &Format, to: &To) -> io::Result<(Self, FlushGuard)> {
        let layout = match format {
            Format::Off => return Ok((Self::off(), FlushGuard(None))),
            Format::Json => None,
            Format::Common => Some(Layout::common()),
            Format::Combined => Some(Layout::combined()),
            Format::Template(layout) => Some(layout.clone()),
        };
        let told = Arc::<Told>::default();
        let sink = Sink::open(to, told.clone())?;
        Ok(Self::start(sink, told, layout))
    }

    /// That the log can be opened; a file is made where there is none.
    ///
    /// # Errors
    /// The file cannot be opened. Its path is not told: it may be a secret of whoever wrote the document.
    pub fn check(format: &Format, to: &To) -> io::Result<()> {
        if *format == Format::Off { Ok(()) } else { Sink::check(to) }
    }

    /// A log that writes nothing.
    #[must_use]
    pub fn off() -> Self {
        Self { inner: None, before: Vec::new() }
    }

    /// Takes the place of this log, and goes on with its count.
    #[must_use]
    pub fn after(self, old: &Self) -> Self {
        let last = old.inner.as_ref().map(|inner| inner.lost.clone());
        Self { before: old.before.iter().cloned().chain(last).collect(), ..self }
    }

    /// Whether lines are written at all; callers may save the work of gathering them.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.inner.is_some()
    }

    /// Queues one line, without what is hidden. Never waits: when the queue is full the line is dropped and counted.
    pub fn write(&self, access: &Access<'_>, redactor: &Redactor<'_>) {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let Some(inner) = &self.inner else { return };
        BUFFER.with_borrow_mut(|buffer| {
            buffer.clear();
            match &inner.layout {
                None => format_line(access, redactor, buffer),
                Some(layout) => layout.write(access, redactor, buffer),
            }
            // Lossy: it reports success and counts what it drops.
            let _ = inner.queue.clone().write_all(buffer);
            if buffer.capacity() > KEEP_BUFFER {
                *buffer = Vec::new();
            }
        });
    }

    /// Lines that were not written, here and by the logs before: the queue was full, or the file refused them.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        let here = self.inner.as_ref().map(|inner| &inner.lost);
        self.before.iter().chain(here).map(Lost::lines).fold(0, u64::saturating_add)
    }

    fn start(
        sink: impl Write + Send + 'static,
        told: Arc<Told>,
        layout: Option<Layout>,
    ) -> (Self, FlushGuard) {
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_WAITING_LINES);
        let (queue, guard) = builder.thread_name("access-log").finish(sink);
        let lost = Lost { overflowed: queue.error_counter(), told: told.clone() };
        let guard = FlushGuard(Some((guard, told)));
        let inner = Inner { layout, queue, lost };
        (Self { inner: Some(Arc::new(inner)), before: Vec::new() }, guard)
    }
}

/// Appends one request as a line of JSON, with its line break.
pub fn format_line(access: &Access<'_>, redactor: &Redactor<'_>, buffer: &mut Vec<u8>) {
    let start = buffer.len();
    let mut serializer = serde_json::Serializer::with_formatter(&mut *buffer, Inert);
    if (Line { access, redactor }).serialize(&mut serializer).is_ok() {
        buffer.push(b'\n');
    } else {
        // Writing to memory cannot fail and every value is plain; half a line would spoil the next one.
        buffer.truncate(start);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Blocked {
        started: mpsc::Sender<()>,
        release: mpsc::Receiver<()>,
    }

    impl Write for Blocked {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.started.send(());
            let _ = self.release.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stuck_writer_costs_lines_but_never_a_requests_time() {
        let ((started, has_started), (release, released)) = (mpsc::channel(), mpsc::channel());
        let sink = Blocked { started, release: released };
        let (log, guard) = AccessLog::start(sink, Arc::default(), None);
        let write = || log.write(&Access::example(), &Redactor::new(&[]));
        write();
        has_started.recv().unwrap();
        for _ in 0..MAX_WAITING_LINES + 10 {
            write();
        }
        assert_eq!(log.dropped(), 10);
        drop(release);
        drop(guard);
    }

    #[test]
    fn lines_waiting_at_the_end_are_written() {
        let path = std::env::temp_dir().join(format!("tollhouse-access-{}.log", std::process::id()));
        let (log, guard) = AccessLog::open(&Format::Json, &To::File(path.clone())).unwrap();
        let write = || log.write(&Access::example(), &Redactor::new(&[]));
        for _ in 0..100 {
            write();
        }
        drop(guard);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text.lines().count(), 100);
        assert_eq!(log.dropped(), 0);
        write();
        assert_eq!(log.dropped(), 1, "a line after the end is counted as dropped");
        let off = AccessLog::off().after(&log);
        let on = AccessLog::open(&Format::Json, &To::File("/dev/null".into())).unwrap().0.after(&off);
        assert_eq!(
            (off.dropped(), on.dropped()),
            (1, 1),
            "and is not forgotten when another log takes its place"
        );
    }

    #[test]
    fn off_writes_nothing_and_needs_no_file() {
        let (log, _guard) = AccessLog::open(&Format::Off, &To::File("/no/such/folder/x".into())).unwrap();
        assert!(!log.is_on());
        log.write(&Access::example(), &Redactor::new(&[]));
        assert_eq!(log.dropped(), 0);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_with_its_name() {
        let Err(error) = AccessLog::open(&Format::Json, &To::File("/no/such/folder/x".into())) else {
            panic!("it opened");
        };
        assert!(error.to_string().contains("/no/such/folder/x"), "{error}");
    }

    #[test]
    fn a_file_that_could_not_be_opened_is_told_of_without_its_name() {
        let to = To::File("/no/such/folder/x".into());
        let error = AccessLog::check(&Format::Json, &to).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(!error.to_string().contains("folder"), "{error}");
        assert!(AccessLog::check(&Format::Off, &to).is_ok(), "nothing is opened");
    }

    #[test]
    fn destinations_are_names_or_paths() {
        for (text, to) in [("stdout", To::Stdout), ("stderr", To::Stderr), ("a/b", To::File("a/b".into()))] {
            assert_eq!(serde_json::from_value::<To>(text.into()).unwrap(), to);
            assert_eq!(serde_json::to_value(&to).unwrap(), text);
        }
        assert!(serde_json::from_value::<To>("".into()).is_err());
    }
}
