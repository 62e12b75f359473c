//! What is asked of issuers, how often, and what becomes of their answers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::identity::consumers::Consumers;
use crate::identity::{ConsumerSpec, Identity, IdentitySpec, Presented, Site, build, index, layout};
use crate::plan::Plans;
use crate::testing::{Alone, Slow, request, yaml};
use crate::values::Name;
use crate::world::{
    ClientError, Clock, ManualClock, MemoryMetrics, Revocation, Revoked, ScriptedClient, UpstreamId, World,
};

const OPTIONS: &str =
    "endpoint: 'https://id.test/introspect?a=b', client_id: 'the gateway', client_secret: 'pa:ss%'";
/// 2026-01-01T00:00:00Z, when the clock of these tests starts.
const NOW: u64 = 1_767_225_600;

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
        let world =
            World { client: client.clone(), metrics: metrics.clone(), ..World::dry_at(clock.clone()) };
        Self { world, client, clock, metrics }
    }

    fn try_build(&self, options: &str) -> Result<Arc<dyn Identity>, String> {
        let identities: BTreeMap<Name, IdentitySpec> =
            yaml(&format!("{{opaque: {{type: introspection, {options}}}}}"));
        let consumers: Vec<ConsumerSpec> =
            yaml("[{name: acme, match: [{identity: opaque, claim: client_id, value: acme-app}]}]");
        let site = Site { world: &self.world, surroundings: &Alone };
        let layout = layout(&identities, &Plans::default());
        let (index, mut errors) = index(&layout, consumers);
        let consumers = Arc::new(Consumers::new(layout, index));
        let (built, wrong) = build(&identities, &consumers, &site);
        errors.extend(wrong);
        match errors.first() {
            Some(error) => Err(format!("{}: {}", error.path, error.message)),
            None => Ok(built.get("opaque").expect("an identity").clone()),
        }
    }

    fn build(&self, options: &str) -> Arc<dyn Identity> {
        self.try_build(&format!("{OPTIONS}{options}")).unwrap_or_else(|error| panic!("{error}"))
    }

    fn says(&self, answer: &Value) {
        self.client.reply(200, &[("content-type", "application/json")], [answer.to_string().as_bytes()]);
    }

    async fn ask(&self, opaque: &Arc<dyn Identity>, token: &str) -> Result<(String, String), String> {
        self.ask_from(1, opaque, token).await
    }

    /// As [`ask`](Self::ask), from this client.
    async fn ask_from(
        &self,
        client: u8,
        opaque: &Arc<dyn Identity>,
        token: &str,
    ) -> Result<(String, String), String> {
        let (mut request, mut ctx) = request("GET", "/");
        ctx.client.address = [192, 0, 2, client].into();
        request.append_header("authorization", format!("Bearer {token}")).expect("a valid field");
        match opaque.check(&request, &ctx, self.clock.wall()).await {
            Presented::Valid(verified) => {
                let consumer = verified.consumer.map(|consumer| consumer.name.to_string());
                Ok((verified.principal.subject.clone(), consumer.unwrap_or_default()))
            }
            Presented::Refused(refusal) => Err(refusal.reason.to_owned()),
            Presented::Unknown(why) => Err(format!("503 {}", why.reason)),
            Presented::Nothing => Err("nothing".to_owned()),
        }
    }

    fn asked(&self) -> usize {
        self.client.requests().len()
    }

    fn forward(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }
}

fn alice() -> Result<(String, String), String> {
    Ok(("alice".to_owned(), String::new()))
}

fn active(more: Value) -> Value {
    let mut answer = json!({"active": true, "sub": "alice"});
    for (name, value) in more.as_object().expect("a map") {
        answer[name] = value.clone();
    }
    answer
}

#[tokio::test]
async fn the_issuer_is_asked_as_rfc_7662_says_with_credentials_in_a_field_or_in_the_form() {
    // RFC 6749 s2.3.1: `the+gateway` and `pa%3Ass%25`, with a colon between.
    let field = "Basic dGhlK2dhdGV3YXk6cGElM0FzcyUyNQ==";
    for (options, field, form) in [
        ("", Some(field), "token=2YotnFZFEjr1zCsicMWpAA%3D%3D&token_type_hint=access_token"),
        (
            ", client_auth: post",
            None,
            "token=2YotnFZFEjr1zCsicMWpAA%3D%3D&token_type_hint=access_token&client_id=the+gateway&client_secret=pa%3Ass%25",
        ),
    ] {
        let place = Place::new();
        place.says(&active(json!({})));
        let opaque = place.build(options);
        assert_eq!(place.ask(&opaque, "2YotnFZFEjr1zCsicMWpAA==").await, alice());
        let sent = &place.client.requests()[0];
        assert_eq!(
            (sent.head.method.as_str(), sent.head.uri.to_string().as_str()),
            ("POST", "/introspect?a=b")
        );
        assert_eq!(sent.head.headers["content-type"], "application/x-www-form-urlencoded");
        assert_eq!(sent.head.headers["accept"], "application/json");
        assert_eq!(sent.head.headers["host"], "id.test");
        let shown = sent.head.headers.get("authorization").map(|value| value.to_str().expect("text"));
        assert_eq!((shown, &*String::from_utf8_lossy(&sent.body)), (field, form));
        assert_eq!((sent.upstream, sent.timeout), (UpstreamId(1000), Some(Duration::from_secs(5))));
    }
}

