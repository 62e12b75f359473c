//! Upstreams that no document names: one for each origin that calls go to, such as an issuer of tokens.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::json;
use tollhouse_filters::world::{Origin, UpstreamId};

use super::Upstream;
use super::backend::Endpoint;
use super::call::CallError;
use super::resolve::{Found, Lookup, Resolver};

/// Where ids of origins begin; those of a document's upstreams count from 1.
const FIRST: u32 = 1 << 31;
/// Most origins of a process.
const MOST: usize = 1024;
/// How long the last addresses of a name that cannot be looked up are good for.
const KEEP: Duration = Duration::from_secs(5);
/// How long a first lookup that failed is not repeated: who waited for it would each wait for one of his own.
const AGAIN: Duration = Duration::from_secs(1);

/// The origins that calls go to.
pub struct Origins {
    lookup: Arc<dyn Lookup>,
    known: Mutex<Vec<Arc<Known>>>,
}

struct Known {
    origin: Origin,
    upstream: Arc<Upstream>,
    /// Locked by who looks up.
    looked: tokio::sync::Mutex<Looked>,
}

#[derive(Debug, Default)]
struct Looked {
    /// Until when its addresses hold; none before the first lookup.
    until: Option<Instant>,
    /// When the first lookup failed, and why.
    failed: Option<(Instant, CallError)>,
}

impl Origins {
    /// None yet; names are looked up by the machine's resolver.
    pub fn new() -> Self {
        Self { lookup: Arc::<Resolver>::default(), known: Mutex::default() }
    }

    /// What looks names up, for others to share.
    pub(super) fn lookup(&self) -> Arc<dyn Lookup> {
        Arc::clone(&self.lookup)
    }

    /// The id of an origin, the same each time; none for one that cannot be called, or of too many.
    pub fn id(&self, origin: &Origin) -> Option<UpstreamId> {
        let mut known = self.known.lock();
        let at = match known.iter().position(|known| known.origin == *origin) {
            Some(at) => at,
            None if known.len() >= MOST => return None,
            None => {
                let (origin, upstream) = (origin.clone(), Arc::new(upstream(origin)?));
                known.push(Arc::new(Known { origin, upstream, looked: Default::default() }));
                known.len() - 1
            }
        };
        u32::try_from(at).ok().map(|at| UpstreamId(FIRST + at))
    }

    /// The upstream of this id, with addresses; none if it is not an origin's.
    ///
    /// # Errors
    /// Its name cannot be looked up, or it leads where it must not.
    pub async fn upstream(&self, id: UpstreamId) -> Option<Result<Arc<Upstream>, CallError>> {
        let at = usize::try_from(id.0.checked_sub(FIRST)?).ok()?;
        let known = Arc::clone(self.known.lock().get(at)?);
        let found = known.resolved(&self.lookup).await;
        Some(found.map(|()| Arc::clone(&known.upstream)))
    }
}

impl Default for Origins {
    fn default() -> Self {
        Self::new()
    }
}

impl Known {
    /// Looks the name up, if it is one and was not or not for long enough. Who calls waits for the first
    /// lookup only: later ones are made beside the call.
    async fn resolved(self: &Arc<Self>, lookup: &Arc<dyn Lookup>) -> Result<(), CallError> {
        if let Ok(address) = self.origin.host.parse() {
            return self.usable(&[address]).map(drop);
        }
        if self.upstream.backends().iter().all(|backend| backend.is_resolved()) {
            let (known, lookup) = (Arc::clone(self), Arc::clone(lookup));
            // Somebody else is at it, or nothing needs to be done.
            if let Ok(looked) = self.looked.try_lock()
                && looked.until.is_some_and(|until| Instant::now() >= until)
            {
                tokio::spawn(async move { known.look_up(&*lookup).await });
            }
            return Ok(());
        }
        // Who calls may have less time than this takes; the next one should find it done.
        let (known, lookup) = (Arc::clone(self), Arc::clone(lookup));
        let found = tokio::spawn(async move { known.look_up(&*lookup).await });
        found.await.unwrap_or(Err(CallError::NoBackend))
    }

