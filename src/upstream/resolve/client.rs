//! Name servers, and what they are asked: all of them together, and each by itself where one of them fails.

use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use futures_util::future::select_ok;
use hickory_resolver::config::{
    ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig, ResolverOpts,
};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::{Query, ResponseCode};
use hickory_resolver::proto::rr::{Name, RData, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use tokio::time::timeout;

use super::search::Search;
use super::{Failed, Found, RESOLV_CONF, Service};
use crate::config::Dns;
use crate::config::discovery::Family;

/// How long the answer of one family waits for that of the other; some servers never answer AAAA.
const OTHER_FAMILY: Duration = Duration::from_millis(500);
/// How long it does that has no addresses itself.
const ONLY_FAMILY: Duration = Duration::from_secs(5);
/// How long a server may take by itself, after another one has failed.
const ALONE: Duration = Duration::from_secs(2);
/// How long a name has no records, if the server does not say.
const NONE: Duration = Duration::from_secs(5);

/// Name servers, where names are searched, and the names that need neither.
pub(super) struct Client {
    /// All servers, for absolute names.
    resolver: TokioResolver,
    /// Each of them by itself; none if there is only one.
    each: Vec<TokioResolver>,
    search: Search,
    hosts: Hosts,
}

/// What was found of one type; none is an answer too.
struct Answer<T = IpAddr> {
    records: Vec<T>,
    ttl: Duration,
    /// There is no such name: nothing of another type either (RFC 8020 s2).
    no_name: bool,
}

impl Client {
    pub(super) fn new(dns: &Dns) -> Result<Self, Failed> {
        let (config, options) = match dns.servers.as_slice() {
            [] => settings(Path::new(RESOLV_CONF))?,
            _ => (servers(dns), ResolverOpts::default()),
        };
        Self::with(config, options)
    }

    fn with(mut config: ResolverConfig, mut options: ResolverOpts) -> Result<Self, Failed> {
        // Ours: when to look again, what hosts files mean, and in which domains. The TTLs of aliases count too.
        let ResolverOpts { cache_size, use_hosts_file, preserve_intermediates, .. } = &mut options;
        (*cache_size, *use_hosts_file, *preserve_intermediates) = (0, ResolveHosts::Never, true);
        let search = Search::taken_out_of(&mut config, &options);
        let mut once = options.clone();
        (once.attempts, once.timeout) = (0, once.timeout.min(ALONE));
        let servers = if config.name_servers().len() > 1 { config.name_servers() } else { &[] };
        let alone = |server: &NameServerConfig| ResolverConfig::from_name_servers(vec![server.clone()]);
        let each = servers.iter().map(|server| resolver(alone(server), once.clone()));
        let each = each.collect::<Result<_, _>>()?;
        let hosts = Hosts::from_system().unwrap_or_default();
        Ok(Self { resolver: resolver(config, options)?, each, search, hosts })
    }

    /// As with the system's resolver, a name in the file is not looked for elsewhere, in no family.
    pub(super) fn in_hosts(&self, name: &Name) -> Option<Found> {
        let [v4, v6] = [RecordType::A, RecordType::AAAA].map(|family| {
            let lookup = self.hosts.lookup_static_host(&Query::query(name.clone(), family))?;
            Some(lookup.answers().iter().filter_map(|record| record.data.ip_addr()).collect::<Vec<_>>())
        });
        if v4.is_none() && v6.is_none() {
            return None;
        }
        Some(Found { v4: Some(v4.unwrap_or_default()), v6: Some(v6.unwrap_or_default()), ttl: Duration::MAX })
    }

    pub(super) async fn ask(&self, name: &Name, family: Family) -> Result<Found, Failed> {
        let has_some = |found: &Found| found.v4.iter().chain(&found.v6).any(|known| !known.is_empty());
        self.search.first(name, |name| self.ask_absolute(name, family), has_some).await
    }

    async fn ask_absolute(&self, name: Name, family: Family) -> Result<Found, Failed> {
        let mut v4 = Box::pin(self.family(&name, RecordType::A));
        let mut v6 = Box::pin(self.family(&name, RecordType::AAAA));
        let unasked = || Ok(Answer { records: Vec::new(), ttl: Duration::MAX, no_name: false });
        let (v4, v6) = match family {
            Family::Ipv4 => (v4.await, unasked()),
            Family::Ipv6 => (unasked(), v6.await),
            Family::Any => tokio::select! {
                v4 = &mut v4 => {
                    let v6 = within(patience(&v4), v6).await;
                    (v4, v6)
                }
                v6 = &mut v6 => (within(patience(&v6), v4).await, v6),
            },
        };
        join(v4, v6)
    }

    async fn family(&self, name: &Name, family: RecordType) -> Result<Answer, NetError> {
        self.records(name, family, |data| data.ip_addr()).await
    }

    pub(super) async fn ask_services(&self, name: &Name) -> Result<(Vec<Service>, Duration), Failed> {
        let ask = async |name: Name| {
            let answer = self.records(&name, RecordType::SRV, service).await;
            answer.map(|Answer { records, ttl, .. }| (records, ttl)).map_err(|error| why(&error))
        };
        self.search.first(name, ask, |(services, _)| !services.is_empty()).await
    }

    /// What all servers say together, or else the first that can say anything: of those that are asked at once, the
    /// resolver believes one that answers with an error.
    async fn records<T>(
        &self,
        name: &Name,
        kind: RecordType,
        read: impl Fn(&RData) -> Option<T>,
    ) -> Result<Answer<T>, NetError> {
        let told = records_of(&self.resolver, name, kind, &read).await;
        // Where one does not answer in time, it asks others itself.
        let may_others = matches!(&told, Err(error) if !matches!(error, NetError::Timeout));
        if self.each.is_empty() || !may_others {
            return told;
        }
        let each: Vec<_> =
            self.each.iter().map(|server| Box::pin(records_of(server, name, kind, &read))).collect();
        match select_ok(each).await {
            Ok((answer, _)) => Ok(answer),
            Err(_) => told,
        }
    }
}

/// What the machine's file says. Where it names no server, or is not there, the machine is its own (resolv.conf(5)), and
/// names that need none are found.
fn settings(file: &Path) -> Result<(ResolverConfig, ResolverOpts), Failed> {
    let unusable =
        |error: &dyn std::error::Error| Failed(format!("cannot use {}: {error}", file.display()).into());
    let mut text = match fs::read(file) {
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        read => read.map_err(|error| unusable(&error))?,
    };
    if let Ok(settings) = parse_resolv_conf(&text) {
        return Ok(settings);
    }
    text.extend_from_slice(b"\nnameserver 127.0.0.1\n");
    parse_resolv_conf(&text).map_err(|error| unusable(&error))
}

fn resolver(config: ResolverConfig, options: ResolverOpts) -> Result<TokioResolver, Failed> {
    let builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    builder.with_options(options).build().map_err(|error| Failed(error.to_string().into()))
}

/// What this resolver knows of a name.
async fn records_of<T>(
    resolver: &TokioResolver,
    name: &Name,
    kind: RecordType,
    read: &impl Fn(&RData) -> Option<T>,
) -> Result<Answer<T>, NetError> {
    let error = match resolver.lookup(name.clone(), kind).await {
        Ok(lookup) => {
            let found = lookup.answers();
            let ttl = found.iter().map(|record| record.ttl).min().unwrap_or(0);
            let records = found.iter().filter_map(|record| read(&record.data)).collect();
            return Ok(Answer { records, ttl: Duration::from_secs(ttl.into()), no_name: false });
        }
        Err(error) => error,
    };
    match &error {
        NetError::Dns(DnsError::NoRecordsFound(none)) => {
            let ttl = none.negative_ttl.map_or(NONE, |seconds| Duration::from_secs(seconds.into()));
            let no_name = none.response_code == ResponseCode::NXDomain;
            Ok(Answer { records: Vec::new(), ttl, no_name })
        }
        _ => Err(error),
    }
}

/// Where a record says that a service is; a target that is the root says that there is decidedly none.
fn service(data: &RData) -> Option<Service> {
    match data {
        RData::SRV(service) if !service.target.is_root() => Some(Service {
            // As it is in the DNS (RFC 5890 s2.3.2.1), which is how names are looked up and verified.
            target: service.target.to_ascii().into(),
            port: service.port,
            priority: service.priority,
            weight: service.weight,
        }),
        _ => None,
    }
}

/// How long the other family is waited for after this answer: no longer than a moment, unless all depends on it.
fn patience(first: &Result<Answer, NetError>) -> Duration {
    match first {
        Ok(answer) if answer.no_name || !answer.records.is_empty() => OTHER_FAMILY,
        _ => ONLY_FAMILY,
    }
}

/// What a family's lookup says, if it says it in this time.
async fn within(
    longest: Duration,
    family: impl Future<Output = Result<Answer, NetError>>,
) -> Result<Answer, NetError> {
    timeout(longest, family).await.unwrap_or(Err(NetError::Timeout))
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
    use hickory_resolver::proto::rr::rdata::SRV;

    use super::*;
    use crate::config::upstream::Host;

    fn answer(addresses: &[&str], ttl: u64) -> Result<Answer, NetError> {
        let records = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Ok(Answer { records, ttl: Duration::from_secs(ttl), no_name: false })
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

    // resolv.conf(5): without any server, that of the machine itself is asked.
    #[tokio::test]
    async fn a_machine_without_a_name_server_finds_what_is_in_its_hosts_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("resolv.conf");
        for text in [None, Some(""), Some("# made while offline"), Some("search x.test\noptions ndots:3\n")] {
            text.into_iter().for_each(|text| fs::write(&file, text).unwrap());
            let (config, options) = settings(&file).unwrap();
            let servers: Vec<IpAddr> = config.name_servers().iter().map(|server| server.ip).collect();
            assert_eq!(servers, [IpAddr::from([127, 0, 0, 1])], "{text:?}");
            let searched = text.is_some_and(|text| text.contains("search"));
            assert_eq!((config.search().len(), options.ndots), if searched { (1, 3) } else { (0, 1) });
            let mut client = Client::with(config, options).unwrap();
            client.hosts.read_hosts_conf(&b"192.0.2.7 users.test\n"[..]).unwrap();
            assert!(client.in_hosts(&Name::from_utf8("users.test").unwrap()).is_some(), "{text:?}");
        }
        fs::write(&file, "nameserver 192.0.2.53\n").unwrap();
        let servers = settings(&file).unwrap().0.name_servers().len();
        assert_eq!(servers, 1, "those that are written are the only ones");
        let why = settings(dir.path()).unwrap_err().to_string();
        assert!(why.starts_with("cannot use ") && why.contains(&*dir.path().to_string_lossy()), "{why}");
    }

    #[test]
    fn the_other_family_is_waited_for_as_long_as_its_addresses_matter() {
        assert_eq!(patience(&answer(&["192.0.2.1"], 60)), OTHER_FAMILY);
        assert_eq!(patience(&answer(&[], 60)), ONLY_FAMILY, "the name is there");
        assert_eq!(patience(&Err(NetError::Timeout)), ONLY_FAMILY);
        let no_name = Ok(Answer { records: Vec::new(), ttl: Duration::ZERO, no_name: true });
        assert_eq!(patience(&no_name), OTHER_FAMILY, "RFC 8020 section 2");
    }

    #[test]
    fn the_target_of_a_service_is_as_it_is_in_the_dns() {
        let target = Name::from_ascii("xn--bcher-kva.example.").unwrap();
        let found = service(&RData::SRV(SRV::new(0, 1, 443, target))).unwrap();
        assert_eq!(&*found.target, "xn--bcher-kva.example.");
        assert!(Host::read(&found.target).is_some(), "it is a backend's host");
    }
}