#[tokio::test]
async fn what_the_issuer_says_is_what_the_token_claims() {
    let place = Place::new();
    let opaque = place.build("");
    for (answer, told) in [
        (active(json!({})), alice()),
        (
            json!({"active": true, "client_id": "acme-app"}),
            Ok(("client:acme-app".to_owned(), "acme".to_owned())),
        ),
        (active(json!({"client_id": "acme-app"})), Ok(("alice".to_owned(), "acme".to_owned()))),
        (active(json!({"exp": NOW + 60, "nbf": NOW, "iat": NOW})), alice()),
        (active(json!({"exp": NOW - 31})), Err("the token has expired".to_owned())),
        (active(json!({"nbf": NOW + 31})), Err("the token is not valid yet".to_owned())),
        (
            active(json!({"exp": "soon"})),
            Err("a registered claim of the token has the wrong type".to_owned()),
        ),
        (active(json!({"aud": "api"})), Err("the token is for another audience".to_owned())),
        (json!({"active": false}), Err("the token is not active".to_owned())),
        (
            json!({"active": false, "sub": "alice", "exp": NOW + 60}),
            Err("the token is not active".to_owned()),
        ),
    ] {
        place.says(&answer);
        let token = format!("t{}", place.asked());
        assert_eq!(place.ask(&opaque, &token).await, told, "{answer}");
    }
    let strict = place.build(", issuer: joe, audiences: [api], required_claims: [scope]");
    let good = json!({"iss": "joe", "aud": ["x", "api"], "scope": "read"});
    for (changed, told) in [
        (json!({}), alice()),
        (json!({"iss": "eve"}), Err("the token is from another issuer".to_owned())),
        (json!({"aud": "x"}), Err("the token is for another audience".to_owned())),
        (json!({"scope": null}), Err("the token lacks a required claim".to_owned())),
    ] {
        let mut answer = active(good.clone());
        for (name, value) in changed.as_object().expect("a map") {
            answer[name] = value.clone();
        }
        place.says(&answer);
        let token = format!("s{}", place.asked());
        assert_eq!(place.ask(&strict, &token).await, told, "{answer}");
    }
}

#[tokio::test]
async fn an_answer_is_remembered_for_a_while_and_never_beyond_the_end_of_the_token() {
    for (answer, good_for) in [
        (active(json!({})), 60),
        (active(json!({"exp": NOW + 1000})), 60),
        (active(json!({"exp": NOW + 20})), 20),
        (json!({"active": false}), 5),
    ] {
        let place = Place::new();
        let opaque = place.build("");
        place.says(&answer);
        let told = place.ask(&opaque, "token").await;
        place.forward(good_for - 1);
        assert_eq!(place.ask(&opaque, "token").await, told);
        assert_eq!(place.asked(), 1, "{answer}");
        place.forward(1);
        place.says(&json!({"active": false}));
        assert_eq!(place.ask(&opaque, "token").await, Err("the token is not active".to_owned()));
        assert_eq!(place.asked(), 2, "{answer}");
    }
    let place = Place::new();
    let opaque = place.build(", token_cache: 0B");
    for asked in 1..=2 {
        place.says(&active(json!({})));
        assert_eq!(place.ask(&opaque, "token").await, alice());
        assert_eq!(place.asked(), asked);
    }
}

#[tokio::test]
async fn many_requests_with_one_token_are_one_question() {
    let place = Place::new();
    let opaque = place.build("");
    place.says(&active(json!({})));
    let answers = join_all((0..50).map(|_| place.ask(&opaque, "token"))).await;
    assert!(answers.iter().all(|answer| *answer == alice()), "{answers:?}");
    assert_eq!(place.asked(), 1);
}

