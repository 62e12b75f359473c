//! Backends whose addresses are in ZooKeeper: the children of a node, most of them ephemeral.
//!
//! One watch that is persistent and recursive says which children changed; those are read again. After a connection
//! was lost, changes may have been missed, and all of them are read again. When the session has expired, all begins anew.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, TryStreamExt, stream};
use tokio::time::{sleep, timeout};
use zeroize::Zeroizing;
use zookeeper_client::{
    AddWatchMode, Client, Error, EventType, PersistentWatcher, SessionState, WatchedEvent,
};

use super::{Directory, Failed, Instance, Tell, World, entry, jittered};
use crate::config::discovery::{Shared as _, ZookeeperDiscovery as Written};
use crate::config::upstream::Host;

/// How long the ensemble keeps a session whose client is silent.
const SESSION: Duration = Duration::from_secs(10);
/// The longest wait for a session.
const CONNECT: Duration = Duration::from_secs(15);
/// The longest that reading the children takes.
const READ: Duration = Duration::from_secs(30);
/// Children read at the same time.
const AT_ONCE: usize = 64;
/// Most children.
const MOST: usize = 20_000;
/// How long changes are waited for that come together with one, as in a rolling update.
const TOGETHER: Duration = Duration::from_millis(50);
/// How often all children are read, though none was said to have changed.
const EVERY: Duration = Duration::from_secs(60);

/// An ensemble of ZooKeeper.
pub(super) struct Zookeeper {
    written: Written,
    world: World,
}

/// The children, by name.
type Children = BTreeMap<String, Result<Option<Instance>, &'static str>>;

/// What is to be read again.
enum Changed {
    All,
    These(BTreeSet<String>),
}

impl Zookeeper {
    /// The ensemble as it is written.
    pub(super) fn new(written: &Written, world: World) -> Self {
        Self { written: written.clone(), world }
    }

    async fn follow(&self, tell: &Tell) -> Result<(), Failed> {
        let client = self.connect().await?;
        // Before the first look, so that nothing is missed in between.
        let path = self.written.path.as_str();
        let watch = client.watch(path, AddWatchMode::PersistentRecursive);
        let mut watcher = in_time(watch).await?;
        let mut children = Children::new();
        let mut changed = Changed::All;
        loop {
            match changed {
                Changed::All => children = in_time(self.read_all(&client, &children)).await?,
                Changed::These(names) => {
                    let read = in_time(self.read(&client, names)).await?;
                    put(&mut children, read);
                }
            }
            told(&children, tell)?;
            changed = self.changes(&mut watcher).await?;
        }
    }

    /// The addresses of the servers that have one; that the name of another cannot be looked up is no matter.
    async fn servers(&self) -> Result<Vec<String>, Failed> {
        let (mut servers, mut unknown) = (Vec::new(), None);
        for server in &self.written.servers {
            let name = match &server.host {
                Host::Ip(_) => {
                    servers.push(server.to_string());
                    continue;
                }
                Host::Name(name) => name,
            };
            match self.world.lookup.lookup(name).await {
                Ok(found) => {
                    let addresses = [found.v4, found.v6].into_iter().flatten().flatten();
                    servers.extend(addresses.map(|ip| SocketAddr::new(ip, server.port).to_string()));
                }
                Err(why) => unknown = Some(Failed::from(format!("{name} has no address: {why}"))),
            }
        }
        match unknown {
            Some(why) if servers.is_empty() => Err(why),
            _ => Ok(servers),
        }
    }

    async fn connect(&self) -> Result<Client, Failed> {
        let mut servers = self.servers().await?;
        fastrand::shuffle(&mut servers);
        let mut connector = Client::connector().with_session_timeout(SESSION).with_fail_eagerly();
        if let Some((name, password)) = self.written.credentials() {
            let pair = Zeroizing::new(format!("{name}:{}", password.expose()));
            connector = connector.with_auth("digest", pair.as_bytes());
        }
        let chroot = self.written.chroot.as_ref().map_or("", |chroot| chroot.as_str());
        let ensemble = format!("{}{chroot}", servers.join(","));
        let connected = timeout(CONNECT, connector.connect(&ensemble)).await;
        connected.map_err(|_| Failed::from("no server gave a session in time"))?.map_err(failed)
    }

