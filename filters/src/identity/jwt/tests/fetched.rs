//! Keys that are fetched: when, how often, and what happens when they cannot be.

mod cached;
mod discovery;

use std::sync::Arc;

use futures_util::future::{BoxFuture, join_all};
use tokio::sync::Semaphore;

use super::*;
use crate::identity::Identity;
use crate::world::{
    ClientError, Clock, ManualClock, MemoryMetrics, Revocation, Revoked, ScriptedClient, Tasks, UpstreamId,
};

const URI: &str = "https://id.test/keys";
const OPTIONS: &str = "algorithms: [EdDSA], jwks_uri: 'https://id.test/keys'";

/// RFC 8037 A.1 and RFC 8032 s7.1, test 2: secret and public keys.
const PAIRS: [[&str; 2]; 2] = [
    ["nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A", "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"],
    ["TM0Imyj_ltqdtsNG7BFOD1uKMZ81q6Yk2oz27U-4pvs", "PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw"],
];

/// Runs tasks on the test's own runtime.
struct Spawn;

impl Tasks for Spawn {
    fn spawn(&self, task: BoxFuture<'static, ()>, _: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }
}

/// A gateway's world, with a script for its issuer.
struct Place {
    world: World,
    client: Arc<ScriptedClient>,
    clock: Arc<ManualClock>,
    metrics: Arc<MemoryMetrics>,
}

impl Place {
    fn new() -> Self {
        let (client, clock) = (Arc::new(ScriptedClient::new()), Arc::new(ManualClock::new()));
        let metrics = Arc::new(MemoryMetrics::new());
        let world = World {
            client: client.clone(),
            metrics: metrics.clone(),
            tasks: Arc::new(Spawn),
            ..World::dry_at(clock.clone())
        };
        Self { world, client, clock, metrics }
    }

    /// The identity `corp` of these options; nothing was fetched for it yet.
    fn build(&self, options: &str) -> Arc<dyn Identity> {
        let identities: BTreeMap<Name, IdentitySpec> = yaml(&format!("{{corp: {{type: jwt, {options}}}}}"));
        let site = Site { world: &self.world, surroundings: &Alone };
        let (built, errors) = build(&identities, &[], &site);
        assert!(errors.is_empty(), "{errors:?}");
        built.get("corp").expect("an identity").clone()
    }

    /// As [`build`](Self::build), once it has tried to fetch its keys.
    async fn corp(&self, options: &str) -> Arc<dyn Identity> {
        let before = self.fetches();
        let corp = self.build(options);
        self.fetched(before + 1).await;
        corp
    }

    fn answer(&self, keys: &[Value]) {
        self.answer_with(&[], &json!({"keys": keys}));
    }

    fn answer_with(&self, fields: &[(&str, &str)], body: &Value) {
        self.client.reply(200, fields, [body.to_string().as_bytes()]);
    }

    fn fetches(&self) -> i64 {
        let count = |outcome| {
            let labels = [("identity", "corp"), ("outcome", outcome)];
            self.metrics.value("tollhouse_identity_key_fetches_total", &labels).unwrap_or_default()
        };
        count("fetched") + count("failed")
    }

    /// Lets tasks run until so many fetches have ended.
    async fn fetched(&self, fetches: i64) {
        for _ in 0..1000 {
            if self.fetches() >= fetches {
                // Tasks wait for what comes next.
                return self.moves_on(0).await;
            }
            tokio::task::yield_now().await;
        }
        panic!("{} fetches instead of {fetches}", self.fetches());
    }

    async fn moves_on(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    async fn ask(&self, corp: &Arc<dyn Identity>, token: &str) -> Result<String, String> {
        let (mut request, ctx) = request("GET", "/");
        request.append_header("authorization", format!("Bearer {token}")).expect("a valid field");
        match corp.check(&request, &ctx, self.clock.wall()).await {
            Presented::Valid(verified) => Ok(verified.principal.subject.clone()),
            Presented::Refused(refusal) => Err(refusal.reason.to_owned()),
            Presented::Unknown(why) => Err(format!("503 {} in {}s", why.reason, why.retry_after)),
            Presented::Nothing => Err("nothing".to_owned()),
        }
    }
}

fn key(pair: usize, id: &str) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": PAIRS[pair][1]})
}

/// A token of `alice`, for an hour, with this header besides `alg`.
fn token(pair: usize, header: Value) -> String {
    claiming(pair, header, &json!({"sub": "alice", "jti": "1", "exp": NOW + 3600}))
}

fn claiming(pair: usize, mut header: Value, claims: &Value) -> String {
    header["alg"] = "EdDSA".into();
    let message = format!("{}.{}", part(&header), part(claims));
    // RFC 8410 s7.
    let begin = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";
    let seed = URL_SAFE_NO_PAD.decode(PAIRS[pair][0]).expect("base64url");
    let key = EncodingKey::from_ed_der(&[&begin[..], &seed].concat());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).expect("signed");
    format!("{message}.{signature}")
}

