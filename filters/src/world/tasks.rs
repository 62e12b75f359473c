//! Work beside requests, such as fetching keys before they are needed.

use futures_util::future::BoxFuture;

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
