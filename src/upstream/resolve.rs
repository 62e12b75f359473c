//! Looks host names up: `/etc/hosts` first, then DNS, A and AAAA at once.

mod client;
mod search;

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hickory_resolver::proto::rr::Name;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::client::Client;
use crate::config::Dns;
use crate::config::discovery::Family;

/// Longest lookup of a name, all servers and attempts included.
const LONGEST: Duration = Duration::from_secs(10);
/// The name servers of the machine.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Files that say how names resolve; read again when they change.
const FILES: [&str; 2] = [RESOLV_CONF, "/etc/hosts"];
/// For how long a file can be written again without another time: file systems tell it by ticks of some milliseconds.
const TICK: Duration = Duration::from_millis(100);

/// The addresses of a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// IPv4; none if only this lookup failed.
    pub(super) v4: Option<Vec<IpAddr>>,
    /// IPv6; none if only this lookup failed.
    pub(super) v6: Option<Vec<IpAddr>>,
    /// How long they hold.
    pub(super) ttl: Duration,
}

impl Found {
    /// The same, if there are any.
    fn some(self) -> Result<Self, Failed> {
        let known = [self.v4.as_deref(), self.v6.as_deref()];
        match known.iter().all(|family| family.is_some_and(<[IpAddr]>::is_empty)) {
            true => Err(Failed::from("the name has no addresses")),
            false => Ok(self),
        }
    }
}

/// Where a service is (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Service {
    /// A name, with the dot at its end; what looks like an address is none.
    pub(super) target: Box<str>,
    pub(super) port: u16,
    /// Those of a lower number come first.
    pub(super) priority: u16,
    pub(super) weight: u16,
}

/// Why a name has no addresses or a registry cannot be followed, for people; without secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed(Box<str>);

impl From<&str> for Failed {
    fn from(why: &str) -> Self {
        Self(why.into())
    }
}

