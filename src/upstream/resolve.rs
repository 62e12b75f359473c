//! Looks host names up: `/etc/hosts` first, then DNS, A and AAAA at once.

mod search;

use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;
use hickory_resolver::{Hosts, TokioResolver};
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use self::search::Search;
use crate::config::Dns;
use crate::config::discovery::Family;

/// Longest lookup of a name, all servers and attempts included.
const LONGEST: Duration = Duration::from_secs(10);
/// How long the answer of one family waits for that of the other; some servers never answer AAAA.
const OTHER_FAMILY: Duration = Duration::from_millis(500);
/// How long a name has no records, if the server does not say.
const NONE: Duration = Duration::from_secs(5);
/// Files that say how names resolve; read again when they change.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

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

struct Client {
    /// For absolute names.
    resolver: TokioResolver,
    search: Search,
    hosts: Hosts,
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
        let mut held = self.client.lock();
        if let Some((_, client)) = held.as_ref().filter(|(of, _)| *of == stamp) {
            return Ok(Arc::clone(client));
        }
        let client = Arc::new(Client::new(dns)?);
        *held = Some((stamp, Arc::clone(&client)));
        Ok(client)
    }
}

impl Client {
    fn new(dns: &Dns) -> Result<Self, Failed> {
        let (config, options) = match dns.servers.as_slice() {
            [] => read_system_conf()
                .map_err(|error| Failed(format!("cannot use /etc/resolv.conf: {error}").into()))?,
            _ => (servers(dns), ResolverOpts::default()),
        };
        Self::with(config, options)
    }

