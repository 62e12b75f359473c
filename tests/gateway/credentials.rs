//! Passwords, certificates and signed requests, over sockets.

use std::net::SocketAddr;
use std::time::SystemTime;

use aws_lc_rs::hmac;
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio::net::{TcpSocket, TcpStream};

use crate::harness::{
    Authority, Broken, Client, Gateway, H2c, Kind, Origin, Redis, Wire, get, h2_over, request, soon,
};

const SECRET: &str = "a secret of thirty-two bytes, or so";
/// Of `correct horse`, by the argon2 tool with `-id -k 19456 -t 2 -p 1`.
const CORRECT_HORSE: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$NGRiZTBiNWFjMTJjNWE0ZkhBU0gx$ItsjKf+jJMNAzkwbbTBNZgYvI6cq/LX+MQJCp/85nmM";
/// Of `battery staple`, in the same way.
const BATTERY_STAPLE: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$NGRiZTBiNWFjMTJjNWE0ZkhBU0gy$7oZqDIBLiGkopFO55N02wY6xBbQ5UaUPKY0H8bIVOTY";

/// One open route, and one for each way; whatever `identities` has besides goes in there.
fn document(origin: &Origin, basic: &str, hmac: &str) -> String {
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]
identities:
  people: {{type: basic, hide: true{basic}}}
  signed: {{type: hmac{hmac}}}
  machines: {{type: mtls}}
consumers:
  - {{name: alice, credentials: [{{type: basic, id: alice, hash: '{CORRECT_HORSE}'}}]}}
  - {{name: bob, credentials: [{{type: basic, id: bob, hash: '{BATTERY_STAPLE}'}}]}}
  - {{name: acme, credentials: [{{type: hmac, id: k1, secret: '{SECRET}'}}, {{type: mtls, id: m, uri: 'spiffe://test/acme'}}]}}