impl From<String> for Failed {
    fn from(why: String) -> Self {
        Self(why.into())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Asks for what a name stands for.
#[async_trait]
pub(super) trait Lookup: Send + Sync {
    /// The addresses, at least one; or why there are none.
    async fn lookup(&self, host: &str) -> Result<Found, Failed> {
        self.addresses(host, Family::Any).await?.some()
    }

    /// The addresses of this family, which may be none if that is the answer; or why nobody can tell. Of the other
    /// one, nothing is meant.
    async fn addresses(&self, host: &str, family: Family) -> Result<Found, Failed>;

    /// The service records of a name and how long they hold; none is an answer too.
    async fn services(&self, name: &str) -> Result<(Vec<Service>, Duration), Failed>;

    /// Goes by these settings from now on.
    fn set(&self, dns: &Dns);
}

/// The machine's resolver, or the one of the document.
#[derive(Default)]
pub(super) struct Resolver {
    dns: Mutex<Dns>,
    client: Mutex<Option<(Stamp, Arc<Client>)>>,
}

/// What a client was made from.
#[derive(Debug, PartialEq, Eq)]
struct Stamp(Dns, [Option<SystemTime>; FILES.len()]);

impl Stamp {
    /// Whether it may also be that of what is written from now on, as of a file that is emptied first.
    fn is_fresh(&self, now: SystemTime) -> bool {
        self.1.iter().flatten().any(|changed| now.duration_since(*changed).is_ok_and(|age| age < TICK))
    }
}

#[async_trait]
impl Lookup for Resolver {
    async fn addresses(&self, host: &str, family: Family) -> Result<Found, Failed> {
        let dns = self.dns.lock().clone();
        let client = self.client(&dns)?;
        let name = parse(host)?;
        let found = match client.in_hosts(&name) {
            Some(found) => found,
            None => in_time(client.ask(&name, family)).await?,
        };
        Ok(Found { ttl: bounded(found.ttl, &dns), ..found })
    }

    async fn services(&self, name: &str) -> Result<(Vec<Service>, Duration), Failed> {
        let dns = self.dns.lock().clone();
        let client = self.client(&dns)?;
        let (services, ttl) = in_time(client.ask_services(&parse(name)?)).await?;
        Ok((services, bounded(ttl, &dns)))
    }

    fn set(&self, dns: &Dns) {
        *self.dns.lock() = dns.clone();
    }
}

/// Asks somebody else for no more than so many names at a time. Whatever is asked beside it waits for none of them.
pub(super) struct Bounded {
    lookup: Arc<dyn Lookup>,
    places: Semaphore,
}

impl Bounded {
    /// With so many places.
    pub(super) fn new(lookup: Arc<dyn Lookup>, places: usize) -> Self {
        Self { lookup, places: Semaphore::new(places) }
    }
}

#[async_trait]
impl Lookup for Bounded {
    async fn addresses(&self, host: &str, family: Family) -> Result<Found, Failed> {
        let _place = self.places.acquire().await;
        self.lookup.addresses(host, family).await
    }

    async fn services(&self, name: &str) -> Result<(Vec<Service>, Duration), Failed> {
        let _place = self.places.acquire().await;
        self.lookup.services(name).await
    }

    fn set(&self, dns: &Dns) {
        self.lookup.set(dns);
    }
}

impl Resolver {
    fn client(&self, dns: &Dns) -> Result<Arc<Client>, Failed> {
        let changed = |file| fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
        let stamp = Stamp(dns.clone(), FILES.map(changed));
        // Not before, or what was written since would seem to be of the future.
        let now = SystemTime::now();
        self.client_of(stamp, now)
    }

    /// The one that is held of this, else a new one.
    fn client_of(&self, stamp: Stamp, now: SystemTime) -> Result<Arc<Client>, Failed> {
        let mut held = self.client.lock();
        if let Some((_, client)) = held.as_ref().filter(|(of, _)| *of == stamp) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(Client::new(&stamp.0)?);
        if !stamp.is_fresh(now) {
            *held = Some((stamp, Arc::clone(&client)));
        }
        Ok(client)
    }
}

fn parse(name: &str) -> Result<Name, Failed> {
    Name::from_utf8(name).map_err(|error| Failed(error.to_string().into()))
}

async fn in_time<T>(asked: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    timeout(LONGEST, asked).await.unwrap_or_else(|_| Err(Failed::from("the name servers do not answer")))
}

fn bounded(ttl: Duration, dns: &Dns) -> Duration {
    ttl.min(dns.max_ttl.get()).max(dns.min_ttl.get())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::sync::Notify;

    use super::*;

    /// Answers when it is let, and counts who waits.
    #[derive(Default)]
    struct Slow {
        under_way: AtomicUsize,
        let_go: Notify,
    }

    #[async_trait]
    impl Lookup for Slow {
        async fn addresses(&self, _: &str, _: Family) -> Result<Found, Failed> {
            self.under_way.fetch_add(1, Relaxed);
            self.let_go.notified().await;
            self.under_way.fetch_sub(1, Relaxed);
            Err(Failed::from("it was let go"))
        }

        async fn services(&self, name: &str) -> Result<(Vec<Service>, Duration), Failed> {
            self.addresses(name, Family::Any).await.map(|_| (Vec::new(), Duration::ZERO))
        }

        fn set(&self, _: &Dns) {}
    }

    #[tokio::test]
    async fn no_more_names_are_asked_for_at_a_time_than_there_are_places() {
        let slow = Arc::new(Slow::default());
        let bounded = Arc::new(Bounded::new(slow.clone(), 3));
        let mut all = tokio::task::JoinSet::new();
        for n in 0..10 {
            let bounded = Arc::clone(&bounded);
            all.spawn(async move {
                match n % 2 {
                    0 => bounded.addresses("a.test", Family::Any).await.map(drop),
                    _ => bounded.services("a.test").await.map(drop),
                }
            });
        }
        let mut done = 0;
        while done < 10 {
            // All who may have begun have.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            assert_eq!(slow.under_way.load(Relaxed), 3.min(10 - done));
            slow.let_go.notify_one();
            all.join_next().await.unwrap().unwrap().unwrap_err();
            done += 1;
        }
    }

    #[tokio::test]
    async fn what_is_read_while_it_may_still_be_written_is_read_again() {
        let (resolver, changed) = (Resolver::default(), SystemTime::now());
        let dns = Dns { servers: vec!["127.0.0.1:1".parse().unwrap()], ..Dns::default() };
        let client_after = |milliseconds| {
            let now = changed + Duration::from_millis(milliseconds);
            resolver.client_of(Stamp(dns.clone(), [Some(changed), None]), now).unwrap()
        };
        let (early, late) = (client_after(3), client_after(200));
        assert!(!Arc::ptr_eq(&early, &late), "it may have been half of it");
        assert!(Arc::ptr_eq(&late, &client_after(201)));
        // The clock was set back: what is written now has another time.
        let put_back = |times| Stamp(dns.clone(), times).is_fresh(changed - Duration::from_secs(60));
        assert!(!put_back([Some(changed), None]) && !put_back([None, None]));
    }

    #[tokio::test]
    async fn localhost_resolves_without_any_server() {
        let resolver = Resolver::default();
        resolver.set(&Dns { servers: vec!["127.0.0.1:1".parse().unwrap()], ..Dns::default() });
        let found = resolver.lookup("localhost").await.unwrap();
        assert!(found.v4.into_iter().flatten().any(|ip| ip.is_loopback()), "RFC 6761 section 6.3");
    }
}
