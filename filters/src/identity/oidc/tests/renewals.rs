//! Sessions that are renewed: once, by one gateway, and not again and again while that fails.

use std::collections::HashMap;
use std::time::Instant;

use async_trait::async_trait;
use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::*;
use crate::identity::oidc::session::Current;
use crate::identity::{Identity, Presented};
use crate::testing::Slow;
use crate::world::{
    Away, Charge, Client, ClientError, Clock, OnFailure, Records, Store, Stores, Tally, TenantId, UpstreamId,
};

/// A store of values that two gateways share.
pub(super) struct Kept {
    pub(super) clock: Arc<ManualClock>,
    values: Mutex<HashMap<Vec<u8>, Value>>,
}

/// A value, and when it ends.
type Value = (Vec<u8>, Instant);

impl Kept {
    fn set(&self, key: &[u8], value: &[u8], lasts: Duration) {
        let end = self.clock.now() + lasts;
        self.values.lock().insert(key.into(), (value.into(), end));
    }

    fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        let now = self.clock.now();
        self.values.lock().get(key).filter(|(_, end)| now < *end).map(|(value, _)| value.clone())
    }
}

#[async_trait]
impl Records for Kept {
    async fn get(&self, _: &str, key: &[u8]) -> Result<Option<Vec<u8>>, Away> {
        Ok(self.value(key))
    }

    async fn put(
        &self,
        _: &str,
        key: &[u8],
        value: &[u8],
        _: &[Vec<u8>],
        lasts: Duration,
    ) -> Result<(), Away> {
        self.set(key, value, lasts);
        Ok(())
    }

    async fn replace(&self, _: &str, key: &[u8], value: &[u8], lasts: Duration) -> Result<bool, Away> {
        let is_there = self.value(key).is_some();
        if is_there {
            self.set(key, value, lasts);
        }
        Ok(is_there)
    }

    async fn remove(&self, _: &str, key: &[u8]) -> Result<(), Away> {
        self.values.lock().remove(key);
        Ok(())
    }

    async fn remove_group(&self, _: &str, _: &[u8]) -> Result<(), Away> {
        Ok(())
    }

    async fn claim(&self, _: &str, key: &[u8], lasts: Duration) -> Result<bool, Away> {
        let is_free = self.value(key).is_none();
        if is_free {
            self.set(key, b"1", lasts);
        }
        Ok(is_free)
    }
}