routes:
  - {{name: open, match: {{paths: [/open]}}, upstream: origin}}
  - name: people
    match: {{paths: [/people/*]}}
    filters: [{{authenticate: {{any_of: [people], consumer_header: x-consumer}}}}]
    upstream: origin
  - name: signed
    match: {{paths: [/signed/*]}}
    filters: [{{authenticate: {{any_of: [signed], consumer_header: x-consumer}}}}]
    upstream: origin
  - name: machines
    match: {{paths: [/machines/*]}}
    filters: [{{authenticate: {{any_of: [machines], consumer_header: x-consumer, forward: {{x-serial: serial}}}}}}]
    upstream: origin
",
        origin.address
    )
}

/// RFC 4648 s4.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits =
            three.iter().fold(0u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for at in 0..4 {
            let digit = char::from(DIGITS[(bits >> (18 - 6 * at)) as usize & 63]);
            text.push(if at <= three.len() { digit } else { '=' });
        }
    }
    text
}

fn basic(user: &str, password: &str) -> String {
    format!("Authorization: Basic {}\r\n", base64(format!("{user}:{password}").as_bytes()))
}

#[tokio::test]
async fn a_user_with_the_right_password_passes_and_the_password_stays_here() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, "", "")).await;
    let answer = get(gateway.address(), "/people/a").await;
    assert_eq!((answer.status, answer.problem().as_str()), (401, "unauthorized"));
    assert_eq!(answer.field("www-authenticate"), Some("Basic realm=\"people\", charset=\"UTF-8\""));
    // The first is hashed, the second one is known.
    for path in ["/people/1", "/people/2"] {
        assert_eq!(
            request(gateway.address(), &format!("GET {path}"), &basic("alice", "correct horse")).await.status,
            200
        );
        let head = origin.heads().last().expect("a head").clone();
        assert_eq!((head.field("x-consumer"), head.field("authorization")), (Some("alice"), None));
    }
    for (user, password) in
        [("alice", "battery staple"), ("bob", "correct horse"), ("alice", ""), ("carol", "correct horse")]
    {
        let answer = request(gateway.address(), "GET /people/a", &basic(user, password)).await;
        assert_eq!(answer.status, 401, "{user}:{password}");
        assert!(answer.text().contains("the user name or the password is wrong"), "{answer:?}");
    }
    let twice = format!("{0}{0}", basic("alice", "correct horse"));
    assert_eq!(request(gateway.address(), "GET /people/a", &twice).await.status, 400);
    let fields =
        [("authorization", basic("bob", "battery staple")["Authorization: ".len()..].trim().to_owned())];
    let mut call = http::Request::get("http://a.test/people/h2");
    for (name, value) in &fields {
        call = call.header(*name, value);
    }
    let answer = H2c::connect(gateway.address()).await.send(call.body(()).expect("valid"), b"").await;
    assert_eq!(answer.expect("an answer").status, 200);
    assert_eq!(origin.heads().len(), 3);
    let shown = format!("{}{}", gateway.log_text(), gateway.stderr().join("\n"));
    assert!(!shown.contains("correct horse") && !shown.contains(&base64(b"alice:correct horse")), "{shown}");
}

async fn from(source: &str, address: SocketAddr) -> Wire {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(format!("{source}:0").parse().expect("an address")).expect("bound");
    let stream: TcpStream = soon("a connection", socket.connect(address)).await.expect("connected");
    Wire::new(stream)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_wrong_passwords_keeps_nobody_else_out() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, ", parallel: 1, queue: 15", "")).await;
    let address = gateway.address();
    assert_eq!(request(address, "GET /people/known", &basic("alice", "correct horse")).await.status, 200);
    let (told, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let flood: Vec<_> = (0..16)
        .map(|client| {
            let told = told.clone();
            tokio::spawn(async move {
                let mut wire = from("127.0.0.2", address).await;
                for guess in 0.. {
                    let fields = basic("alice", &format!("guess {client} {guess}"));
                    wire.send(format!("GET /people/x HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await;
                    let answer = wire.answer().await.expect("an answer");
                    if answer.status == 503 {
                        assert_eq!(
                            (answer.problem().as_str(), answer.field("retry-after")),
                            ("filter-unavailable", Some("1"))
                        );
                    } else {
                        assert_eq!(answer.status, 401);
                    }
                    if told.send(answer.status).is_err() {
                        return;
                    }
                }
            })
        })
        .collect();
    let mut counts = std::collections::BTreeMap::<u16, u32>::new();
    // Until both kinds of answers were seen, and meanwhile.
    while counts.len() < 2 {
        *counts.entry(soon("an answer", seen.recv()).await.expect("the flood goes on")).or_default() += 1;
    }
    for turn in 0..20 {
        assert_eq!(get(address, "/open").await.status, 200);
        assert_eq!(request(address, "GET /people/known", &basic("alice", "correct horse")).await.status, 200);
        let wrong = request(address, "GET /people/x", &basic("bob", &format!("wrong {turn}"))).await;
        assert_eq!(wrong.status, 401, "another client's password is looked at");
    }
    assert_eq!(request(address, "GET /people/new", &basic("bob", "battery staple")).await.status, 200);
    drop(seen);
    for client in flood {
        client.await.expect("no flood went wrong");
    }
}

#[tokio::test]
async fn certificates_of_clients_say_who_calls() {
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let folder = TempDir::new().expect("a folder");
    servers.write(folder.path(), "a", &["a.test"], Kind::Ecdsa);
    std::fs::write(folder.path().join("clients.pem"), &clients.pem).expect("written");
    let tls = "{certificates: [{cert: a.pem, key: a.key}], client_auth: {mode: optional, ca: clients.pem}}";
    let listener = format!("{{name: plain, address: \"127.0.0.1:0\", tls: {tls}}}");
    let origin = Origin::echo().await;
    let gateway = Gateway::within(folder, &listener, &document(&origin, "", "")).await;
    let client = |pair: Option<&(String, String)>, protocols: &[&str]| {
        Client::with(&servers, rustls::ALL_VERSIONS, pair, protocols)
    };
    let acme = clients.sign_client("acme", 0x2a);
    let known = client(Some(&acme), &[]);
    // The second connection goes on with the first one's session.
    for turn in 0..2 {
        let mut wire = known.connect(gateway.address(), "a.test").await.expect("a handshake");
        let answer = wire.ask("a.test", "/machines/a").await.expect("an answer");
        assert_eq!(answer.status, 200, "{turn}");
        let head = origin.heads().last().expect("a head").clone();
        assert_eq!((head.field("x-consumer"), head.field("x-serial")), (Some("acme"), Some("2a")));
    }
    let stranger = clients.sign_client("stranger", 7);
    for (pair, told) in
        [(Some(&stranger), "no consumer has the certificate"), (None, "no credentials were given")]
    {
        let mut wire = client(pair, &[]).connect(gateway.address(), "a.test").await.expect("a handshake");
        let answer = wire.ask("a.test", "/machines/a").await.expect("an answer");
        assert_eq!(answer.status, 401);
        assert_eq!(answer.field("www-authenticate"), Some("ClientCertificate realm=\"machines\""));
        assert!(answer.text().contains(told), "{answer:?}");
        assert_eq!(wire.ask("a.test", "/open").await.expect("an answer").status, 200);
    }
    // Another authority's certificate of the same name opens no connection, or none that is answered.
    let forged = Authority::new("clients").sign_client("acme", 0x2a);
    if let Ok(mut wire) = client(Some(&forged), &[]).connect(gateway.address(), "a.test").await {
        match wire.ask("a.test", "/machines/a").await {
            Ok(answer) => assert_eq!(answer.status, 401),
            Err(broken) => assert_eq!(broken, Broken::Nothing),
        }
    }
    let wire = client(Some(&acme), &["h2"]).connect(gateway.address(), "a.test").await.expect("a handshake");
    let call = http::Request::get("https://a.test/machines/h2").body(()).expect("valid");
    let answer = h2_over(wire.into_stream()).await.send(call, b"").await.expect("an answer");
    assert_eq!(answer.status, 200);
    let line = gateway.log_line(|line| line["path"] == "/machines/h2").await;
    assert_eq!((&line["consumer"], &line["identity"]), (&"acme".into(), &"machines".into()));
}

/// A signed request: what is sent, and what was signed.
struct Signed {
    method: &'static str,
    target: &'static str,
    created: i64,
    nonce: Option<&'static str>,
    body: &'static [u8],
}

const GET: Signed = Signed { method: "GET", target: "/signed/a?b=1", created: 0, nonce: None, body: b"" };
const POST: Signed = Signed { method: "POST", body: b"{\"hello\": \"world\"}", ..GET };

fn mac(base: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    base64(hmac::sign(&key, base.as_bytes()).as_ref())
}

fn digest(body: &[u8]) -> String {
    base64(Sha256::digest(body).as_slice())
}

impl Signed {
    fn created(&self) -> i64 {
        let now = SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs();
        i64::try_from(now).expect("a time") + self.created
    }

    /// The fields of a message signature (RFC 9421).
    fn message(&self) -> Vec<(&'static str, String)> {
        let (path, query) = self.target.split_once('?').unwrap_or((self.target, ""));
        let digest = format!("sha-256=:{}:", digest(self.body));
        let mut names = String::from("\"@method\" \"@authority\" \"@path\" \"@query\" \"x-tenant\"");
        let mut lines = format!(
            "\"@method\": {}\n\"@authority\": a.test\n\"@path\": {path}\n\"@query\": ?{query}\n\"x-tenant\": acme\n",
            self.method
        );
        let mut fields = vec![("x-tenant", "acme".to_owned())];
        if !self.body.is_empty() {
            names.push_str(" \"content-digest\"");
            lines.push_str(&format!("\"content-digest\": {digest}\n"));
            fields.push(("content-digest", digest));
        }
        let nonce = self.nonce.map(|nonce| format!(";nonce=\"{nonce}\"")).unwrap_or_default();
        let input = format!("({names});created={};keyid=\"k1\"{nonce}", self.created());
        let signature = mac(&format!("{lines}\"@signature-params\": {input}"));
        fields.push(("signature-input", format!("sig={input}")));
        fields.push(("signature", format!("sig=:{signature}:")));
        fields
    }

    /// The field of the simple form.
    fn plain(&self) -> Vec<(&'static str, String)> {
        let digest = if self.body.is_empty() { String::new() } else { digest(self.body) };
        let (created, nonce) = (self.created(), self.nonce.unwrap_or_default());
        let base =
            format!("HMAC-SHA256\n{}\na.test\n{}\n{created}\n{nonce}\n{digest}", self.method, self.target);
        let part = |name: &str, value: &str| match value {
            "" => String::new(),
            value => format!("{name}=\"{value}\", "),
        };
        let (nonce, digest, signature) = (part("nonce", nonce), part("digest", &digest), mac(&base));
        let value = format!("HMAC id=k1, created={created}, {nonce}{digest}signature=\"{signature}\"");
        vec![("authorization", value)]
    }

    /// Both forms.
    fn forms(&self) -> [Vec<(&'static str, String)>; 2] {
        [self.message(), self.plain()]
    }

    /// Sends it with these fields over HTTP/1.1, with a length.
    async fn send(
        &self,
        gateway: &Gateway,
        fields: &[(&'static str, String)],
        body: &[u8],
    ) -> crate::harness::Answer {
        let length = match body {
            [] => String::new(),
            body => format!("Content-Length: {}\r\n", body.len()),
        };
        let mut wire = Wire::connect(gateway.address()).await;
        wire.send(format!(
            "{} {} HTTP/1.1\r\nHost: A.test\r\n{}{length}\r\n",
            self.method,
            self.target,
            lines(fields)
        ))
        .await;
        wire.send(body).await;
        wire.answer_to(self.method).await.expect("an answer")
    }
}

fn lines(fields: &[(&'static str, String)]) -> String {
    fields.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect()
}

#[tokio::test]
async fn a_signed_request_passes_with_its_body_over_all_framings() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, "", "")).await;
    for fields in GET.forms() {
        assert_eq!(GET.send(&gateway, &fields, b"").await.status, 200);
        assert_eq!(origin.heads().last().expect("a head").field("x-consumer"), Some("acme"));
    }
    for fields in POST.forms() {
        let answer = POST.send(&gateway, &fields, POST.body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.text().ends_with("{\"hello\": \"world\"}"), "{answer:?}");
        let mut wire = Wire::connect(gateway.address()).await;
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: a.test\r\n{}Transfer-Encoding: chunked\r\n\r\n",
            POST.target,
            lines(&fields)
        );
        wire.send(format!("{head}8\r\n{{\"hello\"\r\na\r\n: \"world\"}}\r\n0\r\n\r\n")).await;
        let answer = wire.answer().await.expect("an answer");
        assert_eq!(answer.status, 200, "{answer:?}");
        let mut call = http::Request::post(format!("http://a.test{}", POST.target));
        for (name, value) in &fields {
            call = call.header(*name, value);
        }
        let call = call.body(()).expect("valid");
        let client = H2c::connect(gateway.address()).await;
        assert_eq!(client.send(call, POST.body).await.expect("an answer").status, 200);
    }
    let mut call = http::Request::get(format!("http://a.test{}", GET.target));
    for (name, value) in GET.message() {
        call = call.header(name, value);
    }
    let answer = H2c::connect(gateway.address()).await.send(call.body(()).expect("valid"), b"").await;
    assert_eq!(answer.expect("an answer").status, 200);
    assert_eq!(origin.heads().len(), 9);
}

#[tokio::test]
async fn a_signature_is_of_the_path_that_was_sent_with_its_version() {
    let origin = Origin::echo().await;
    let service = "services:
  - {name: api, upstream: origin, versioning: {from: [path], default: '2'}, versions: {'1': {}, '2': {}}}
routes:
";
    let filters = "filters: [{authenticate: {any_of: [signed], consumer_header: x-consumer}}]\n";
    let text = document(&origin, "", "").replace("routes:\n", service);
    let text = text.replace(&format!("{filters}    upstream: origin"), &format!("{filters}    service: api"));
    let gateway = Gateway::start(&text).await;
    let request = Signed { target: "/v2/signed/a?b=1", ..GET };
    let other = Signed { target: "/v1/signed/a?b=1", ..GET };
    for fields in request.forms() {
        assert_eq!(request.send(&gateway, &fields, b"").await.status, 200);
        assert_eq!(origin.heads().last().expect("a head").target(), "/signed/a?b=1");
        assert_eq!(other.send(&gateway, &fields, b"").await.status, 401, "it was signed for another version");
    }
}

#[tokio::test]
async fn a_body_that_was_not_signed_never_reaches_the_upstream() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, "", ", max_body: 64KiB")).await;
    let changed = b"{\"hello\": \"World\"}";
    for fields in POST.forms() {
        let answer = POST.send(&gateway, &fields, changed).await;
        assert_eq!((answer.status, answer.problem().as_str()), (401, "unauthorized"));
        assert!(answer.text().contains("the body is not the one that was signed"), "{answer:?}");
        assert_eq!(answer.head.all("www-authenticate").len(), 1);
        assert_eq!(POST.send(&gateway, &fields, b"").await.status, 401, "nor none at all");
        assert_eq!(POST.send(&gateway, &fields, &[b'x'; 65 * 1024]).await.status, 413);
        let mut wire = Wire::connect(gateway.address()).await;
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: a.test\r\n{}Transfer-Encoding: chunked\r\n\r\n",
            POST.target,
            lines(&fields)
        );
        wire.send(format!("{head}12\r\n{}\r\n0\r\n\r\n", String::from_utf8_lossy(changed))).await;
        assert_eq!(wire.answer().await.expect("an answer").status, 401);
    }
    let unsigned = Signed { body: b"", ..POST };
    for fields in unsigned.forms() {
        assert_eq!(unsigned.send(&gateway, &fields, b"more").await.status, 401, "a body needs a digest");
        let mut call = http::Request::post(format!("http://a.test{}", POST.target));
        for (name, value) in &fields {
            call = call.header(*name, value);
        }
        let client = H2c::connect(gateway.address()).await;
        let answer = client.send(call.body(()).expect("valid"), b"more").await.expect("an answer");
        assert_eq!(answer.status, 401);
    }
    assert_eq!(origin.connections(), 0);
}

#[tokio::test]
async fn what_was_signed_for_another_request_or_time_is_refused() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(
        &origin,
        "",
        ", window: 60s, skew: 5s, components: ['@method', '@target-uri', x-tenant]",
    ))
    .await;
    let weak = GET.message();
    let answer = GET.send(&gateway, &weak, b"").await;
    assert!(answer.status == 401 && answer.text().contains("does not cover all it has to"), "{answer:?}");
    let gateway = Gateway::start(&document(&origin, "", ", window: 60s, skew: 5s")).await;
    for (created, told) in [(-600, "too old"), (600, "in the future")] {
        let other = Signed { created, ..GET };
        for fields in other.forms() {
            let answer = other.send(&gateway, &fields, b"").await;
            assert!(answer.status == 401 && answer.text().contains(told), "{answer:?}");
        }
    }
    for fields in GET.forms() {
        for other in [
            Signed { method: "DELETE", ..GET },
            Signed { target: "/signed/a?b=2", ..GET },
            Signed { target: "/signed/b?b=1", ..GET },
        ] {
            let answer = other.send(&gateway, &fields, b"").await;
            assert!(answer.status == 401 && answer.text().contains("the signature is wrong"), "{answer:?}");
        }
    }
    for tenant in [vec!["globex"], vec!["acme", "globex"], vec![]] {
        let mut fields = GET.message();
        fields.retain(|(name, _)| *name != "x-tenant");
        fields.extend(tenant.iter().map(|tenant| ("x-tenant", (*tenant).to_owned())));
        assert_eq!(GET.send(&gateway, &fields, b"").await.status, 401, "{tenant:?}");
    }
    for from in ["created=", "keyid="] {
        let mut fields = GET.message();
        let at = fields.iter().position(|(name, _)| *name == "signature-input").expect("there");
        let input = fields[at].1.clone();
        let (before, after) = input.split_once(from).expect("there");
        let value = after.split(';').next().unwrap_or_default();
        // Of a parameter that stands twice the last one counts (RFC 9651 s4.2.3.2), and is what was signed.
        fields[at].1 = format!("{before}{from}{value};{from}{after}");
        assert_eq!(GET.send(&gateway, &fields, b"").await.status, 200, "{from}");
        fields[at].1 = format!("{before}{from}{after};{from}1");
        assert_eq!(GET.send(&gateway, &fields, b"").await.status, 401, "{from}");
    }
    assert_eq!(origin.heads().len(), 2);
}

#[tokio::test]
async fn a_nonce_is_good_for_one_request() {
    let origin = Origin::echo().await;
    let gateway = Gateway::start(&document(&origin, "", ", nonce: required")).await;
    let first = Signed { nonce: Some("one"), ..GET };
    let [message, _] = first.forms();
    let [_, plain] = (Signed { nonce: Some("two"), ..GET }).forms();
    for fields in [message, plain] {
        assert_eq!(first.send(&gateway, &fields, b"").await.status, 200);
        let answer = first.send(&gateway, &fields, b"").await;
        assert!(answer.status == 401 && answer.text().contains("the nonce was used already"), "{answer:?}");
    }
    assert_eq!(GET.send(&gateway, &GET.message(), b"").await.status, 401);
    assert_eq!(origin.heads().len(), 2);
}

#[tokio::test]
async fn a_nonce_is_good_once_for_all_gateways_that_share_a_store() {
    let (origin, redis) = (Origin::echo().await, Redis::start().await);
    let store = format!("stores: {{main: {{type: redis, timeout: 1s, url: \"{}\"}}}}\n", redis.url());
    let text = format!("{store}{}", document(&origin, "", ", store: main"));
    let (one, other) = (Gateway::start(&text).await, Gateway::start(&text).await);
    let of = |nonce| Signed { nonce: Some(nonce), ..GET };
    for (signed, fields) in [(of("n1"), of("n1").message()), (of("n2"), of("n2").plain())] {
        assert_eq!(signed.send(&one, &fields, b"").await.status, 200, "{fields:?}");
        for gateway in [&one, &other] {
            assert_eq!(signed.send(gateway, &fields, b"").await.status, 401, "{fields:?}");
        }
    }
    // Nor is it under a second label, which no signature covers (RFC 9421 s2.3).
    let signed = of("n3");
    let mut fields = signed.message();
    assert_eq!(signed.send(&one, &fields, b"").await.status, 200);
    for (_, value) in fields.iter_mut().filter(|(name, _)| name.starts_with("signature")) {
        *value = format!("{value}, {}", value.replacen("sig=", "two=", 1));
    }
    assert_eq!(signed.send(&other, &fields, b"").await.status, 401, "{fields:?}");
}