#[tokio::test]
async fn an_issuer_that_does_not_answer_makes_no_token_invalid() {
    let place = Place::new();
    let opaque = place.build("");
    let cannot = |why: &str| Err(format!("503 the issuer cannot be asked about tokens: {why}"));
    place.client.fail(ClientError::Timeout);
    assert_eq!(place.ask(&opaque, "token").await, cannot("no reply in time"));
    for (status, body, why) in [
        (401, "", "the answer is 401"),
        (500, "", "the answer is 500"),
        (302, "", "the answer is 302, and redirects are not followed"),
        (200, "", "the answer is no JSON object"),
        (200, "[true]", "the answer is no JSON object"),
        (200, "{\"active\":true,\"active\":false}", "the answer is no JSON object"),
        (200, "{}", "the answer does not tell whether the token is `active`"),
        (200, "{\"active\":\"true\"}", "the answer does not tell whether the token is `active`"),
        (200, "{\"active\":1}", "the answer does not tell whether the token is `active`"),
    ] {
        place.client.reply(status, &[], [body.as_bytes()]);
        assert_eq!(place.ask(&opaque, "token").await, cannot(why));
    }
    let state = opaque.state().endpoint.expect("an endpoint");
    assert_eq!(state.url, "https://id.test/introspect?a=b");
    assert_eq!(state.failing.map(|(_, since)| since), Some(place.clock.wall()));
    place.says(&active(json!({})));
    assert_eq!(place.ask(&opaque, "token").await, alice(), "failures are not remembered");
    assert!(opaque.state().endpoint.is_some_and(|state| state.failing.is_none()));
    let count = |outcome| {
        let labels = [("identity", "opaque"), ("outcome", outcome)];
        place.metrics.value("tollhouse_identity_introspections_total", &labels)
    };
    assert_eq!((count("failed"), count("active"), count("inactive")), (Some(10), Some(1), Some(0)));
}

#[tokio::test]
async fn what_is_no_token_is_not_asked_about() {
    let place = Place::new();
    let opaque = place.build("");
    for token in ["", "=", "a b", "a,b", "a\"b", "a&client_id=b", "a%3D", "ä", &"x".repeat(16 * 1024 + 1)] {
        let told = place.ask(&opaque, token).await.expect_err("refused");
        assert!(told.starts_with("the token is"), "{told}");
    }
    assert_eq!(place.asked(), 0);
}

#[tokio::test]
async fn a_token_that_was_revoked_here_is_refused_whatever_its_issuer_says() {
    let place = Place::new();
    let opaque = place.build("");
    place.says(&active(json!({"jti": "1"})));
    assert_eq!(place.ask(&opaque, "token").await, alice());
    let (identity, which) = ("opaque".into(), Revoked::Sub("alice".into()));
    let revocation = Revocation { identity, which, issued_before: None, expires: NOW + 60 };
    place.world.revocations.add(revocation).expect("room");
    assert_eq!(place.ask(&opaque, "token").await, Err("the token was revoked".to_owned()));
}

#[tokio::test]
async fn who_gives_up_waiting_leaves_nothing_behind_and_the_others_their_answer() {
    let (mut place, gate) = (Place::new(), Arc::new(Semaphore::new(0)));
    place.world.client = Arc::new(Slow(place.client.clone(), gate.clone()));
    let opaque = place.build("");
    for _ in 0..2 {
        place.says(&active(json!({})));
    }
    {
        let (mut one, mut other) = (Box::pin(place.ask(&opaque, "a")), Box::pin(place.ask(&opaque, "a")));
        assert!((&mut one).now_or_never().is_none() && (&mut other).now_or_never().is_none());
        drop(one);
        gate.add_permits(1);
        assert_eq!(other.await, alice());
        assert_eq!(place.asked(), 1);
    }
    assert!(Box::pin(place.ask(&opaque, "b")).now_or_never().is_none());
    assert_eq!(place.asked(), 2, "it was asked, and nobody waits any more");
    place.says(&json!({"active": false}));
    gate.add_permits(1);
    assert_eq!(place.ask(&opaque, "b").await, Err("the token is not active".to_owned()), "asked anew");
    assert_eq!(place.asked(), 3);
}

#[tokio::test]
async fn so_many_questions_are_under_way_at_a_time_and_others_wait_in_vain_for_no_longer_than_they_have() {
    let (mut place, gate) = (Place::new(), Arc::new(Semaphore::new(0)));
    place.world.client = Arc::new(Slow(place.client.clone(), gate.clone()));
    let opaque = place.build("");
    let tokens: Vec<(u8, String)> = (0..65).map(|n| (n / 16, format!("t{n}"))).collect();
    let mut asked: Vec<_> =
        tokens.iter().map(|(client, token)| Box::pin(place.ask_from(*client, &opaque, token))).collect();
    for some in asked.chunks_mut(16) {
        assert!(some.iter_mut().all(|ask| ask.now_or_never().is_none()));
        // No task may do everything at once.
        tokio::task::yield_now().await;
    }
    assert_eq!(place.asked(), 64);
    place.forward(5);
    let told = asked.pop().expect("the last").await;
    assert_eq!(
        told,
        Err("503 the issuer cannot be asked about tokens: too many questions are under way".to_owned())
    );
    assert!(opaque.state().endpoint.is_some_and(|state| state.failing.is_none()), "it was not asked");
}