    /// All children; those that are still the same malformed ones are not logged again.
    async fn read_all(&self, client: &Client, before: &Children) -> Result<Children, Error> {
        let names = match client.list_children(self.written.path.as_str()).await {
            // Nobody has registered yet.
            Err(Error::NoNode) => Vec::new(),
            names => names?,
        };
        if names.len() > MOST {
            return Err(Error::BadArguments(&"the node has more than 20000 children"));
        }
        let read = self.read(client, names.into_iter().collect()).await?;
        let mut children: Children =
            before.iter().map(|(name, child)| (name.clone(), child.clone())).collect();
        let there: BTreeSet<_> = read.iter().map(|(name, _)| name.clone()).collect();
        children.retain(|name, _| there.contains(name));
        put(&mut children, read);
        Ok(children)
    }

    /// The data of these children; none for those that are gone.
    async fn read(
        &self,
        client: &Client,
        names: BTreeSet<String>,
    ) -> Result<Vec<(String, Option<Vec<u8>>)>, Error> {
        let path = self.written.path.as_str();
        let read = |name: String| async move {
            match client.get_data(&format!("{path}/{name}")).await {
                Ok((data, _)) => Ok((name, Some(data))),
                Err(Error::NoNode) => Ok((name, None)),
                Err(error) => Err(error),
            }
        };
        stream::iter(names).map(read).buffer_unordered(AT_ONCE).try_collect().await
    }

    /// Waits for changes, and for those that come together with them.
    async fn changes(&self, watcher: &mut PersistentWatcher) -> Result<Changed, Failed> {
        let Ok(first) = timeout(jittered(EVERY), watcher.changed()).await else { return Ok(Changed::All) };
        let mut changed = Changed::These(BTreeSet::new());
        let mut event = first;
        let together = sleep(TOGETHER);
        tokio::pin!(together);
        loop {
            self.note(&event, &mut changed)?;
            tokio::select! {
                next = watcher.changed() => event = next,
                () = &mut together => return Ok(changed),
            }
        }
    }

    fn note(&self, event: &WatchedEvent, changed: &mut Changed) -> Result<(), Failed> {
        match (event.event_type, event.session_state) {
            (EventType::Session, SessionState::SyncConnected | SessionState::ConnectedReadOnly) => {
                *changed = Changed::All
            }
            // The client looks for another server, for as long as the session lasts.
            (EventType::Session, SessionState::Disconnected) => {}
            (EventType::Session, state) => return Err(ended(state)),
            _ => {
                let below = event.path.strip_prefix(self.written.path.as_str());
                match (below.map(|below| below.strip_prefix('/')), &mut *changed) {
                    (Some(Some(name)), Changed::These(names)) if !name.contains('/') => {
                        names.insert(name.to_owned());
                    }
                    // The node itself: its children are told of one by one.
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// Checks what is written.
///
/// # Errors
/// What is wrong, as paths to keys and messages.
pub(super) fn check(written: &Written) -> Result<(), Vec<(String, String)>> {
    if written.servers.is_empty() {
        return Err(vec![("servers".to_owned(), "at least one is needed".to_owned())]);
    }
    Ok(())
}

#[async_trait]
impl Directory for Zookeeper {
    async fn follow(&self, tell: &Tell) -> Failed {
        match self.follow(tell).await {
            Ok(()) => Failed::from("it ended"),
            Err(why) => why,
        }
    }
}

fn put(children: &mut Children, read: Vec<(String, Option<Vec<u8>>)>) {
    for (name, data) in read {
        let Some(data) = data else {
            children.remove(&name);
            continue;
        };
        let instance = entry::read(name.as_bytes(), &data);
        if let Err(why) = instance
            && children.get(&name) != Some(&instance)
        {
            let node = super::server::brief(&name);
            log::warn!(registry = "zookeeper", node, why; "a node that cannot be read is left out");
        }
        children.insert(name, instance);
    }
}

fn told(children: &Children, tell: &Tell) -> Result<(), Failed> {
    let instances: Vec<_> = children.values().flatten().flatten().cloned().collect();
    let unread = children.values().filter(|child| child.is_err()).count();
    if instances.is_empty() && unread > 0 {
        return Err(format!("none of the {unread} children can be read").into());
    }
    tell.set(instances);
    Ok(())
}

async fn in_time<T>(asked: impl Future<Output = Result<T, Error>>) -> Result<T, Failed> {
    let answer = timeout(READ, asked).await;
    answer.map_err(|_| Failed::from("it does not answer in time"))?.map_err(failed)
}

fn failed(error: Error) -> Failed {
    error.to_string().into()
}

fn ended(state: SessionState) -> Failed {
    Failed::from(match state {
        SessionState::AuthFailed => "the gateway is not who it says",
        SessionState::Expired => "the session has expired",
        _ => "the session was closed",
    })
}
