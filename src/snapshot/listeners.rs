//! Listeners: their addresses, protocols, TLS and filters.

use std::path::Path as FilePath;
use std::sync::Arc;

use tollhouse_filters::tree::{Error, Path};

use super::compile::{Compiler, Faults, Mode, below, entity};
use super::pipelines::Pipelines;
use super::{ListenerPlan, Snapshot, facts};
use crate::config::{self, Protocol};
use crate::tls::{Remarks, ServerTls};

/// Listeners, by id, and what is suspicious about them. Sockets know their listener by its id, so an address keeps
/// its id from snapshot to snapshot, whatever its listener is called, and else a name does; one that is no longer
/// written keeps its place too, and takes no more requests. Those that have no socket yet come after all that have.
pub(super) fn build(
    compiler: &Compiler<'_>,
    written: Vec<config::Listener>,
    base: &FilePath,
    server: &config::Server,
    pipelines: &mut Pipelines<'_>,
    faults: &mut Faults<'_>,
) -> (Vec<ListenerPlan>, Vec<Error>) {
    let mut plans = Vec::with_capacity(written.len());
    let mut unusual = Vec::new();
    if written.is_empty() {
        faults.given(&["listeners"]).add(
            &Path::default(),
            "no `listeners`: nothing could come in; add `- {name: main, address: \"127.0.0.1:8080\"}`",
        );
    }
    for (at, mut options) in written.into_iter().enumerate() {
        let mut path = entity("listeners", at);
        if let Some(taken) = plans.iter().find(|plan: &&ListenerPlan| shares_address(&plan.options, &options))
        {
            let message = format!("listener `{}` has this address already", taken.name);
            faults.add(&path.join("address"), message);
        }
        check_protocols(&options, &path.join("protocols"), faults);
        let over_tcp = matches!(options.address, config::Address::Tcp(_));
        if options.accept_proxy_protocol && over_tcp && server.trusted_proxies.is_empty() {
            let message = "needs `server.trusted_proxies`: nobody else may say who a client is";
            faults.given(&["server"]).add(&path.join("accept_proxy_protocol"), message);
        }
        let tls = tls(compiler, &options, base, &path, faults, &mut unusual);
        path.push("filters");
        let owner = format!("listener:{}", options.name);
        let filters = std::mem::take(&mut options.filters);
        let pipeline = pipelines.build(&owner, filters, &path, faults);
        // A listener's filters run first, and for requests without a route too.
        if let Some((instance, fact)) = facts::unmet([&pipeline]) {
            faults.given(&["chains"]).add(&path, facts::message(&instance, fact));
        }
        let (name, bound) = (options.name.shared(), compiler.previous.is_none());
        plans.push(ListenerPlan { name, pipeline, tls, options, bound, retired: false });
    }
    (in_place(plans, compiler.previous), unusual)
}

fn in_place(mut plans: Vec<ListenerPlan>, previous: Option<&Snapshot>) -> Vec<ListenerPlan> {
    let before = previous.map_or_else(Default::default, |previous| previous.listeners.as_slice());
    // Whoever waits for an upgrade has no socket that another could be served on.
    let seats = &before[..before.partition_point(|old| old.bound)];
    // Before any name is looked at: what is meant for one address must not come in through the socket of another.
    let here = |old: &ListenerPlan| take(&mut plans, |plan| shares_address(&plan.options, &old.options));
    let here: Vec<Option<ListenerPlan>> = seats.iter().map(here).collect();
    let is_new = |plan: &ListenerPlan| before.iter().all(|old| old.name != plan.name || old.retired);
    let mut kept: Vec<ListenerPlan> = Vec::with_capacity(plans.len());
    for (old, here) in seats.iter().zip(here) {
        // The name of one that is gone may be another's by now.
        let is_named = |plan: &ListenerPlan| plan.name == old.name && !old.retired;
        let is_renamed = |plan: &ListenerPlan| plan.options.address == old.options.address && is_new(plan);
        let found = here.or_else(|| take(&mut plans, is_named)).or_else(|| take(&mut plans, is_renamed));
        kept.push(found.map_or_else(|| old.retire(), |plan| seated(plan, old)));
    }
    kept.append(&mut plans);
    kept
}

fn take(plans: &mut Vec<ListenerPlan>, fits: impl Fn(&ListenerPlan) -> bool) -> Option<ListenerPlan> {
    let at = plans.iter().position(fits)?;
    Some(plans.remove(at))
}

/// A listener on the socket of the one before it. One that is written for another address begins or ends its TLS
/// there, and asks clients for other certificates there, once an upgrade opens it.
fn seated(mut plan: ListenerPlan, old: &ListenerPlan) -> ListenerPlan {
    plan.bound = true;
    let moves = plan.options.address != old.options.address;
    let lets_in_the_same = match (&plan.tls, &old.tls) {
        (Some(tls), Some(before)) => tls.asks_as(before),
        (None, None) => true,
        _ => false,
    };
    if moves && !lets_in_the_same {
        plan.tls.clone_from(&old.tls);
    }
    plan
}

fn check_protocols(options: &config::Listener, path: &Path, faults: &mut Faults<'_>) {
    let protocols = options.protocols();
    match &options.tls {
        None if protocols.contains(&Protocol::H2) => {
            faults.add(path, "`h2` needs `tls`; without TLS it is `h2c`");
        }
        None if !protocols.contains(&Protocol::Http1) => {
            faults.add(path, "a listener without TLS always speaks `http/1.1`; add it");
        }
        Some(_) if protocols.contains(&Protocol::H2c) => {
            faults.add(path, "`h2c` is without TLS; with `tls` it is `h2`");
        }
        Some(_) if protocols.is_empty() => faults.add(path, "at least one protocol is needed"),
        _ => {}
    }
}

fn tls(
    compiler: &Compiler<'_>,
    options: &config::Listener,
    base: &FilePath,
    path: &Path,
    faults: &mut Faults<'_>,
    unusual: &mut Vec<Error>,
) -> Option<Arc<ServerTls>> {
    let written = options.tls.as_ref().filter(|_| compiler.mode != Mode::Afar)?;
    let previous = compiler.previous.and_then(|previous| before(previous, options));
    let mut remarks = Remarks::default();
    let tls = ServerTls::build(written, options.protocols(), base, previous, &mut remarks);
    for (place, message) in remarks.faults {
        faults.add(&path.concat(&below(&place)), message);
    }
    for (place, message) in remarks.warnings {
        unusual.push(faults.remark(&path.concat(&below(&place)), message));
    }
    tls.map(Arc::new)
}

/// TLS of the listener before: of the one that had its socket, whatever that was called, else of the one that had
/// its name.
fn before<'p>(previous: &'p Snapshot, options: &config::Listener) -> Option<&'p ServerTls> {
    let here = previous.listeners.iter().find(|old| shares_address(&old.options, options));
    let named = || previous.listener_named(options.name.as_str()).map(|id| previous.listener(id));
    here.and_then(|old| old.tls.as_deref()).or_else(|| named()?.tls.as_deref())
}

fn shares_address(one: &config::Listener, other: &config::Listener) -> bool {
    fixed_address(one).is_some_and(|address| *address == other.address)
}

/// The address, unless the system chooses a port: that is another one each time.
pub(super) fn fixed_address(options: &config::Listener) -> Option<&config::Address> {
    let any_port = matches!(options.address, config::Address::Tcp(address) if address.port() == 0);
    (!any_port).then_some(&options.address)
}
