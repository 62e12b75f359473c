//! The end of a process: no new connections, work under way finishes, then it is gone.

use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use pingora::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;

use super::upgrade::Upgrades;
use crate::admin::Admin;
use crate::door::{Desk, Draining, GOODBYE};
use crate::snapshot::Live;

/// How often the work under way is looked at.
const STEP: Duration = Duration::from_millis(20);
/// How long connections with nothing under way get to close: who was answered last may still read.
const FAREWELL: Duration = Duration::from_secs(3);

/// How long the process stays for what is cut to be accounted for, behind the goodbyes of WebSockets.
const ACCOUNTS: Duration = Duration::from_millis(500);

/// Waits for the end to be wished for, then for the work under way.
pub(super) struct Leaving {
    pub(super) desk: Desk,
    pub(super) live: Arc<Live>,
    pub(super) admin: Option<Admin>,
    /// What `/readyz` tells of.
    pub(super) stopping: Draining,
    pub(super) upgrades: Arc<Upgrades>,
    /// From the operator.
    pub(super) stops: Mutex<UnboundedReceiver<()>>,
}

#[async_trait]
impl ShutdownSignalWatch for Leaving {
    async fn recv(&self) -> ShutdownSignal {
        let mut stops = self.stops.lock().await;
        let mut patient = false;
        tokio::select! {
            _ = stops.recv() => {
                let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
                self.stopping.start();
                self.upgrades.give_up();
            }
            () = self.upgrades.replaced() => {
                patient = true;
                // From here on the other process answers for both; it is the one to be asked.
                if let Some(admin) = &self.admin {
                    admin.close();
                }
            }
        }
        self.desk.draining.start();
        log::info!("stopping");
        let mut drained = pin!(self.drained(patient));
        loop {
            tokio::select! {
                () = &mut drained => break,
                // A second signal means now; the first may be for the process in our place, and for us besides.
                _ = stops.recv() => {
                    if !std::mem::take(&mut patient) {
                        break;
                    }
                }
            }
        }
        ShutdownSignal::FastShutdown
    }
}

impl Leaving {
    /// Requests that are under way, or connections of HTTP/2 on which answers are: these may be sent for long after their
    /// requests are over.
    fn under_way(&self) -> usize {
        let requests = usize::try_from(self.desk.observe.registry.in_flight()).unwrap_or_default();
        requests.max(self.desk.permits.owing())
    }

    /// With `admin`, connections to the admin listener are waited for too.
    async fn drained(&self, admin: bool) {
        let until = Instant::now() + self.live.load().server.drain.get();
        let mut quiet_since = None;
        loop {
            tokio::time::sleep(STEP).await;
            let requests = self.under_way();
            let now = Instant::now();
            if requests > 0 && now >= until {
                self.desk.over.start();
                if now < until + GOODBYE + ACCOUNTS {
                    continue;
                }
                log::warn!(requests = requests; "drain is over; requests in flight are cut");
                return;
            }
            if requests > 0 {
                quiet_since = None;
                continue;
            }
            let farewell = now - *quiet_since.get_or_insert(now);
            let asked = self.admin.as_ref().filter(|_| admin).map_or(0, Admin::open);
            if self.desk.permits.open() + asked == 0 || farewell >= FAREWELL || now >= until {
                return;
            }
        }
    }
}