#[tokio::test]
async fn a_client_with_many_tokens_waits_for_itself_and_no_other_does() {
    let (mut place, gate) = (Place::new(), Arc::new(Semaphore::new(0)));
    place.world.client = Arc::new(Slow(place.client.clone(), gate.clone()));
    let opaque = place.build("");
    let tokens: Vec<String> = (0..100).map(|n| format!("t{n}")).collect();
    let mut asked: Vec<_> = tokens.iter().map(|token| Box::pin(place.ask(&opaque, token))).collect();
    for some in asked.chunks_mut(16) {
        assert!(some.iter_mut().all(|ask| ask.now_or_never().is_none()));
        // No task may do everything at once.
        tokio::task::yield_now().await;
    }
    let before = place.asked();
    place.says(&active(json!({})));
    let mut other = Box::pin(place.ask_from(2, &opaque, "other"));
    assert!((&mut other).now_or_never().is_none());
    assert_eq!((before, place.asked()), (48, 49), "it is asked about at once");
    gate.add_permits(49);
    assert_eq!(other.await, alice());
}

#[tokio::test]
async fn who_waited_for_a_place_has_the_rest_of_the_time_for_the_answer() {
    let (mut place, gate) = (Place::new(), Arc::new(Semaphore::new(0)));
    place.world.client = Arc::new(Slow(place.client.clone(), gate.clone()));
    let opaque = place.build("");
    let tokens: Vec<String> = (0..49).map(|n| format!("t{n}")).collect();
    let mut asked: Vec<_> = tokens.iter().map(|token| Box::pin(place.ask(&opaque, token))).collect();
    for some in asked.chunks_mut(16) {
        assert!(some.iter_mut().all(|ask| ask.now_or_never().is_none()));
        tokio::task::yield_now().await;
    }
    place.forward(3);
    drop(asked.remove(0));
    let mut last = asked.pop().expect("the last");
    assert!((&mut last).now_or_never().is_none());
    assert_eq!(place.asked(), 49);
    place.forward(2);
    let told = "503 the issuer cannot be asked about tokens: no reply in time".to_owned();
    assert_eq!((&mut last).now_or_never(), Some(Err(told)));
}

#[tokio::test]
async fn large_answers_take_more_of_the_memory_than_small_ones() {
    let place = Place::new();
    let opaque = place.build(", token_cache: 64KiB");
    let large = active(json!({"about": "x".repeat(8000)}));
    for _ in 0..2 {
        for n in 0..80 {
            place.says(&large);
            assert_eq!(place.ask(&opaque, &format!("t{n}")).await, alice());
        }
    }
    // What is too much is forgotten from time to time.
    assert!(place.asked() > 80 + 50, "{}", place.asked());
}

#[tokio::test]
async fn what_was_learnt_lives_on_in_a_document_of_the_same_shape() {
    let place = Place::new();
    let before = place.build("");
    place.says(&active(json!({"aud": "api"})));
    place.ask(&before, "token").await.expect_err("for another");
    let after = place.build(", audiences: [api]");
    assert_eq!(place.ask(&after, "token").await, alice());
    assert_eq!(place.asked(), 1);
    let other = place.build(", client_auth: post");
    place.says(&json!({"active": false}));
    place.ask(&other, "token").await.expect_err("not active");
    assert_eq!(place.asked(), 2);
}

#[test]
fn options_that_cannot_work_are_refused_at_their_place() {
    let place = Place::new();
    for (options, told) in [
        ("endpoint: 'http://id.test/', client_id: a, client_secret: b", "endpoint: expected an https URL"),
        ("endpoint: 'id.test', client_id: a, client_secret: b", "endpoint: expected a URL such as"),
        (
            "endpoint: 'https://a:b@id.test/', client_id: a, client_secret: b",
            "endpoint: expected a URL such as",
        ),
        (&format!("{OPTIONS}, upstream: mian"), "upstream: no upstream is named `mian`"),
        (&format!("{OPTIONS}, from: []"), "from: no token could ever be found"),
        (&format!("{OPTIONS}, leeway: 2h"), "leeway: expected at most 1h"),
        ("endpoint: 'https://id.test/', client_id: '', client_secret: b", "client_id: expected who asks"),
    ] {
        let error = place.try_build(options).err().expect("refused");
        assert!(error.starts_with(&format!("identities.opaque.{told}")), "{error}");
    }
    for options in [
        "endpoint: 'http://127.0.0.1:1/', client_id: a, client_secret: b",
        "endpoint: 'http://id.test/', client_id: a, client_secret: b, upstream: main",
    ] {
        assert!(place.try_build(options).is_ok(), "{options}");
    }
}