    async fn look_up(&self, lookup: &dyn Lookup) -> Result<(), CallError> {
        let mut looked = self.looked.lock().await;
        if looked.until.is_some_and(|until| Instant::now() < until) {
            return Ok(());
        }
        if let Some((at, error)) = &looked.failed
            && at.elapsed() < AGAIN
        {
            return Err(error.clone());
        }
        let found = lookup.lookup(&self.origin.host).await;
        let Found { v4, v6, ttl } = found.map_err(|why| {
            let error = CallError::Connect(format!("{} has no address: {why}", self.origin.host).into());
            match &mut looked.until {
                Some(until) => *until = Instant::now() + KEEP,
                None => looked.failed = Some((Instant::now(), error.clone())),
            }
            error
        })?;
        let addresses: Vec<IpAddr> = [v4, v6].into_iter().flatten().flatten().collect();
        let addresses = self.usable(&addresses)?;
        let port = self.origin.port;
        let endpoint = |address| Endpoint { address: SocketAddr::new(address, port), health: None };
        self.upstream.backends()[0].set_endpoints(addresses.into_iter().map(endpoint).collect());
        *looked = Looked { until: Instant::now().checked_add(ttl), failed: None };
        Ok(())
    }

    /// Those that may be called, at least one.
    fn usable(&self, addresses: &[IpAddr]) -> Result<Vec<IpAddr>, CallError> {
        let usable = |address: &&IpAddr| !self.origin.public_only || is_public(**address);
        let usable: Vec<IpAddr> = addresses.iter().filter(usable).copied().collect();
        match usable.is_empty() {
            true => {
                let message = format!("{} leads to no public address, and must", self.origin.host);
                Err(CallError::Connect(message.into()))
            }
            false => Ok(usable),
        }
    }
}

fn upstream(origin: &Origin) -> Option<Upstream> {
    let Origin { tls, host, port, .. } = origin;
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_string() };
    let mut written = json!({"name": "origin", "backends": [{"address": format!("{host}:{port}")}]});
    if *tls {
        written["tls"] = json!({"sni": origin.host});
    }
    let written = serde_json::from_value(written).ok()?;
    let mut upstream = Upstream::build(&written, std::path::Path::new(""), None).ok()?;
    upstream.name = format!("{}://{host}:{port}", if *tls { "https" } else { "http" }).into();
    Some(upstream)
}

