//! Leaving connections to whoever accepts next on the same sockets.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// How long connections wait at most: another process may hang before it accepts them.
const MOST: Duration = Duration::from_secs(3);

/// Whether connections are accepted. While another process takes over what filters remember, they wait for
/// it: what this one let pass meanwhile, that one would not know of. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct Pause(Arc<watch::Sender<Option<Instant>>>);

impl Pause {
    /// Accepts no more, for a while.
    pub fn begin(&self) {
        self.0.send_replace(Some(Instant::now() + MOST));
    }

    /// Accepts again.
    pub fn end(&self) {
        self.0.send_replace(None);
    }

    pub(super) fn watch(&self) -> Watch {
        Watch(self.0.subscribe())
    }
}

/// What one accept loop goes by.
pub(super) struct Watch(watch::Receiver<Option<Instant>>);

impl Watch {
    /// Waits until connections are accepted.
    pub(super) async fn over(&mut self) {
        loop {
            let until = *self.0.borrow_and_update();
            let Some(until) = until.filter(|until| *until > Instant::now()) else { return };
            tokio::select! {
                () = changed(&mut self.0) => {}
                () = tokio::time::sleep_until(until.into()) => {}
            }
        }
    }

    /// Waits for something to change.
    pub(super) async fn changes(&mut self) {
        changed(&mut self.0).await;
    }
}

async fn changed(watch: &mut watch::Receiver<Option<Instant>>) {
    if watch.changed().await.is_err() {
        // Nobody is left who could begin one.
        pending().await
    }
}
