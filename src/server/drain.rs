//! Stopping: no new connections, work in flight finishes, then the process ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::signal::unix::{SignalKind, signal};

use crate::door::Draining;
use crate::observe::Observe;
use crate::snapshot::Live;

/// How often the work in flight is looked at.
const STEP: Duration = Duration::from_millis(20);

/// Waits for a signal to end, then for the work in flight.
pub(super) struct Signal {
    draining: Draining,
    observe: Arc<Observe>,
    live: Arc<Live>,
}

impl Signal {
    pub(super) fn new(draining: Draining, observe: Arc<Observe>, live: Arc<Live>) -> Self {
        Self { draining, observe, live }
    }

    async fn drained(&self) {
        let limit = self.live.load().server.drain.get();
        let until = Instant::now() + limit;
        // Connections that end at once get the time to say so.
        tokio::time::sleep(STEP).await;
        while self.observe.registry.in_flight() > 0 {
            if Instant::now() >= until {
                let left = self.observe.registry.in_flight();
                log::warn!(requests = left; "drain is over; requests in flight are cut");
                return;
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

#[async_trait]
impl ShutdownSignalWatch for Signal {
    async fn recv(&self) -> ShutdownSignal {
        let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            log::error!("cannot listen for signals");
            return std::future::pending().await;
        };
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        log::info!("stopping");
        self.draining.start();
        tokio::select! {
            () = self.drained() => {}
            // A second signal means now.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        ShutdownSignal::FastShutdown
    }
}