#[async_trait]
impl Store for Kept {
    async fn decide(
        &self,
        _: TenantId,
        _: &str,
        _: &mut [Charge<'_>],
        _: &mut [Tally<'_>],
    ) -> Result<bool, Away> {
        Err(Away)
    }

    fn give_back(&self, _: TenantId, _: &str, _: &[u8], _: u64, _: u64) {}

    fn on_failure(&self) -> OnFailure {
        OnFailure::Local
    }

    fn records(&self) -> Option<&dyn Records> {
        Some(self)
    }
}

/// Surrounds an identity with stores.
struct Beside(Stores);

impl Surroundings for Beside {
    fn upstream(&self, _: &str) -> Option<UpstreamId> {
        None
    }

    fn nearest_upstream(&self, _: &str) -> Option<String> {
        None
    }

    fn stores(&self) -> Option<&Stores> {
        Some(&self.0)
    }
}

/// One of several gateways with sessions in one store.
fn gateway(client: Arc<dyn Client>, kept: &Arc<Kept>) -> Arc<Party> {
    gateway_in(&World { client, ..World::dry_at(kept.clock.clone()) }, kept, "")
}

/// As [`gateway`], in this world, with more options.
pub(super) fn gateway_in(world: &World, kept: &Arc<Kept>, options: &str) -> Arc<Party> {
    let store: Arc<dyn Store> = kept.clone();
    let stores = Stores::from([("main".into(), store)]);
    web_in(world, &Beside(stores), &format!(", store: main{options}")).party
}

pub(super) fn kept() -> Arc<Kept> {
    Arc::new(Kept { clock: Arc::new(ManualClock::new()), values: Mutex::default() })
}

/// Has the provider say where it is.
fn says_where(client: &ScriptedClient) {
    let document = json!({
        "issuer": "https://id.example.com",
        "authorization_endpoint": "https://id.example.com/auth",
        "token_endpoint": "https://id.example.com/token",
    });
    client.reply(200, &[], [document.to_string().as_bytes()]);
}

/// Has it give this refresh token, and perhaps a token of who it is.
fn gives(client: &ScriptedClient, refresh: &str, id: Option<&str>) {
    let tokens = json!({"access_token": "x", "expires_in": 100, "refresh_token": refresh, "id_token": id});
    client.reply(200, &[], [tokens.to_string().as_bytes()]);
}

/// What the provider was sent last.
fn last_form(client: &ScriptedClient) -> String {
    let sent = client.requests().pop().expect("a request");
    String::from_utf8_lossy(&sent.body).into_owned()
}

/// When a session of a hundred seconds is to be renewed, and has some left.
const DUE: Duration = Duration::from_secs(85);

#[tokio::test]
async fn while_the_provider_is_away_requests_do_not_all_wait_for_it() {
    let (client, clock) = (Arc::new(ScriptedClient::new()), Arc::new(ManualClock::new()));
    let world = World { client: client.clone(), ..World::dry_at(clock.clone()) };
    let party = web(&world).party;
    let session = session(&party, Some("r1"), Some(100));
    clock.advance(DUE);
    says_where(&client);
    client.fail(ClientError::Timeout);
    let asked = async || {
        let current = party.current(session.clone(), party.now()).await;
        work().await;
        (matches!(current, Ok(Current::Same(_))), client.requests().len())
    };
    assert_eq!(asked().await, (true, 2));
    clock.advance(Duration::from_secs(4));
    assert_eq!(asked().await, (true, 2), "it was tried just now");
    clock.advance(Duration::from_secs(1));
    assert_eq!(asked().await, (true, 3));
    // Without tokens nobody goes on, so it is tried each time.
    clock.advance(Duration::from_secs(10));
    assert_eq!(asked().await, (false, 4));
    assert_eq!(asked().await, (false, 5));
    gives(&client, "r2", None);
    assert!(matches!(party.current(session.clone(), party.now()).await, Ok(Current::Renewed(_))));
}

#[tokio::test]
async fn a_dry_run_renews_nothing() {
    let (client, clock) = (Arc::new(ScriptedClient::new()), Arc::new(ManualClock::new()));
    let web = web(&World { client: client.clone(), ..World::dry_at(clock.clone()) });
    let request = browser(&web.party, &session(&web.party, Some("r1"), Some(100)), "/").await;
    let (_, mut ctx) = get("/").into_parts();
    ctx.dry_run = true;
    // It is to be renewed, then has to be, and then is over.
    for (later, may_hold) in [(DUE, true), (DUE, true), (Duration::from_secs(24 * 3600), false)] {
        clock.advance(later);
        let said = web.check(&request, &ctx, clock.wall()).await;
        assert_eq!(matches!(said, Presented::Valid(_)), may_hold, "{said:?}");
        assert_eq!(client.requests().len(), 0, "its refresh token may be good for one use");
    }
}

#[tokio::test]
async fn who_can_go_on_waits_for_the_first_renewal_that_fails_and_a_second_for_others() {
    let (client, gate) = (Arc::new(ScriptedClient::new()), Arc::new(Semaphore::new(2)));
    let (clock, slow) = (Arc::new(ManualClock::new()), Arc::new(Slow(client.clone(), gate.clone())));
    let party = web(&World { client: slow, ..World::dry_at(clock.clone()) }).party;
    let session = session(&party, Some("r1"), Some(100));
    clock.advance(DUE);
    says_where(&client);
    client.fail(ClientError::Timeout);
    gives(&client, "r2", None);
    assert!(matches!(party.current(session.clone(), party.now()).await, Ok(Current::Same(_))));
    clock.advance(Duration::from_secs(5));
    // The provider takes its time.
    let mut current = Box::pin(party.current(session.clone(), party.now()));
    assert!((&mut current).now_or_never().is_none(), "it may be back");
    work().await;
    assert_eq!(client.requests().len(), 3, "it is asked");
    clock.advance(Duration::from_secs(1));
    assert!(matches!((&mut current).now_or_never(), Some(Ok(Current::Same(_)))));
    let current = Box::pin(party.current(session.clone(), party.now())).now_or_never();
    assert!(matches!(current, Some(Ok(Current::Same(_)))), "the second is over");
    assert_eq!(client.requests().len(), 3, "the try goes on");
    gate.add_permits(1);
    work().await;
    let current = Box::pin(party.current(session.clone(), party.now())).now_or_never();
    assert!(matches!(current, Some(Ok(Current::Renewed(_)))));
}

#[tokio::test]
async fn a_provider_that_is_back_renews_a_session_at_the_second_try() {
    let (client, clock) = (Arc::new(ScriptedClient::new()), Arc::new(ManualClock::new()));
    let party = web(&World { client: client.clone(), ..World::dry_at(clock.clone()) }).party;
    let session = session(&party, Some("r1"), Some(100));
    clock.advance(DUE);
    says_where(&client);
    client.fail(ClientError::Timeout);
    gives(&client, "r2", None);
    assert!(matches!(party.current(session.clone(), party.now()).await, Ok(Current::Same(_))));
    clock.advance(Duration::from_secs(5));
    // There may be no other request that could be told of it.
    assert!(matches!(party.current(session, party.now()).await, Ok(Current::Renewed(_))));
    assert_eq!(client.requests().len(), 3);
}

#[tokio::test]
async fn a_token_by_a_key_that_is_not_shown_yet_costs_no_refresh_token() {
    let (client, clock) = (Arc::new(ScriptedClient::new()), Arc::new(ManualClock::new()));
    let world = World { client: client.clone(), tasks: Arc::new(Spawn), ..World::dry_at(clock.clone()) };
    says_where_keys_are(&client);
    shows_key(&client, "old");
    let party = web_in(&world, &Alone, ", algorithms: [EdDSA]").party;
    work().await;
    let first = session(&party, Some("r1"), Some(100));
    clock.advance(DUE);
    says_where(&client);
    let claims = json!({
        "iss": "https://id.example.com", "sub": "alice", "aud": "web",
        "iat": party.now(), "exp": party.now() + 100,
    });
    gives(&client, "r2", Some(&signed("new", &claims)));
    // Whoever serves the keys has those of before.
    shows_key(&client, "old");
    let Ok(Current::Renewed(second)) = party.current(first.clone(), party.now()).await else {
        panic!("it is renewed");
    };
    assert_eq!((client.requests().len(), &second.token), (5, &first.token), "it was looked for in vain");
    clock.advance(DUE);
    gives(&client, "r3", None);
    assert!(matches!(party.current(*second, party.now()).await, Ok(Current::Renewed(_))));
    assert_eq!(last_form(&client), "grant_type=refresh_token&refresh_token=r2&client_id=web");
}

#[tokio::test]
async fn a_renewal_whose_token_does_not_hold_ends_the_session() {
    let (client, clock) = (Arc::new(ScriptedClient::new()), Arc::new(ManualClock::new()));
    let party = web(&World { client: client.clone(), ..World::dry_at(clock.clone()) }).party;
    let session = session(&party, Some("r1"), Some(100));
    clock.advance(DUE);
    says_where(&client);
    let id = token(&json!({"iss": "https://other.example.com", "sub": "alice", "aud": "web"}));
    gives(&client, "r2", Some(&id));
    for _ in 0..2 {
        assert!(matches!(party.current(session.clone(), party.now()).await, Ok(Current::Ended)));
        clock.advance(Duration::from_secs(6));
    }
    assert_eq!(client.requests().len(), 2, "a spent refresh token is not shown again");
}

#[tokio::test]
async fn a_token_that_cannot_be_verified_now_costs_no_refresh_token() {
    let (client, clock) = (Arc::new(ScriptedClient::new()), Arc::new(ManualClock::new()));
    // There are no keys: nothing fetches them here.
    let world = World { client: client.clone(), ..World::dry_at(clock.clone()) };
    let party = web(&world).party;
    let first = session(&party, Some("r1"), Some(100));
    clock.advance(DUE);
    says_where(&client);
    let id = token(&json!({"iss": "https://id.example.com", "sub": "alice", "aud": "web", "jti": "new"}));
    gives(&client, "r2", Some(&id));
    let Ok(Current::Renewed(second)) = party.current(first.clone(), party.now()).await else {
        panic!("it is renewed");
    };
    assert_eq!(second.token, first.token, "who it is was verified");
    clock.advance(DUE);
    gives(&client, "r3", None);
    assert!(matches!(party.current(*second, party.now()).await, Ok(Current::Renewed(_))));
    assert_eq!(last_form(&client), "grant_type=refresh_token&refresh_token=r2&client_id=web");
}

#[tokio::test]
async fn a_slow_renewal_of_one_gateway_is_not_made_by_another_too() {
    let (one, other, kept) = (Arc::new(ScriptedClient::new()), Arc::new(ScriptedClient::new()), kept());
    // The provider says at once where it is, and takes its time for tokens.
    let gate = Arc::new(Semaphore::new(1));
    let here = gateway(Arc::new(Slow(one.clone(), gate.clone())), &kept);
    let there = gateway(other.clone(), &kept);
    let session = session(&here, Some("r1"), Some(100));
    browser(&here, &session, "/").await;
    kept.clock.advance(DUE);
    says_where(&one);
    gives(&one, "r2", None);
    let mut first = Box::pin(here.current(session.clone(), here.now()));
    assert!((&mut first).now_or_never().is_none());
    work().await;
    assert_eq!(one.requests().len(), 2);
    // Longer than one question may take.
    kept.clock.advance(Duration::from_secs(6));
    let mut second = Box::pin(there.current(session, there.now()));
    assert!((&mut second).now_or_never().is_none());
    work().await;
    assert_eq!(other.requests().len(), 0);
    gate.add_permits(1);
    assert!(matches!(first.await, Ok(Current::Renewed(_))));
    kept.clock.advance(Duration::from_secs(1));
    assert!(matches!(second.await, Ok(Current::Renewed(_))));
    assert_eq!(other.requests().len(), 0);
}

#[tokio::test]
async fn where_one_gateway_cannot_renew_a_session_another_may_at_once() {
    let (one, other, kept) = (Arc::new(ScriptedClient::new()), Arc::new(ScriptedClient::new()), kept());
    let (here, there) = (gateway(one.clone(), &kept), gateway(other.clone(), &kept));
    let session = session(&here, Some("r1"), Some(100));
    browser(&here, &session, "/").await;
    kept.clock.advance(DUE);
    one.fail(ClientError::Timeout);
    assert!(matches!(here.current(session.clone(), here.now()).await, Ok(Current::Same(_))));
    says_where(&other);
    gives(&other, "r2", None);
    let mut renewed = Box::pin(there.current(session, there.now()));
    assert!((&mut renewed).now_or_never().is_none());
    work().await;
    assert!(matches!((&mut renewed).now_or_never(), Some(Ok(Current::Renewed(_)))));
}