fn named(pair: usize, id: &str) -> String {
    token(pair, json!({"kid": id}))
}

#[tokio::test]
async fn keys_are_fetched_before_they_are_needed() {
    let place = Place::new();
    place.answer(&[key(0, "a")]);
    let corp = place.corp(OPTIONS).await;
    assert_eq!(place.ask(&corp, &named(0, "a")).await, Ok("alice".to_owned()));
    assert_eq!(place.ask(&corp, &named(1, "a")).await, Err("the signature of the token is wrong".to_owned()));
    let sent = place.client.requests();
    assert_eq!(sent.len(), 1);
    let head = &sent[0].head;
    assert_eq!((head.method.as_str(), head.uri.to_string()), ("GET", "/keys".to_owned()));
    assert_eq!(head.headers["host"], "id.test");
    assert_eq!((sent[0].upstream, sent[0].timeout), (UpstreamId(1000), Some(Duration::from_secs(5))));
    let origin = &place.client.origins()[0];
    assert_eq!((origin.tls, &*origin.host, origin.port, origin.public_only), (true, "id.test", 443, false));
    let state = corp.state().keys.expect("fetched");
    assert_eq!((state.from.as_str(), state.count, state.failing), (URI, 1, None));
    assert_eq!(state.fetched, Some(at(NOW)));
}

#[tokio::test]
async fn an_upstream_of_the_document_can_be_called_instead() {
    let place = Place::new();
    place.answer(&[key(0, "a")]);
    let corp = place.corp("algorithms: [EdDSA], jwks_uri: 'http://id.test/keys', upstream: main").await;
    assert!(place.ask(&corp, &named(0, "a")).await.is_ok());
    assert_eq!(place.client.requests()[0].upstream, UpstreamId(0));
    assert!(place.client.origins().is_empty());
}

#[tokio::test]
async fn before_any_keys_were_fetched_nobody_can_tell_whether_a_token_holds() {
    let place = Place::new();
    place.client.fail(ClientError::Timeout);
    place.client.reply(500, &[], []);
    place.client.reply(302, &[("location", "https://evil.test/keys")], []);
    place.answer(&[key(0, "a")]);
    let corp = place.corp(OPTIONS).await;
    // Who asks first has it tried again, and nobody after for five seconds.
    let cannot = "503 the keys of the identity cannot be fetched in 2s".to_owned();
    for _ in 0..3 {
        assert_eq!(place.ask(&corp, &named(0, "a")).await, Err(cannot.clone()));
    }
    assert_eq!(place.fetches(), 2);
    let (error, _) = corp.state().keys.and_then(|keys| keys.failing).expect("failing");
    assert_eq!(error, "https://id.test/keys: the answer is 500");
    place.moves_on(2).await;
    let (error, since) = corp.state().keys.and_then(|keys| keys.failing).expect("failing");
    assert_eq!(error, "https://id.test/keys: the answer is 302, and redirects are not followed");
    assert_eq!(since, at(NOW));
    place.moves_on(4).await;
    assert_eq!(place.ask(&corp, &named(0, "a")).await, Ok("alice".to_owned()));
    assert_eq!((place.fetches(), corp.state().keys.and_then(|keys| keys.failing)), (4, None));
    assert_eq!(place.client.requests().len(), 4, "the redirect was not followed");
}

#[tokio::test]
async fn malformed_tokens_are_refused_even_so() {
    let place = Place::new();
    place.client.fail(ClientError::Timeout);
    let corp = place.corp(OPTIONS).await;
    assert_eq!(place.ask(&corp, "a.b").await, Err("the token is malformed".to_owned()));
    let other = hs256(&json!({"exp": NOW + 60}));
    assert_eq!(place.ask(&corp, &other).await, Err("the algorithm of the token is not allowed".to_owned()));
    assert_eq!(place.fetches(), 1);
}

#[tokio::test]
async fn a_token_of_a_new_key_has_the_keys_fetched_once_however_many_come() {
    let place = Place::new();
    place.answer(&[key(0, "a")]);
    let corp = place.corp(OPTIONS).await;
    place.answer(&[key(0, "a"), key(1, "b")]);
    let token = named(1, "b");
    let answers = join_all((0..50).map(|_| place.ask(&corp, &token))).await;
    assert!(answers.iter().all(|answer| *answer == Ok("alice".to_owned())), "{answers:?}");
    assert_eq!(place.fetches(), 2);
}

