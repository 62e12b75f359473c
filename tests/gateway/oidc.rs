//! Tokens of a real provider: its keys are found, followed when they change, and missed when it is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::harness::{Answer, Gateway, Oidc, Origin, Wire, request, soon, until};

/// One route for signed tokens, and one for those that their issuer is asked about.
fn document(origin: &Origin, oidc: &Oidc) -> String {
    let issuer = &oidc.issuer;
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]
identities:
  corp: {{type: jwt, algorithms: [ES256], issuer: \"{issuer}\", audiences: [api]}}
  opaque:
    type: introspection
    endpoint: \"{issuer}/token/introspection\"
    client_id: gateway
    client_secret: a secret of at least thirty-two characters
    issuer: \"{issuer}\"
    audiences: [api]
    ttl: 1s
    negative_ttl: 0s
routes:
  - name: signed
    match: {{paths: [/signed]}}
    filters: [{{authenticate: {{any_of: [corp], consumer_header: x-consumer, forward: {{x-scope: scope}}}}}}]
    upstream: origin
  - name: opaque
    match: {{paths: [/opaque]}}
    filters: [{{authenticate: {{any_of: [opaque], consumer_header: x-consumer, forward: {{x-scope: scope}}}}}}]
    upstream: origin
",
        origin.address
    )
}

async fn ask(gateway: &Gateway, path: &str, token: &str) -> Answer {
    let fields = format!("Authorization: Bearer {token}\r\n");
    request(gateway.address(), &format!("GET {path}"), &fields).await
}

/// Clients that never stop asking, each with the tokens of the moment.
struct Traffic {
    tokens: Arc<Mutex<Vec<String>>>,
    /// Requests of each client that were answered.
    counts: Vec<Arc<AtomicUsize>>,
    stop: Arc<AtomicBool>,
    clients: Vec<tokio::task::JoinHandle<()>>,
}

impl Traffic {
    fn start(gateway: &Gateway, token: String) -> Self {
        let (tokens, stop) = (Arc::new(Mutex::new(vec![token])), Arc::<AtomicBool>::default());
        let counts: Vec<Arc<AtomicUsize>> = (0..4).map(|_| Arc::default()).collect();
        let client = |count: &Arc<AtomicUsize>| {
            let (tokens, stop, count, address) =
                (tokens.clone(), stop.clone(), count.clone(), gateway.address());
            tokio::spawn(async move {
                let mut wire = Wire::connect(address).await;
                while !stop.load(Ordering::Relaxed) {
                    let token = {
                        let tokens = tokens.lock();
                        tokens[count.load(Ordering::Relaxed) % tokens.len()].clone()
                    };
                    let head =
                        format!("GET /signed HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n");
                    wire.send(head).await;
                    let answer = wire.answer().await.expect("an answer");
                    assert_eq!(answer.status, 200, "{answer:?}");
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        };
        let clients = counts.iter().map(client).collect();
        Self { tokens, counts, stop, clients }
    }

    /// Has all clients go on with these tokens; returns once each has sent all of them.
    async fn go_on_with(&self, tokens: Vec<String>) {
        let more = 2 * tokens.len() + 1;
        *self.tokens.lock() = tokens;
        let goals: Vec<usize> =
            self.counts.iter().map(|count| count.load(Ordering::Relaxed) + more).collect();
        until("every client to go on", || {
            let failed = self.clients.iter().any(tokio::task::JoinHandle::is_finished);
            let reached =
                self.counts.iter().zip(&goals).all(|(count, goal)| count.load(Ordering::Relaxed) >= *goal);
            (failed || reached).then_some(())
        })
        .await;
    }

    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for client in self.clients {
            client.await.expect("no request failed");
        }
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_change_under_traffic_without_one_request_refused() {
    let (mut oidc, origin) = (Oidc::start().await, Origin::echo().await);
    let gateway = Gateway::start(&document(&origin, &oidc)).await;
    let first = oidc.signed().await;
    assert_eq!(ask(&gateway, "/signed", &first).await.status, 200, "keys are there before it serves");
    let head = origin.head();
    assert_eq!((head.field("x-consumer"), head.field("x-scope")), (Some("corp:caller"), Some("read")));

    let traffic = Traffic::start(&gateway, first.clone());
    oidc.rotate().await;
    let second = oidc.signed().await;
    traffic.go_on_with(vec![first.clone(), second.clone()]).await;
    traffic.go_on_with(vec![second.clone()]).await;
    // So soon after the last time, requests wait for the keys.
    oidc.rotate().await;
    let third = oidc.signed().await;
    traffic.go_on_with(vec![second, third]).await;
    let requests = traffic.end().await;
    assert!(requests > 20, "{requests}");
    assert_eq!(oidc.requests("/jwks").await, 3, "once at the start and once for each new key");
    assert_eq!(oidc.requests("/.well-known/openid-configuration").await, 1);
}

#[tokio::test]
async fn without_any_keys_nobody_is_told_that_a_token_is_wrong() {
    let (mut oidc, origin) = (Oidc::start().await, Origin::echo().await);
    let token = oidc.signed().await;
    oidc.stop().await;
    let gateway = Gateway::start(&document(&origin, &oidc)).await;
    let answer = ask(&gateway, "/signed", &token).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "filter-unavailable"));
    let later: u64 = answer.field("retry-after").and_then(|text| text.parse().ok()).expect("a number");
    assert!((1..=60).contains(&later), "{later}");
    assert_eq!(ask(&gateway, "/signed", "e30.e30.e30").await.status, 401, "what is no token is none");
    oidc.resume().await;
    soon("the keys", async {
        while ask(&gateway, "/signed", &token).await.status != 200 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    gateway.says("the keys of an identity can be fetched again").await;
    assert_eq!(gateway.said("cannot fetch keys; tokens are answered 503"), 1);
    oidc.stop().await;
    for _ in 0..3 {
        assert_eq!(ask(&gateway, "/signed", &token).await.status, 200, "the last keys are kept");
    }
    assert!(origin.heads().len() >= 4);
    assert!(!gateway.stderr().join("\n").contains(&token), "no log has the token");
}

#[tokio::test]
async fn a_provider_is_asked_about_tokens_that_only_it_can_read() {
    let (mut oidc, origin) = (Oidc::start().await, Origin::echo().await);
    let gateway = Gateway::start(&document(&origin, &oidc)).await;
    let token = oidc.opaque().await;
    assert!(!token.contains('.'), "{token}");
    for _ in 0..3 {
        assert_eq!(ask(&gateway, "/opaque", &token).await.status, 200);
    }
    let head = origin.heads()[0].clone();
    assert_eq!(
        (head.field("x-consumer"), head.field("x-scope")),
        (Some("opaque:client:caller"), Some("read"))
    );
    let answer = ask(&gateway, "/opaque", "not-a-token-of-this-provider").await;
    assert_eq!(answer.status, 401);
    let challenge = answer.head.all("www-authenticate")[0].to_owned();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");

    oidc.revoke(&token).await;
    soon("the token's end, once it was asked about again", async {
        while ask(&gateway, "/opaque", &token).await.status != 401 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    let other = oidc.opaque().await;
    oidc.stop().await;
    let answer = ask(&gateway, "/opaque", &other).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "filter-unavailable"));
    assert!(answer.field("retry-after").is_some());
    oidc.resume().await;
    assert_eq!(ask(&gateway, "/opaque", &other).await.status, 200);
    let said = gateway.stderr().join("\n");
    assert!(!said.contains(&other) && !said.contains("thirty-two"), "{said}");
}