    fn with(mut config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, Failed> {
        // Ours: when to look again, what hosts files mean, and in which domains. The TTLs of aliases count too.
        let ResolverOpts { cache_size, use_hosts_file, preserve_intermediates, .. } = &mut options;
        (*cache_size, *use_hosts_file, *preserve_intermediates) = (0, ResolveHosts::Never, true);
        let search = Search::taken_out_of(&mut config, &options);
        let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let resolver = builder.with_options(options).build();
        let resolver = resolver.map_err(|error| Failed(error.to_string().into()))?;
        Ok(Self { resolver, search, hosts: Hosts::from_system().unwrap_or_default() })
    }

    /// As with the system's resolver, a name in the file is not looked for elsewhere, in no family.
    fn in_hosts(&self, name: &Name) -> Option<Found> {
        let [v4, v6] = [RecordType::A, RecordType::AAAA].map(|family| {
            let lookup = self.hosts.lookup_static_host(&Query::query(name.clone(), family))?;
            Some(lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>())
        });
        if v4.is_none() && v6.is_none() {
            return None;
        }
        Some(Found { v4: Some(v4.unwrap_or_default()), v6: Some(v6.unwrap_or_default()), ttl: Duration::MAX })
    }

    async fn ask(&self, name: &Name, family: Family) -> Result<Found, Failed> {
        let has_some = |found: &Found| found.v4.iter().chain(&found.v6).any(|known| !known.is_empty());
        self.search.first(name, |name| self.ask_absolute(name, family), has_some).await
    }

    async fn ask_absolute(&self, name: Name, family: Family) -> Result<Found, Failed> {
        let mut v4 = Box::pin(self.family(&name, RecordType::A));
        let mut v6 = Box::pin(self.family(&name, RecordType::AAAA));
        let unasked = || Ok(Answer { records: Vec::new(), ttl: Duration::MAX });
        let (v4, v6) = match family {
            Family::Ipv4 => (v4.await, unasked()),
            Family::Ipv6 => (unasked(), v6.await),
            Family::Any => tokio::select! {
                v4 = &mut v4 => (v4, after(v6).await),
                v6 = &mut v6 => (after(v4).await, v6),
            },
        };
        join(v4, v6)
    }

    async fn family(&self, name: &Name, family: RecordType) -> Result<Answer, NetError> {
        self.records(name, family, |data| data.ip_addr()).await
    }

    async fn ask_services(&self, name: &Name) -> Result<(Vec<Service>, Duration), Failed> {
        let ask = async |name: Name| {
            let answer = self.records(&name, RecordType::SRV, service).await;
            answer.map(|Answer { records, ttl }| (records, ttl)).map_err(|error| why(&error))
        };
        self.search.first(name, ask, |(services, _)| !services.is_empty()).await
    }

    async fn records<T>(
        &self,
        name: &Name,
        kind: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<Answer<T>, NetError> {
        let error = match self.resolver.lookup(name.clone(), kind).await {
            Ok(lookup) => {
                let found = lookup.answers();
                let ttl = found.iter().map(|record| record.ttl).min().unwrap_or(0);
                let records = found.iter().filter_map(|record| read(&record.data)).collect();
                return Ok(Answer { records, ttl: Duration::from_secs(ttl.into()) });
            }
            Err(error) => error,
        };
        match &error {
            NetError::Dns(DnsError::NoRecordsFound(none)) => {
                let ttl = none.negative_ttl.map_or(NONE, |seconds| Duration::from_secs(seconds.into()));
                Ok(Answer { records: Vec::new(), ttl })
            }
            _ => Err(error),
        }
    }
}

/// Where a record says that a service is; a target that is the root says that there is decidedly none.
fn service(data: &RData) -> Option<Service> {
    match data {
        RData::SRV(service) if !service.target.is_root() => Some(Service {
            target: service.target.to_string().into(),
            port: service.port,
            priority: service.priority,
            weight: service.weight,
        }),
        _ => None,
    }
}

/// What was found of one type; none is an answer too.
struct Answer<T = IpAddr> {
    records: Vec<T>,
    ttl: Duration,
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

/// What the other family's lookup says, if it says it soon.
async fn after(other: impl Future<Output = Result<Answer, NetError>>) -> Result<Answer, NetError> {
    timeout(OTHER_FAMILY, other).await.unwrap_or(Err(NetError::Timeout))
}

/// Both families as one; failed if one did and there is no address in the other.
fn join(v4: Result<Answer, NetError>, v6: Result<Answer, NetError>) -> Result<Found, Failed> {
    let has_some =
        |answer: &Result<Answer, NetError>| answer.as_ref().is_ok_and(|answer| !answer.records.is_empty());
    let some = has_some(&v4) || has_some(&v6);
    if let (false, (Err(error), _) | (_, Err(error))) = (some, (&v4, &v6)) {
        return Err(why(error));
    }
    // How long a family has no addresses counts only where neither has.
    let ttl = |answer: &Result<Answer, NetError>| match answer {
        Ok(answer) if !some || !answer.records.is_empty() => answer.ttl,
        _ => Duration::MAX,
    };
    let ttl = ttl(&v4).min(ttl(&v6));
    let addresses = |answer: Result<Answer, NetError>| answer.ok().map(|answer| answer.records);
    Ok(Found { v4: addresses(v4), v6: addresses(v6), ttl })
}

fn why(error: &NetError) -> Failed {
    match error {
        NetError::Timeout => Failed::from("the name servers do not answer"),
        NetError::Dns(DnsError::ResponseCode(code)) => Failed(format!("the name server says: {code}").into()),
        error => Failed(error.to_string().into()),
    }
}

/// These servers alone, for absolute names.
fn servers(dns: &Dns) -> ResolverConfig {
    let servers = dns.servers.iter().map(|server| {
        let address = server.address();
        let connection = |protocol| {
            let mut connection = ConnectionConfig::new(protocol);
            connection.port = address.port();
            connection
        };
        let connections = vec![connection(ProtocolConfig::Udp), connection(ProtocolConfig::Tcp)];
        NameServerConfig::new(address.ip(), true, connections)
    });
    ResolverConfig::from_parts(None, Vec::new(), servers.collect())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::sync::Notify;

    use super::*;

    fn answer(addresses: &[&str], ttl: u64) -> Result<Answer, NetError> {
        let records = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Ok(Answer { records, ttl: Duration::from_secs(ttl) })
    }

    #[test]
    fn the_shorter_ttl_of_both_families_counts_and_a_failed_family_is_unknown() {
        let both = join(answer(&["192.0.2.1"], 60), answer(&["::1"], 30)).unwrap();
        assert_eq!(both.ttl, Duration::from_secs(30));
        let half = join(answer(&["192.0.2.1"], 60), Err(NetError::Timeout)).unwrap();
        assert_eq!((half.v6, half.ttl), (None, Duration::from_secs(60)));
        let none = join(answer(&[], 5), answer(&["::1"], 60)).unwrap();
        assert_eq!((none.v4, none.ttl), (Some(Vec::new()), Duration::from_secs(60)));
        assert_eq!(join(answer(&[], 5), answer(&[], 9)).unwrap().ttl, Duration::from_secs(5));
    }

    #[test]
    fn without_any_address_the_reason_is_told() {
        let why = |v4, v6| join(v4, v6).and_then(Found::some).unwrap_err().to_string();
        assert_eq!(why(answer(&[], 1), answer(&[], 1)), "the name has no addresses");
        assert_eq!(why(answer(&[], 1), Err(NetError::Timeout)), "the name servers do not answer");
    }

    #[tokio::test]
    async fn a_name_in_the_hosts_file_is_looked_for_nowhere_else() {
        let dns = Dns { servers: vec!["127.0.0.1:1".parse().unwrap()], ..Dns::default() };
        let mut client = Client::new(&dns).unwrap();
        client.hosts.read_hosts_conf(&b"192.0.2.7 users.test\n192.0.2.8 users.test\n"[..]).unwrap();
        let found = client.in_hosts(&Name::from_utf8("users.test").unwrap()).unwrap();
        assert_eq!((found.v4.map(|list| list.len()), found.v6), (Some(2), Some(Vec::new())));
        assert_eq!(client.in_hosts(&Name::from_utf8("orders.test").unwrap()), None);
    }

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
    async fn localhost_resolves_without_any_server() {
        let resolver = Resolver::default();
        resolver.set(&Dns { servers: vec!["127.0.0.1:1".parse().unwrap()], ..Dns::default() });
        let found = resolver.lookup("localhost").await.unwrap();
        assert!(found.v4.into_iter().flatten().any(|ip| ip.is_loopback()), "RFC 6761 section 6.3");
    }
}