#[tokio::test]
async fn tokens_that_name_keys_at_random_cannot_have_them_fetched_again_and_again() {
    let place = Place::new();
    for _ in 0..4 {
        place.answer(&[key(0, "a")]);
    }
    let corp = place.corp(OPTIONS).await;
    let unknown = Err("no key is known that could verify the token".to_owned());
    for _ in 0..20 {
        assert_eq!(place.ask(&corp, &named(1, "x")).await, unknown);
        assert_eq!(place.ask(&corp, &named(0, "a")).await, Ok("alice".to_owned()));
    }
    assert_eq!(place.fetches(), 2);
    // Others wait until they can be looked for, all together.
    let tokens: Vec<String> = (0..300).map(|n| named(1, &n.to_string())).collect();
    let mut asked: Vec<_> = tokens.iter().map(|token| Box::pin(place.ask(&corp, token))).collect();
    let told: Vec<_> = asked.iter_mut().filter_map(|ask| ask.now_or_never()).collect();
    let many = "503 too many requests wait for keys of the identity in".to_owned();
    assert!(
        told.len() == 44 && told.iter().all(|told| told.as_ref().is_err_and(|why| why.starts_with(&many))),
        "{told:?}"
    );
    place.moves_on(5).await;
    assert!(join_all(asked.drain(..256)).await.iter().all(|told| *told == unknown));
    assert_eq!(place.fetches(), 3);
    // The key that a token names has said that it is wrong.
    place.moves_on(5).await;
    place.ask(&corp, &named(1, "a")).await.expect_err("refused");
    assert_eq!(place.fetches(), 3);
    assert_eq!(place.ask(&corp, &named(1, "x")).await, unknown);
    assert_eq!(place.fetches(), 4);
}

#[tokio::test]
async fn a_key_that_is_new_just_after_others_were_looked_for_is_waited_for() {
    let place = Place::new();
    for _ in 0..2 {
        place.answer(&[key(0, "a")]);
    }
    let corp = place.corp(OPTIONS).await;
    place.ask(&corp, &named(1, "x")).await.expect_err("no such key");
    place.answer(&[key(1, "b")]);
    let (token, clock) = (named(1, "b"), place.clock.clone());
    let asked = place.ask(&corp, &token);
    let later = async {
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(5));
    };
    let (told, ()) = futures_util::future::join(asked, later).await;
    assert_eq!(told, Ok("alice".to_owned()));
}

#[tokio::test]
async fn a_fetch_that_is_under_way_is_enough_if_it_brings_the_key() {
    let (mut place, gate) = (Place::new(), Arc::new(Semaphore::new(1)));
    place.world.client = Arc::new(Slow(place.client.clone(), gate.clone()));
    place.answer(&[key(0, "a")]);
    let corp = place.corp(OPTIONS).await;
    place.answer(&[key(0, "a"), key(1, "b")]);
    let token = named(1, "b");
    let mut first = Box::pin(place.ask(&corp, &token));
    assert!((&mut first).now_or_never().is_none());
    place.moves_on(0).await;
    assert_eq!(place.client.requests().len(), 2, "the fetch is under way");
    let second = place.ask(&corp, &token);
    let opened = async {
        tokio::task::yield_now().await;
        gate.add_permits(1);
    };
    let (first, second, ()) = futures_util::future::join3(first, second, opened).await;
    assert_eq!((first, second), (Ok("alice".to_owned()), Ok("alice".to_owned())));
    assert_eq!(place.fetches(), 2);
}

#[tokio::test]
async fn the_last_good_keys_are_kept_through_an_outage() {
    let place = Place::new();
    place.answer_with(&[("cache-control", "public, max-age=100")], &json!({"keys": [key(0, "a")]}));
    let corp = place.corp(OPTIONS).await;
    for second in 0..61 {
        place.client.fail(ClientError::Connect("refused".to_owned()));
        place.moves_on(60).await;
        let alice = place.ask(&corp, &named(0, "a")).await;
        assert_eq!(alice.is_ok(), second < 60, "{second}: {alice:?}, until its end");
    }
    let other = claiming(1, json!({"kid": "b"}), &json!({"exp": NOW + 9999}));
    let unknown = place.ask(&corp, &other).await.expect_err("no key");
    assert!(unknown.starts_with("503 the keys of the identity cannot be fetched"), "{unknown}");
}

