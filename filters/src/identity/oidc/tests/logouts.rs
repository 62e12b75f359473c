//! The end of sessions, also where it cannot be noted.

use super::renewals::{gateway_in, kept};
use super::*;

/// Fills the list of what no longer holds, but for what is left to administrators; gives an entry without room.
fn fill(world: &World, until: u64) -> Revocation {
    let entry = |n: u32| Revocation {
        identity: "web".into(),
        which: Revoked::Jti(n.to_string().into()),
        issued_before: None,
        expires: until,
    };
    let further = (0..).find(|n| world.revocations.extend(entry(*n)).is_err()).expect("it is bounded");
    entry(further)
}

#[tokio::test]
async fn a_logout_that_cannot_be_remembered_is_none() {
    let world = World::dry();
    let party = web(&world).party;
    let further = fill(&world, party.now() + 60);
    let session = session(&party, None, None);
    let request = browser(&party, &session, "/logout").await;
    let answer = reply(party.log_out(&request).await);
    assert_eq!((answer.status(), field(&answer, "set-cookie")), (503, None));
    assert!(!party.was_ended(&session));
    assert_eq!(world.revocations.add(further), Ok(true), "administrators have room");

    world.revocations.remove("web", &Revoked::Jti("0".into())).expect("removed");
    world.revocations.remove("web", &Revoked::Jti("1".into())).expect("removed");
    assert_eq!(reply(party.log_out(&request).await).status(), 200);
    assert!(party.was_ended(&session));
}

#[tokio::test]
async fn a_logout_at_the_provider_counts_in_a_store_though_there_is_no_room_to_note_it() {
    let (client, kept) = (Arc::new(ScriptedClient::new()), kept());
    let world = World { client: client.clone(), tasks: Arc::new(Spawn), ..World::dry_at(kept.clock.clone()) };
    says_where_keys_are(&client);
    shows_key(&client, "k1");
    let stored = gateway_in(&world, &kept, ", algorithms: [EdDSA]");
    let in_cookies = web_in(&world, &Alone, ", algorithms: [EdDSA]").party;
    work().await;
    fill(&world, stored.now() + 60);
    let event = "http://schemas.openid.net/event/backchannel-logout";
    let claims = json!({
        "iss": "https://id.example.com", "aud": "web", "jti": "l1", "sub": "alice",
        "iat": stored.now(), "exp": stored.now() + 60, "events": {event: {}},
    });
    let form = format!("logout_token={}", signed("k1", &claims));
    let mut request = RequestHeader::build("POST", b"/backchannel", None).expect("valid");
    request.append_header("content-type", "application/x-www-form-urlencoded").expect("valid");
    assert_eq!(reply(stored.end_sessions(&request, form.as_bytes()).await).status(), 200);
    assert_eq!(reply(in_cookies.end_sessions(&request, form.as_bytes()).await).status(), 503);
}
