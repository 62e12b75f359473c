//! Users who log in at a real provider, with sessions in a real Redis that two gateways share.

use std::time::Duration;

use crate::harness::{Browser, Gateway, Oidc, Origin, Redis, request, soon};
use crate::login::{document, look};

struct Site {
    oidc: Oidc,
    origin: Origin,
    redis: Redis,
    gateways: [Gateway; 2],
}

impl Site {
    async fn start() -> Self {
        let (oidc, origin, redis) = (Oidc::start().await, Origin::echo().await, Redis::start().await);
        let text =
            document(&origin, &oidc, &["first"]).replace("    logout:", "    store: main\n    logout:");
        let store = "type: redis, timeout: 1s, on_failure: open";
        let text = format!("stores: {{main: {{{store}, url: \"{}\"}}}}\n{text}", redis.url());
        let gateways = [Gateway::start(&text).await, Gateway::start(&text).await];
        Self { oidc, origin, redis, gateways }
    }

    /// A browser whose user has logged in through the first gateway.
    async fn logged_in(&self, user: &str) -> Browser {
        let mut browser = Browser::new(self.gateways[0].address());
        let page = browser.visit("/start").await;
        let back = browser.log_in(&page, user).await;
        assert_eq!(browser.follow(back).await.status, 200);
        browser
    }

    /// The same browser before the other gateway.
    fn elsewhere(&self, browser: &Browser) -> Browser {
        let mut elsewhere = Browser::new(self.gateways[1].address());
        elsewhere.cookies.clone_from(&browser.cookies);
        elsewhere
    }
}

fn cookie(browser: &Browser) -> &String {
    &browser.cookies[&("app.test".to_owned(), "__Host-web".to_owned())]
}

#[tokio::test]
async fn a_session_in_a_store_is_one_of_all_gateways_and_so_is_its_end() {
    let site = Site::start().await;
    let mut alice = site.logged_in("alice").await;
    assert!(cookie(&alice).len() < 200, "{}", cookie(&alice));
    let mut elsewhere = site.elsewhere(&alice);
    assert_eq!(look(&mut elsewhere).await.status, 200);
    let head = site.origin.heads().pop().expect("a head");
    assert_eq!((head.field("x-user"), head.field("cookie")), (Some("alice"), None));
    // What is in the store ends, and says nothing without the keys of the cookies.
    let keys: Vec<String> = site.redis.ask(&["KEYS", "*:r:*"]);
    assert_eq!(keys.len(), 1);
    let lasts: i64 = site.redis.ask(&["TTL", &keys[0]]);
    assert!((8 * 3600 - 60..=8 * 3600).contains(&lasts), "{lasts}");
    let kept: Vec<u8> = site.redis.ask(&["GET", &keys[0]]);
    assert!(kept.len() > 200 && !kept.windows(3).any(|part| part == b"eyJ"), "there is a token");

    assert_eq!(elsewhere.step("https://app.test/oauth2/logout").await.status, 302);
    assert_eq!(look(&mut alice).await.status, 302, "the other gateway knows that it ended");
    assert!(site.redis.ask::<Vec<String>>(&["KEYS", "*:r:*"]).is_empty());
}

#[tokio::test]
async fn a_provider_tells_one_gateway_that_a_session_ended_and_all_know() {
    for sid in [true, false] {
        let mut site = Site::start().await;
        let backchannel = format!("http://{}/oauth2/backchannel", site.gateways[0].address());
        site.oidc.users(serde_json::json!({"ttl": 300, "backchannel": backchannel, "sid": sid})).await;
        let (alice, bob) = (site.logged_in("alice").await, site.logged_in("bob").await);
        assert_eq!(look(&mut site.elsewhere(&alice)).await.status, 200);
        let mut at_provider = alice.clone();
        let page = at_provider.go(&format!("{}/session/end", site.oidc.issuer)).await;
        at_provider.submit(&page, &[("logout", "yes")]).await;
        let ended = async { while look(&mut site.elsewhere(&alice)).await.status != 302 {} };
        soon("the end of the session", ended).await;
        assert_eq!(look(&mut site.elsewhere(&bob)).await.status, 200, "others go on");
    }
}

#[tokio::test]
async fn while_the_store_is_away_nobody_is_sent_to_log_in_again() {
    let mut site = Site::start().await;
    let mut alice = site.logged_in("alice").await;
    let mut begun = Browser::new(site.gateways[0].address());
    let page = begun.visit("/start").await;
    let back = begun.log_in(&page, "bob").await;
    site.redis.kill();
    for _ in 0..3 {
        let answer = look(&mut alice).await;
        assert_eq!((answer.status, answer.problem().as_str()), (503, "filter-unavailable"));
        assert!(answer.field("retry-after").is_some() && answer.field("location").is_none());
    }
    let home = back.field("location").expect("a place").to_owned();
    assert_eq!(begun.step(&home).await.status, 503, "no session can be kept");
    assert_eq!(alice.step("https://app.test/oauth2/logout").await.status, 503, "it would not be ended");
    // It comes back empty: everybody has to log in.
    site.redis.restart().await;
    soon("the store", async { while look(&mut alice).await.status == 503 {} }).await;
    assert_eq!(look(&mut alice).await.status, 302);
    let page = alice.visit("/start").await;
    assert_eq!(page.status, 200, "the provider knows the user still");
    assert_eq!(look(&mut alice).await.status, 200);
}

#[tokio::test]
async fn one_of_two_gateways_renews_a_session_and_both_go_on() {
    let mut site = Site::start().await;
    site.oidc.users(serde_json::json!({"ttl": 5})).await;
    let alice = site.logged_in("alice").await;
    let asked = site.oidc.requests("/token").await;
    let renewed = async {
        while site.oidc.requests("/token").await == asked {
            let (mut here, mut there) = (alice.clone(), site.elsewhere(&alice));
            let (one, other) = tokio::join!(look(&mut here), look(&mut there));
            assert_eq!((one.status, other.status), (200, 200), "nobody has to log in again");
            assert_eq!(cookie(&here), cookie(&alice), "the cookie stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    soon("a renewal", renewed).await;
    let (mut here, mut there) = (alice.clone(), site.elsewhere(&alice));
    let (one, other) = tokio::join!(look(&mut here), look(&mut there));
    assert_eq!((one.status, other.status), (200, 200));
    assert_eq!(site.oidc.requests("/token").await, asked + 1, "the refresh token is good for one use");
}

#[tokio::test]
async fn cookies_of_sessions_go_to_no_upstream_of_any_route() {
    let origin = Origin::echo().await;
    let text = format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]
identities:
  web: {{type: oidc, issuer: \"https://id.test\", client_id: web, redirect_uri: \"https://app.test/callback\",
    cookie_keys: [\"a key of thirty-two bytes or more, of cookies\"]}}
routes: [{{name: open, upstream: origin}}]
",
        origin.address
    );
    let gateway = Gateway::start(&text).await;
    let cookies = "Cookie: a=1; __Host-web=1.AAAA; __Host-web.1=BBBB; __Host-web.login0=CCCC; b=2\r\n";
    for body in ["", "Transfer-Encoding: chunked\r\n\r\n0\r\n"] {
        assert_eq!(request(gateway.address(), "POST /", &format!("{cookies}{body}")).await.status, 200);
        let head = origin.heads().pop().expect("a head");
        assert_eq!(head.field("cookie"), Some("a=1; b=2"));
    }
}