#[tokio::test]
async fn keys_are_fetched_again_before_they_end() {
    for (fields, options, earliest, latest) in [
        (vec![("cache-control", "max-age=1000")], "", 700, 800),
        (vec![("cache-control", "public"), ("cache-control", "MAX-AGE=\"1000\"")], "", 700, 800),
        (vec![("cache-control", "no-store")], "", 42, 48),
        (vec![("cache-control", "max-age=1")], "", 42, 48),
        (vec![("cache-control", "max-age=99999999999")], "", 60_480, 69_120),
        (vec![("cache-control", "max-age=nonsense")], "", 420, 480),
        (vec![], "", 420, 480),
        (vec![], ", refresh: 20s", 14, 16),
    ] {
        let place = Place::new();
        place.answer_with(&fields, &json!({"keys": [key(0, "a")]}));
        place.answer(&[key(1, "b")]);
        let corp = place.corp(&format!("{OPTIONS}{options}")).await;
        let next = corp.state().keys.and_then(|keys| keys.next).expect("a time");
        let pause = next.duration_since(at(NOW)).expect("later").as_secs();
        assert!((earliest..=latest).contains(&pause), "{fields:?}: {pause}");
        place.moves_on(earliest - 1).await;
        assert_eq!(place.fetches(), 1);
        place.moves_on(latest + 2 - earliest).await;
        assert_eq!(place.fetches(), 2, "{fields:?}");
    }
}

#[tokio::test]
async fn a_key_that_left_the_set_verifies_nothing_any_more() {
    let place = Place::new();
    place.answer(&[key(0, "a"), key(1, "b")]);
    place.answer(&[key(1, "b")]);
    let corp = place.corp(OPTIONS).await;
    for _ in 0..2 {
        assert!(place.ask(&corp, &named(0, "a")).await.is_ok(), "it is remembered");
    }
    place.moves_on(481).await;
    assert_eq!(place.fetches(), 2);
    place.answer(&[key(1, "b")]);
    let told = place.ask(&corp, &named(0, "a")).await;
    assert_eq!(told, Err("no key is known that could verify the token".to_owned()));
    assert!(place.ask(&corp, &named(1, "b")).await.is_ok());
}

#[tokio::test]
async fn a_document_of_the_same_shape_goes_on_with_the_keys_and_another_one_fetches_its_own() {
    let place = Place::new();
    place.answer(&[key(0, "a")]);
    let before = place.corp(OPTIONS).await;
    let after = place.build(&format!("{OPTIONS}, audiences: [api]"));
    assert_eq!(place.ask(&after, &named(0, "a")).await, Err("the token is for another audience".to_owned()));
    drop(before);
    place.moves_on(1).await;
    assert_eq!(place.fetches(), 1);
    place.answer(&[key(1, "b")]);
    let other = place.corp("algorithms: [EdDSA], jwks_uri: 'https://id.test/other'").await;
    assert!(place.ask(&other, &named(1, "b")).await.is_ok());
    drop((after, other));
    place.moves_on(9999).await;
    assert_eq!(place.client.requests().len(), 2, "keys that nobody holds are not fetched");
}

#[tokio::test]
async fn a_set_that_cannot_be_used_is_no_set() {
    let secret = json!({"kty": "oct", "kid": "a", "k": URL_SAFE_NO_PAD.encode(SECRET)});
    let many: Vec<Value> = (0..33).map(|n| key(0, &n.to_string())).collect();
    for (body, told) in [
        ("[]".to_owned(), "the answer is no JSON object"),
        ("{\"keys\":[],\"keys\":[]}".to_owned(), "the answer is no JSON object"),
        ("<html>".to_owned(), "the answer is no JSON object"),
        ("{}".to_owned(), "the answer is no set of keys"),
        (json!({"keys": {"a": 1}}).to_string(), "the answer is no set of keys"),
        (json!({"keys": []}).to_string(), "the set has no key that these algorithms"),
        (json!({"keys": [secret]}).to_string(), "the set has no key that these algorithms"),
        (
            json!({"keys": [1, null, "x", {"kty": "OKP", "crv": "Ed25519", "x": "AQAB"}]}).to_string(),
            "the set has no key",
        ),
        (json!({"keys": many}).to_string(), "the set has more than 32 keys"),
        ("x".repeat(256 * 1024 + 1), "the reply's body exceeds 262144 bytes"),
    ] {
        let place = Place::new();
        place.client.reply(200, &[], [body.as_bytes()]);
        let corp = place.corp("algorithms: [EdDSA, HS256], jwks_uri: 'https://id.test/keys'").await;
        let (error, _) = corp.state().keys.and_then(|keys| keys.failing).expect("failing");
        assert!(error.contains(told), "{error}");
    }
}

