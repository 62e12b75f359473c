//! Work beside requests, such as fetching keys before they are needed.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use tokio::runtime::Handle;

/// Runs tasks beside requests.
pub trait Tasks: Send + Sync {
    /// Runs a task, to its end. A document that serves only from now on waits for `ready` first, within bounds.
    fn spawn(&self, task: BoxFuture<'static, ()>, ready: BoxFuture<'static, ()>);

    /// Waits, within bounds, until what was spawned so far is ready. Blocks: not from a request.
    fn settle(&self) {}
}

/// Runs nothing, for dry runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoTasks;

impl Tasks for NoTasks {
    fn spawn(&self, _task: BoxFuture<'static, ()>, _ready: BoxFuture<'static, ()>) {}
}

/// Work that goes on to its end when who waits for it goes away.
pub(crate) struct GoingOn<T: Send + 'static>(Option<BoxFuture<'static, T>>);

impl<T: Send + 'static> GoingOn<T> {
    pub(crate) fn new(work: impl Future<Output = T> + Send + 'static) -> Self {
        Self(Some(Box::pin(work)))
    }
}

impl<T: Send + 'static> Future for GoingOn<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        // Nobody asks again after the end.
        let Some(work) = &mut self.0 else { return Poll::Pending };
        let done = ready!(work.as_mut().poll(context));
        self.0 = None;
        Poll::Ready(done)
    }
}

impl<T: Send + 'static> Drop for GoingOn<T> {
    fn drop(&mut self) {
        if let (Some(work), Ok(runtime)) = (self.0.take(), Handle::try_current()) {
            runtime.spawn(work);
        }
    }
}
