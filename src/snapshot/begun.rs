//! What the sockets and threads of this process were made from: reloads open none, move none, and report what they
//! cannot change.

use std::sync::Arc;

use super::{ListenerPlan, Snapshot};
use crate::config::observability::Metrics;
use crate::config::{Address, AdminAddress, Protocol, Server};

/// Settings of the document that the process began with.
pub(super) struct Begun {
    /// By the ids of their listeners.
    sockets: Vec<Socket>,
    server: Server,
    admin: AdminAddress,
    metrics: Metrics,
}

/// A socket that requests come in through.
struct Socket {
    address: Address,
    /// Where the system chose the port: only a name tells such a socket from another one.
    name: Option<Arc<str>>,
    accept_proxy_protocol: bool,
    h2c: bool,
}

impl Begun {
    /// The process began with this snapshot.
    pub(super) fn with(first: &Snapshot) -> Self {
        Self {
            sockets: first.listeners.iter().map(Socket::of).collect(),
            server: first.server.clone(),
            admin: first.admin.address,
            metrics: first.observability.metrics,
        }
    }

    /// Where its sockets are, by the ids of their listeners.
    pub(super) fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.sockets.iter().map(|socket| &socket.address)
    }

    /// What a snapshot has otherwise, and gets in another process only.
    pub(super) fn needs_upgrade(&self, new: &Snapshot) -> Vec<&'static str> {
        let served = || self.sockets.iter().zip(&new.listeners);
        let has_others =
            self.sockets.len() != new.listeners.len() || served().any(|(socket, plan)| !socket.serves(plan));
        // One that is written for another socket gets its protocols with that.
        let has_protocols = served().any(|(socket, plan)| socket.serves(plan) && !socket.speaks_as(plan));
        let (server, limits) = (&self.server, &self.server.limits);
        let changes = [
            (has_others, "listeners"),
            (has_protocols, "listeners[].protocols"),
            (server.threads != new.server.threads, "server.threads"),
            (self.admin != new.admin.address, "admin.address"),
            (limits.h2_streams != new.server.limits.h2_streams, "server.limits.h2_streams"),
            (server.quotas != new.server.quotas, "server.quotas"),
            (server.upgrade_socket != new.server.upgrade_socket, "server.upgrade_socket"),
            (self.metrics != new.observability.metrics, "observability.metrics.max_series"),
        ];
        changes.into_iter().filter(|(changed, _)| *changed).map(|(_, name)| name).collect()
    }
}

impl Socket {
    fn of(plan: &ListenerPlan) -> Self {
        Self {
            address: plan.options.address.clone(),
            name: plan.fixed_address().is_none().then(|| plan.name.clone()),
            accept_proxy_protocol: plan.options.accept_proxy_protocol,
            h2c: plan.options.protocols().contains(&Protocol::H2c),
        }
    }

    /// Whether it is what is written for this listener.
    fn serves(&self, plan: &ListenerPlan) -> bool {
        !plan.retired
            && self.address == plan.options.address
            && self.name.as_ref().is_none_or(|name| *name == plan.name)
            && self.accept_proxy_protocol == plan.options.accept_proxy_protocol
    }

    /// Whether it speaks what is written for this listener. With TLS each handshake goes by what is written then.
    fn speaks_as(&self, plan: &ListenerPlan) -> bool {
        plan.options.tls.is_some() || self.h2c == plan.options.protocols().contains(&Protocol::H2c)
    }
}
