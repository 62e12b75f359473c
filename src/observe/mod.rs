//! Metrics and logs; a leaf that everyone may import.

pub mod access_log;
pub mod labels;
pub mod log;
pub mod metrics;
pub mod redact;
mod timestamp;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use access_log::{Access, AccessLog};
use access_log::{FlushGuard, Format, To};
pub use metrics::{AttemptOutcome, BackendSeries, InFlight, Registry, RouteSeries, UpstreamSeries};
use redact::Redactor;
pub(crate) use timestamp::Timestamp;

/// Metrics and the access log of a process.
pub struct Observe {
    /// Counters, gauges and histograms.
    pub registry: Arc<Registry>,
    access: ArcSwap<AccessLog>,
    /// Whether that is written: asked for each request, which has no need of the log itself.
    logs_access: AtomicBool,
    open: Mutex<Open>,
}

/// What the access log in use was opened with.
struct Open {
    format: Format,
    to: To,
    /// Writes what is queued when it is dropped.
    guard: Option<FlushGuard>,
}

impl Observe {
    /// Opens the access log; fails when its file cannot be opened.
    pub fn new(max_series: usize, format: &Format, to: &To) -> io::Result<Arc<Self>> {
        let (log, guard) = AccessLog::open(format, to)?;
        let open = Open { format: format.clone(), to: to.clone(), guard: Some(guard) };
        let observe = Arc::new(Self {
            registry: Registry::new(max_series),
            logs_access: AtomicBool::new(log.is_on()),
            access: ArcSwap::from_pointee(log),
            open: Mutex::new(open),
        });
        let weak = Arc::downgrade(&observe);
        let help = "Lines of the access log that were dropped.";
        observe.registry.register_counter_fn("tollhouse_access_log_dropped_total", help, &[], move || {
            weak.upgrade().map_or(0, |observe| observe.access.load().dropped())
        });
        Ok(observe)
    }

    /// Opens the access log anew if it is to be written another way; the old one stays when that fails.
    pub fn reopen(&self, format: &Format, to: &To) -> io::Result<()> {
        let mut open = self.open.lock();
        if (&open.format, &open.to) == (format, to) {
            return Ok(());
        }
        let (log, guard) = AccessLog::open(format, to)?;
        self.logs_access.store(log.is_on(), Ordering::Relaxed);
        self.access.store(Arc::new(log.after(&self.access.load())));
        *open = Open { format: format.clone(), to: to.clone(), guard: Some(guard) };
        Ok(())
    }

    /// Whether the access log is written at all.
    #[must_use]
    pub fn logs_access(&self) -> bool {
        self.logs_access.load(Ordering::Relaxed)
    }

    /// Writes one line of the access log, without what is hidden: documents say what that is, and the log in use may be
    /// of another one than the request.
    pub fn access(&self, access: &Access<'_>, redactor: &Redactor<'_>) {
        self.access.load().write(access, redactor);
    }

    /// Writes what is queued; to be called once, at the end.
    pub fn flush(&self) {
        self.open.lock().guard.take();
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::redact::Redaction;
    use super::*;

    #[test]
    fn a_line_hides_what_its_own_document_says_though_a_new_log_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("access.log");
        let observe = Observe::new(100, &Format::Json, &To::File(path.clone())).unwrap();
        let access = Access { query: Some(b"token=s3cret"), ..Access::example() };
        observe.access(&access, &Redactor::new(&[]));
        assert!(observe.reopen(&Format::Json, &To::File("/no/such/folder/x".into())).is_err());
        observe.access(&access, &Redactor::new(&[Redaction::Query("token".into())]));
        observe.flush();
        let text = std::fs::read_to_string(path).unwrap();
        let shown: Vec<bool> = text.lines().map(|line| line.contains("s3cret")).collect();
        assert_eq!(shown, [true, false]);
    }

    #[test]
    fn lines_that_a_log_gives_up_at_its_end_are_counted_by_those_after_it() {
        // full(4): writes fail as on a full disk.
        let observe = Observe::new(100, &Format::Json, &To::File("/dev/full".into())).unwrap();
        observe.access(&Access::example(), &Redactor::new(&[]));
        observe.reopen(&Format::Json, &To::File("/dev/null".into())).unwrap();
        observe.reopen(&Format::Off, &To::Stdout).unwrap();
        // The old one ends on a thread of its own.
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let page = observe.registry.render();
            if page.lines().any(|line| line == "tollhouse_access_log_dropped_total 1") {
                break;
            }
            assert!(Instant::now() < until, "{page}");
            thread::yield_now();
        }
    }
}
