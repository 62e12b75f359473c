//! Work that blocks, beside the one thread on which what seldom happens waits for its time.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::sleep;

/// Between two attempts to start a thread.
const PAUSE: Duration = if cfg!(test) { Duration::from_millis(1) } else { Duration::from_secs(1) };

/// What a thread is to do.
type Job = Box<dyn FnOnce() + Send>;

/// The work panicked, which the log has told by now.
#[derive(Debug)]
pub(super) struct Panicked;

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its thread panicked")
    }
}

/// Does work on a thread of this name, which is there for as long as it takes. Where none can be started, such as where
/// a container has too many already, it waits until one can.
///
/// # Errors
/// The work panicked.
pub(super) async fn run<T: Send + 'static>(
    name: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Panicked> {
    run_by(|job| thread::Builder::new().name(name.to_owned()).spawn(job).map(drop), work).await
}

/// As [`run`], on what this starts.
async fn run_by<T: Send + 'static>(
    start: impl Fn(Job) -> io::Result<()>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Panicked> {
    let (tell, told) = oneshot::channel();
    let work = move || {
        let _ = tell.send(work());
    };
    // A thread that is not started drops what it was given.
    let kept = Arc::new(Mutex::new(Some(work)));
    let mut said = false;
    loop {
        let kept = kept.clone();
        let job = move || {
            let work = kept.lock().take();
            if let Some(work) = work {
                work();
            }
        };
        let Err(error) = start(Box::new(job)) else { break };
        if !std::mem::replace(&mut said, true) {
            log::error!("cannot start a thread, trying again until one can be: {error}");
        }
        sleep(PAUSE).await;
    }
    told.await.map_err(|_| Panicked)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[tokio::test]
    async fn work_is_done_on_a_thread_of_its_name() {
        let name = run("aside", || thread::current().name().map(str::to_owned)).await;
        assert_eq!(name.unwrap().as_deref(), Some("aside"));
    }

    #[tokio::test]
    async fn work_waits_for_a_thread_where_none_can_be_started() {
        let attempts = AtomicUsize::new(0);
        let scarce = |job: Job| {
            if attempts.fetch_add(1, Relaxed) < 2 {
                // As pthread_create(3) says it.
                return Err(io::Error::from(io::ErrorKind::WouldBlock));
            }
            thread::spawn(job);
            Ok(())
        };
        assert_eq!(run_by(scarce, || 7).await.unwrap(), 7);
        assert_eq!(attempts.load(Relaxed), 3);
    }

    #[tokio::test]
    async fn who_waits_for_work_is_told_that_it_panicked() {
        let work: fn() -> u8 = || panic!("on purpose");
        assert!(run("aside", work).await.is_err());
        assert_eq!(run("aside", || 7).await.unwrap(), 7, "the next one is done");
    }
}
