//! Work beside requests: tasks of filters, on a thread of their own.

use std::io;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};
use tollhouse_filters::world::Tasks;

/// Longest wait for what a document needs before it serves.
const PATIENCE: Duration = Duration::from_secs(3);

/// Runs tasks for as long as it lives, once it was told to begin.
pub struct Background {
    runtime: Handle,
    begun: watch::Sender<bool>,
    awaited: Mutex<Vec<BoxFuture<'static, ()>>>,
    /// Ends the thread when it is dropped.
    _stop: oneshot::Sender<()>,
}

impl Background {
    /// Starts the thread; tasks wait until it begins.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> io::Result<Arc<Self>> {
        let (handle, stop) = apart("background")?;
        let begun = watch::Sender::new(false);
        Ok(Arc::new(Self { runtime: handle, begun, awaited: Mutex::default(), _stop: stop }))
    }

    /// What tasks reach is there: they may begin.
    pub fn begin(&self) {
        self.begun.send_replace(true);
    }
}

/// A runtime on a thread of its own, which ends when what is given with it is dropped.
pub(super) fn apart(name: &str) -> io::Result<(Handle, oneshot::Sender<()>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    let (stop, stopped) = oneshot::channel::<()>();
    thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _ = runtime.block_on(stopped);
    })?;
    Ok((handle, stop))
}

impl Tasks for Background {
    fn spawn(&self, task: BoxFuture<'static, ()>, ready: BoxFuture<'static, ()>) {
        let mut begun = self.begun.subscribe();
        self.runtime.spawn(async move {
            if begun.wait_for(|begun| *begun).await.is_ok() {
                task.await;
            }
        });
        self.awaited.lock().push(ready);
    }

    fn settle(&self) {
        let awaited = std::mem::take(&mut *self.awaited.lock());
        if awaited.is_empty() {
            return;
        }
        let (tell, told) = mpsc::channel();
        self.runtime.spawn(async move {
            join_all(awaited).await;
            let _ = tell.send(());
        });
        let _ = told.recv_timeout(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn tasks_begin_when_they_are_told_to_and_are_waited_for() {
        let background = Background::start().unwrap();
        let ran = Arc::<AtomicUsize>::default();
        for _ in 0..3 {
            let (ready, wait) = oneshot::channel::<()>();
            let ran = ran.clone();
            let task = async move {
                ran.fetch_add(1, Ordering::SeqCst);
                let _ = ready.send(());
                std::future::pending::<()>().await;
            };
            background.spawn(Box::pin(task), Box::pin(async { drop(wait.await) }));
        }
        assert_eq!(ran.load(Ordering::SeqCst), 0);
        background.begin();
        background.settle();
        assert_eq!(ran.load(Ordering::SeqCst), 3);
        background.settle();
    }
}