#[tokio::test]
async fn a_secret_that_an_issuer_publishes_verifies_nothing() {
    let place = Place::new();
    let secret = json!({"kty": "oct", "kid": "s", "k": URL_SAFE_NO_PAD.encode(SECRET)});
    place.answer(&[key(0, "a"), secret.clone()]);
    place.answer(&[key(0, "a"), secret]);
    let corp = place.corp("algorithms: [EdDSA, HS256], jwks_uri: 'https://id.test/keys'").await;
    let header = json!({"alg": "HS256", "kid": "s"});
    let forged = signed(&header, &json!({"exp": NOW + 60}).to_string(), SECRET.as_bytes());
    assert_eq!(
        place.ask(&corp, &forged).await,
        Err("no key is known that could verify the token".to_owned())
    );
    // Nor is the public key a secret (RFC 8725 s2.1).
    let public = URL_SAFE_NO_PAD.decode(PAIRS[0][1]).expect("base64url");
    for secret in [&public[..], PAIRS[0][1].as_bytes(), key(0, "a").to_string().as_bytes()] {
        let header = json!({"alg": "HS256", "kid": "a"});
        let forged = signed(&header, &json!({"exp": NOW + 60}).to_string(), secret);
        place.ask(&corp, &forged).await.expect_err("refused");
    }
    assert!(place.ask(&corp, &named(0, "a")).await.is_ok());
}

/// RFC 7515 s4.1.2 to s4.1.6: what a token says of where its key is.
#[tokio::test]
async fn no_token_makes_the_gateway_call_a_place_that_it_names() {
    let place = Place::new();
    for _ in 0..20 {
        place.answer(&[key(0, "a")]);
    }
    let corp = place.corp(OPTIONS).await;
    let own = json!({"kty": "OKP", "crv": "Ed25519", "x": PAIRS[1][1]});
    let evil = "https://evil.test/keys";
    for header in [
        json!({"kid": "a", "jku": evil}),
        json!({"kid": "a", "x5u": evil}),
        json!({"kid": "a", "jwk": own}),
        json!({"kid": "a", "x5c": [STANDARD.encode(PAIRS[1][1])]}),
        json!({"kid": evil, "jku": evil}),
        json!({"kid": "../../../dev/null"}),
        json!({"kid": "a\u{0}"}),
        json!({"kid": "' UNION SELECT 'a' --"}),
        json!({"kid": "", "jku": "http://169.254.169.254/latest/meta-data"}),
        json!({"jku": evil, "x5u": evil, "jwk": own}),
        json!({"x5t": "a", "x5t#S256": "a"}),
    ] {
        place.moves_on(5).await;
        let told = place.ask(&corp, &token(1, header.clone())).await.expect_err("refused");
        assert!(told.starts_with("the signature") || told.starts_with("no key is known"), "{header}: {told}");
    }
    for sent in place.client.requests() {
        assert_eq!((sent.upstream, sent.head.uri.path()), (UpstreamId(1000), "/keys"));
    }
    assert_eq!(place.client.origins().len(), 1);
    // With the right key none of that matters.
    assert!(place.ask(&corp, &token(0, json!({"kid": "a", "jku": evil}))).await.is_ok());
}

#[tokio::test]
async fn keys_of_the_document_serve_until_others_were_fetched_and_in_dry_runs() {
    let options = format!("{OPTIONS}, jwks: {{keys: [{}]}}", key(0, "a"));
    let place = Place::new();
    place.client.fail(ClientError::Timeout);
    place.answer(&[key(1, "b")]);
    let corp = place.corp(&options).await;
    assert!(place.ask(&corp, &named(0, "a")).await.is_ok());
    place.moves_on(2).await;
    assert!(place.ask(&corp, &named(0, "a")).await.is_err());
    assert!(place.ask(&corp, &named(1, "b")).await.is_ok());

    let dry = Place { world: World::dry_at(place.clock.clone()), ..Place::new() };
    let corp = dry.build(&options);
    assert!(place.ask(&corp, &named(0, "a")).await.is_ok());
    let told = place.ask(&corp, &named(1, "b")).await;
    assert_eq!(told, Err("no key is known that could verify the token".to_owned()));
    let without = dry.build(OPTIONS);
    let never = "503 the keys of the identity were never fetched in 1s".to_owned();
    assert_eq!(place.ask(&without, &named(0, "a")).await, Err(never));
}