/// Whether anybody on the internet reaches the same there (the registries of RFC 6890).
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast();
    let [first, second, third, _] = address.octets();
    let shared = first == 100 && second & 0xc0 == 64;
    let assigned = (first, second, third) == (192, 0, 0) || (first == 198 && second & 0xfe == 18);
    !(special || shared || assigned || first == 0 || first >= 240)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(inner) = address.to_ipv4_mapped() {
        return is_public_v4(inner);
    }
    let [first, second, ..] = address.segments();
    // Only these are given out; of them, some lead to addresses of IPv4, and some are for documents.
    first & 0xe000 == 0x2000 && first != 0x2002 && !(first == 0x2001 && (second < 0x200 || second == 0xdb8))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use tokio::sync::Notify;
    use tokio::time::timeout;

    use super::super::resolve::{Failed, Service};
    use super::*;
    use crate::config::Dns;
    use crate::config::discovery::Family;

    /// Gives these addresses for a second, one more each time.
    struct Script(Mutex<Vec<Vec<IpAddr>>>);

    #[async_trait]
    impl Lookup for Script {
        async fn addresses(&self, _: &str, _: Family) -> Result<Found, Failed> {
            let addresses = self.0.lock().pop().ok_or(Failed::from("no answer"))?;
            Ok(Found { v4: Some(addresses), v6: None, ttl: Duration::ZERO })
        }

        async fn services(&self, _: &str) -> Result<(Vec<Service>, Duration), Failed> {
            Err(Failed::from("there are no services here"))
        }

        fn set(&self, _: &Dns) {}
    }

    fn origins(answers: &[&[&str]]) -> Origins {
        let parse = |answer: &&[&str]| answer.iter().map(|text| text.parse().unwrap()).collect();
        let lookup = Arc::new(Script(Mutex::new(answers.iter().rev().map(parse).collect())));
        Origins { lookup, known: Mutex::default() }
    }

    fn origin(host: &str, public_only: bool) -> Origin {
        Origin { tls: true, host: host.into(), port: 443, public_only }
    }

    #[test]
    fn an_origin_has_one_id_which_is_no_document_upstreams() {
        let origins = origins(&[]);
        let id = origins.id(&origin("a.test", false)).unwrap();
        assert_eq!(origins.id(&origin("a.test", false)), Some(id));
        assert_ne!(origins.id(&origin("a.test", true)), Some(id));
        assert_ne!(origins.id(&origin("b.test", false)), Some(id));
        assert!(id.0 >= FIRST);
        for n in 3..MOST {
            assert!(origins.id(&origin(&format!("{n}.test"), false)).is_some(), "{n}");
        }
        assert_eq!(origins.id(&origin("one-more.test", false)), None);
        assert_eq!(origins.id(&origin("a.test", false)), Some(id));
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_private_address_is_refused_where_it_must_be_public() {
        for address in
            ["127.0.0.1", "10.0.0.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "255.255.255.255"]
        {
            let origins = origins(&[&[address], &[address]]);
            let id = origins.id(&origin("a.test", true)).unwrap();
            let error = origins.upstream(id).await.unwrap().unwrap_err();
            assert!(error.to_string().contains("a.test leads to no public address"), "{error}");
            let id = origins.id(&origin("a.test", false)).unwrap();
            assert!(origins.upstream(id).await.unwrap().is_ok());
            let id = origins.id(&origin(address, true)).unwrap();
            assert!(origins.upstream(id).await.unwrap().is_err(), "nor is it if written as such");
        }
        // Of several, only those that are public are called.
        let origins = origins(&[&["10.0.0.1", "192.0.2.1", "198.51.100.1", "8.8.8.8"]]);
        let id = origins.id(&origin("a.test", true)).unwrap();
        let upstream = origins.upstream(id).await.unwrap().unwrap();
        let endpoints = upstream.backends()[0].endpoints();
        let addresses: Vec<_> = endpoints.into_iter().map(|endpoint| endpoint.address.to_string()).collect();
        assert_eq!(addresses, ["8.8.8.8:443"]);
    }

    #[tokio::test]
    async fn addresses_that_were_found_are_kept_while_a_name_cannot_be_looked_up() {
        let origins = origins(&[&["8.8.8.8"]]);
        let id = origins.id(&origin("a.test", false)).unwrap();
        for _ in 0..3 {
            assert!(origins.upstream(id).await.unwrap().is_ok());
            tokio::task::yield_now().await;
        }
        let other = origins.id(&origin("b.test", false)).unwrap();
        let error = origins.upstream(other).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("b.test has no address: no answer"), "{error}");
        assert!(origins.upstream(UpstreamId(1)).await.is_none(), "a document's");
    }

    /// Says nothing before it is told to, and then that there is no answer; counts how often it is asked.
    #[derive(Default)]
    struct Silent {
        asked: AtomicUsize,
        fails: Notify,
    }

    #[async_trait]
    impl Lookup for Silent {
        async fn addresses(&self, _: &str, _: Family) -> Result<Found, Failed> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.fails.notified().await;
            Err(Failed::from("no answer"))
        }

        async fn services(&self, _: &str) -> Result<(Vec<Service>, Duration), Failed> {
            Err(Failed::from("there are no services here"))
        }

        fn set(&self, _: &Dns) {}
    }

    #[tokio::test]
    async fn all_who_wait_for_a_first_lookup_wait_for_one() {
        let silent = Arc::new(Silent::default());
        let origins = Origins { lookup: silent.clone(), known: Mutex::default() };
        let id = origins.id(&origin("a.test", false)).unwrap();
        // One whose time is over does not end it for the others.
        assert!(timeout(Duration::from_millis(1), origins.upstream(id)).await.is_err());
        let both = async { tokio::join!(origins.upstream(id), origins.upstream(id)) };
        let fail = async {
            tokio::task::yield_now().await;
            silent.fails.notify_one();
        };
        let ((one, other), ()) = tokio::join!(both, fail);
        for error in [one, other].map(|found| found.unwrap().unwrap_err()) {
            assert!(error.to_string().contains("a.test has no address: no answer"), "{error}");
        }
        assert_eq!(silent.asked.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn addresses_of_version_six_are_public_only_where_they_are_given_out() {
        for (text, public) in [
            ("2606:4700::1111", true),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("ff02::1", false),
            ("::ffff:10.0.0.1", false),
            ("::ffff:8.8.8.8", true),
            ("2002:a00:1::", false),
            ("64:ff9b::a00:1", false),
            ("2001:db8::1", false),
            ("2001::1", false),
        ] {
            assert_eq!(is_public(text.parse().unwrap()), public, "{text}");
        }
    }
}
