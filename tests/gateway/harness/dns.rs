//! A DNS server that says what a test tells it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::SRV;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::net::UdpSocket;
use tokio::task::{JoinHandle, JoinSet};

/// What is answered for a name.
#[derive(Clone)]
pub(crate) enum Reply {
    /// These addresses, for so many seconds.
    Addresses(Vec<IpAddr>, u32),
    /// These services, by priority, weight, port and target, for so many seconds.
    Services(Vec<(u16, u16, u16, &'static str)>, u32),
    /// SERVFAIL.
    Failure,
    /// Nothing at all.
    Silence,
}

/// A listening DNS server; it is gone when dropped. Unknown names are NXDOMAIN.
pub(crate) struct Dns {
    pub(crate) address: SocketAddr,
    zone: Arc<Mutex<BTreeMap<String, Reply>>>,
    queries: Arc<Mutex<Vec<(String, RecordType)>>>,
    delays: Arc<Mutex<Vec<(RecordType, Duration)>>>,
    task: JoinHandle<()>,
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Dns {
    pub(crate) async fn start() -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.expect("a port"));
        let address = socket.local_addr().expect("bound");
        let zone: Arc<Mutex<BTreeMap<String, Reply>>> = Arc::default();
        let queries: Arc<Mutex<Vec<(String, RecordType)>>> = Arc::default();
        let delays: Arc<Mutex<Vec<(RecordType, Duration)>>> = Arc::default();
        let (known, seen, slow) = (zone.clone(), queries.clone(), delays.clone());
        let task = tokio::spawn(async move {
            let (mut room, mut late) = ([0; 4096], JoinSet::new());
            while let Ok((length, from)) = socket.recv_from(&mut room).await {
                let query = Message::from_vec(&room[..length]).expect("a DNS query");
                let question = query.queries.first().expect("a question");
                let name = question.name().to_string().trim_end_matches('.').to_ascii_lowercase();
                seen.lock().push((name.clone(), question.query_type()));
                let reply = known.lock().get(&name).cloned();
                if let Some(answer) = answer(&query, reply) {
                    let bytes = answer.to_vec().expect("a DNS answer");
                    let its =
                        |(kind, by): &(RecordType, Duration)| (*kind == question.query_type()).then_some(*by);
                    let delay = slow.lock().iter().find_map(its).unwrap_or_default();
                    let socket = socket.clone();
                    late.spawn(async move {
                        tokio::time::sleep(delay).await;
                        let _ = socket.send_to(&bytes, from).await;
                    });
                }
            }
        });
        Self { address, zone, queries, delays, task }
    }

    /// Answers that tell records of this type come as much later from now on.
    pub(crate) fn delay(&self, kind: RecordType, by: Duration) {
        self.delays.lock().push((kind, by));
    }

    /// What is said about this name from now on.
    pub(crate) fn set(&self, name: &str, reply: Reply) {
        self.zone.lock().insert(name.to_owned(), reply);
    }

    /// This name does not exist from now on.
    pub(crate) fn remove(&self, name: &str) {
        self.zone.lock().remove(name);
    }

    /// How often the IPv4 addresses of this name were asked for.
    pub(crate) fn queries(&self, name: &str) -> usize {
        let is_same = |(asked, family): &&(String, RecordType)| asked == name && *family == RecordType::A;
        self.queries.lock().iter().filter(is_same).count()
    }

    /// The key of a document that makes the gateway ask this server.
    pub(crate) fn server(&self) -> String {
        format!("server: {{dns: {{servers: [\"{}\"]}}}}\n", self.address)
    }
}

fn answer(query: &Message, reply: Option<Reply>) -> Option<Message> {
    let question = query.queries.first()?;
    let mut answer = Message::response(query.metadata.id, OpCode::Query);
    answer.metadata.recursion_available = true;
    answer.add_query(question.clone());
    match reply {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(Reply::Failure) => answer.metadata.response_code = ResponseCode::ServFail,
        Some(Reply::Silence) => return None,
        Some(Reply::Services(services, ttl)) => {
            for (priority, weight, port, target) in services {
                let target = Name::from_utf8(target).expect("a name");
                let data = RData::SRV(SRV::new(priority, weight, port, target));
                if question.query_type() == RecordType::SRV {
                    answer.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
                }
            }
        }
        Some(Reply::Addresses(addresses, ttl)) => {
            for address in addresses {
                let data = match address {
                    IpAddr::V4(ip) => RData::A(ip.into()),
                    IpAddr::V6(ip) => RData::AAAA(ip.into()),
                };
                if data.record_type() == question.query_type() {
                    answer.add_answer(Record::from_rdata(question.name().clone(), ttl, data));
                }
            }
        }
    }
    Some(answer)
}
