//! Users who log in at a real provider, with what a browser does of it.

use crate::harness::{Answer, Browser, Gateway, Oidc, Origin, request, soon};

const SECRET: &str = "a secret of at least thirty-two characters";

/// One route for users, and one that tells what their browser is sent on to.
pub(super) fn document(origin: &Origin, oidc: &Oidc, keys: &[&str]) -> String {
    let keys: Vec<String> =
        keys.iter().map(|key| format!("\"{key}, of thirty-two bytes or more\"")).collect();
    format!(
        "upstreams: [{{name: origin, backends: [{{address: \"{}\"}}]}}]
identities:
  web:
    type: oidc
    issuer: \"{}\"
    client_id: web
    client_secret: {SECRET}
    algorithms: [ES256]
    redirect_uri: https://app.test/oauth2/callback
    cookie_keys: [{}]
    logout: /oauth2/logout
    post_logout_redirect_uri: https://app.test/bye
    backchannel_logout: /oauth2/backchannel
consumers:
  - {{name: alice, match: [{{identity: web, claim: sub, value: alice}}]}}
routes:
  - {{name: bye, match: {{paths: [/bye]}}, respond: {{status: 200, body: bye}}}}
  - name: app
    match: {{paths: [/*]}}
    filters: [{{authenticate: {{any_of: [web], consumer_header: x-consumer, forward: {{x-user: sub}}}}}}]
    upstream: origin
",
        origin.address,
        oidc.issuer,
        keys.join(", ")
    )
}

struct Site {
    oidc: Oidc,
    origin: Origin,
    gateway: Gateway,
}

impl Site {
    async fn start() -> Self {
        let (oidc, origin) = (Oidc::start().await, Origin::echo().await);
        let gateway = Gateway::start(&document(&origin, &oidc, &["first"])).await;
        Self { oidc, origin, gateway }
    }

    fn browser(&self) -> Browser {
        Browser::new(self.gateway.address())
    }

    /// A browser whose user has logged in to see a page.
    async fn logged_in(&self, user: &str) -> Browser {
        let mut browser = self.browser();
        let page = browser.visit("/start").await;
        let back = browser.log_in(&page, user).await;
        assert_eq!(browser.follow(back).await.status, 200);
        browser
    }
}

fn session(browser: &Browser) -> Option<&String> {
    browser.cookies.get(&("app.test".to_owned(), "__Host-web".to_owned()))
}

/// Goes to a page without going on.
pub(super) async fn look(browser: &mut Browser) -> Answer {
    browser.step("https://app.test/page").await
}

/// The authorization request is as RFC 6749 s4.1.1, RFC 7636 s4.3 and OpenID Connect Core s3.1.2.1 say.
fn asks_for_a_code(location: &str, issuer: &str) {
    assert!(location.starts_with(&format!("{issuer}/auth?response_type=code&client_id=web&")), "{location}");
    for part in [
        "code_challenge_method=S256",
        "code_challenge=",
        "state=",
        "nonce=",
        "scope=openid",
        "redirect_uri=https%3A%2F%2Fapp.test%2Foauth2%2Fcallback",
    ] {
        assert!(location.contains(part), "{location}");
    }
}

#[tokio::test]
async fn a_user_logs_in_with_a_browser_and_comes_back_to_the_page() {
    let site = Site::start().await;
    let mut browser = site.browser();
    let sent = browser.step("https://app.test/a/b?x=1&y=%2F").await;
    assert_eq!(sent.status, 302);
    assert_eq!(sent.field("cache-control"), Some("no-store"));
    asks_for_a_code(sent.field("location").expect("a place"), &site.oidc.issuer);
    let cookie = sent.field("set-cookie").expect("a cookie");
    assert!(
        cookie.starts_with("__Host-web.login")
            && cookie.ends_with("; Path=/; Max-Age=600; HttpOnly; SameSite=Lax; Secure"),
        "{cookie}"
    );
    let over = format!("{}=; ", cookie.split('=').next().expect("a name"));

    let page = browser.follow(sent).await;
    assert!(page.text().contains("name=\"password\""), "{}", page.text());
    let back = browser.log_in(&page, "alice").await;
    let home = back.field("location").expect("a place").to_owned();
    let answer = browser.step(&home).await;
    assert_eq!((answer.status, answer.field("location")), (302, Some("/a/b?x=1&y=%2F")));
    let cookies = answer.head.all("set-cookie").join("\n");
    assert!(
        cookies.contains("__Host-web=1.") && cookies.contains("; HttpOnly; SameSite=Lax; Secure"),
        "{cookies}"
    );
    assert!(cookies.contains(&over), "the login is over: {cookies}");
    let answer = browser.follow(answer).await;
    assert_eq!(answer.status, 200);
    let head = site.origin.head();
    assert_eq!((head.field("x-consumer"), head.field("x-user")), (Some("alice"), Some("alice")));
    assert_eq!(
        (head.target(), head.field("cookie")),
        ("/a/b?x=1&y=%2F", None),
        "cookies of the gateway stay there"
    );

    // The answer of the provider is good once, and in this browser only.
    assert!(browser.step(&home).await.head.all("set-cookie").is_empty());
    assert_eq!(site.browser().step(&home).await.status, 400);
    let line = site.gateway.log_line(|line| line["consumer"] == "alice").await;
    assert_eq!(line["identity"], "web");
    let line = site.gateway.log_line(|line| line["path"] == "/oauth2/callback").await;
    let query = line["query"].as_str().expect("a query");
    assert!(query.contains("code=***") && query.contains("state=***"), "{query}");
    let shown = format!("{}{}", site.gateway.log_text(), site.gateway.stderr().join("\n"));
    assert!(!shown.contains(session(&browser).expect("a session")) && !shown.contains(SECRET), "{shown}");
}

#[tokio::test]
async fn programs_and_scripts_are_told_401_and_sent_nowhere() {
    let site = Site::start().await;
    let address = site.gateway.address();
    for (line, fields) in [
        ("GET /a", ""),
        ("GET /a", "Accept: application/json\r\n"),
        ("GET /a", "Accept: */*\r\n"),
        ("GET /a", "Accept: text/html\r\nX-Requested-With: XMLHttpRequest\r\n"),
        ("GET /a", "Accept: text/html\r\nSec-Fetch-Mode: cors\r\n"),
        ("POST /a", "Accept: text/html\r\nContent-Length: 0\r\n"),
        ("GET /a", "Accept: application/json\r\nCookie: __Host-web=1.AAAA\r\n"),
    ] {
        let answer = request(address, line, fields).await;
        assert_eq!((answer.status, answer.problem().as_str()), (401, "unauthorized"), "{line} {fields}");
        assert_eq!(answer.field("www-authenticate"), Some("Session realm=\"web\""));
        assert!(answer.head.all("set-cookie").is_empty());
    }
    let answer = request(address, "GET /a", "Accept: text/html\r\nSec-Fetch-Mode: navigate\r\n").await;
    assert_eq!(answer.status, 302);
    assert_eq!(site.origin.connections(), 0);
}

#[tokio::test]
async fn an_answer_that_belongs_to_another_browser_logs_nobody_in() {
    let site = Site::start().await;
    let mut mallory = site.browser();
    let page = mallory.visit("/start").await;
    let back = mallory.log_in(&page, "mallory").await;
    let home = back.field("location").expect("a place").to_owned();
    // The victim's browser, without a login of its own and with one.
    let mut victim = site.browser();
    for _ in 0..2 {
        let answer = victim.step(&home).await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"));
        assert!(
            answer.text().contains("was not begun in this browser") && session(&victim).is_none(),
            "{answer:?}"
        );
        victim.visit("/start").await;
    }
    // And what is not what the provider would say.
    let (place, query) = home.split_once('?').expect("a query");
    let state = query.split('&').find(|pair| pair.starts_with("state=")).expect("a state");
    let code = query.split('&').find(|pair| pair.starts_with("code=")).expect("a code");
    for query in [
        String::new(),
        code.to_owned(),
        state.to_owned(),
        format!("{code}&{state}"),
        format!("{query}&state=other"),
        format!("{query}&code=other"),
        format!("{code}&{state}&iss=https://evil.test"),
        format!("{code}x&{state}&iss={}", site.oidc.issuer),
    ] {
        let answer = mallory.clone().step(&format!("{place}?{query}")).await;
        assert_eq!(answer.status, 400, "{query}");
        assert!(
            answer.head.all("set-cookie").iter().all(|line| !line.starts_with("__Host-web=")),
            "{answer:?}"
        );
    }
    for (error, status) in
        [("access_denied", 403), ("login_required", 400), ("server_error", 503), ("<script>", 400)]
    {
        let answer =
            mallory.clone().step(&format!("{place}?error={error}&{state}&iss={}", site.oidc.issuer)).await;
        assert_eq!(answer.status, status, "{error}");
        assert!(!answer.text().contains("script"), "{answer:?}");
    }
    assert_eq!(site.origin.connections(), 0);
}

#[tokio::test]
async fn a_page_that_comes_back_after_another_one_goes_on_with_its_session() {
    let site = Site::start().await;
    let mut browser = site.browser();
    let page = browser.visit("/first").await;
    let back = browser.log_in(&page, "alice").await;
    let home = back.field("location").expect("a place").to_owned();
    // Another page was opened at the same time: its cookie took the place of the first one's, and it comes back first.
    browser.cookies.retain(|(_, name), _| !name.contains(".login"));
    assert_eq!(browser.visit("/second").await.status, 200);
    let before = session(&browser).cloned();
    let answer = browser.step(&home).await;
    assert_eq!((answer.status, answer.field("location")), (302, Some("/")));
    assert!(answer.head.all("set-cookie").is_empty() && session(&browser) == before.as_ref(), "{answer:?}");
    assert_eq!(browser.follow(answer).await.status, 200);
    // Without a session that would lead round and round.
    browser.cookies.clear();
    assert_eq!(browser.step(&home).await.status, 400);
}

#[tokio::test]
async fn nobody_is_sent_to_another_site_after_a_login() {
    let site = Site::start().await;
    for path in ["//evil.test/", "/\\evil.test", "/%2F/evil.test", "///evil.test", "/..//evil.test"] {
        let mut browser = site.browser();
        let answer = browser.step(&format!("https://app.test{path}")).await;
        if answer.status != 302 {
            assert_eq!(answer.status, 400, "{path}");
            continue;
        }
        let page = browser.follow(answer).await;
        let back = browser.log_in(&page, "alice").await;
        let home = back.field("location").expect("a place").to_owned();
        let answer = browser.step(&home).await;
        let place = answer.field("location").expect("a place");
        assert!(
            place.starts_with('/') && !place.starts_with("//") && !place.contains('\\'),
            "{path}: {place}"
        );
    }
}

#[tokio::test]
async fn a_logout_ends_the_session_here_and_at_the_provider() {
    let site = Site::start().await;
    let mut browser = site.logged_in("alice").await;
    let copy = browser.clone();
    let sent = browser.step("https://app.test/oauth2/logout").await;
    assert_eq!(sent.status, 302);
    let place = sent.field("location").expect("a place");
    assert!(
        place.starts_with(&format!("{}/session/end?client_id=web&id_token_hint=", site.oidc.issuer)),
        "{place}"
    );
    assert!(session(&browser).is_none());
    assert_eq!(look(&mut copy.clone()).await.status, 302, "a copy of the cookie is good for nothing");
    let page = browser.follow(sent).await;
    let ended = browser.submit(&page, &[("logout", "yes")]).await;
    let bye = browser.follow(ended).await;
    assert_eq!((bye.status, bye.text().as_str()), (200, "bye"));
    let page = browser.visit("/start").await;
    assert!(page.text().contains("name=\"password\""), "the provider asks again");
    // Another login is another session.
    let back = browser.log_in(&page, "alice").await;
    assert_eq!(browser.follow(back).await.status, 200);
}

#[tokio::test]
async fn a_provider_that_ends_sessions_says_so_in_the_background() {
    for sid in [true, false] {
        let mut site = Site::start().await;
        let backchannel = format!("http://{}/oauth2/backchannel", site.gateway.address());
        site.oidc.users(serde_json::json!({"ttl": 300, "backchannel": backchannel, "sid": sid})).await;
        let (mut alice, mut bob) = (site.logged_in("alice").await, site.logged_in("bob").await);
        assert_eq!(look(&mut alice).await.status, 200);
        // Alice logs out at the provider itself, and the gateway's cookies stay as they are.
        let mut at_provider = alice.clone();
        let page = at_provider.go(&format!("{}/session/end", site.oidc.issuer)).await;
        at_provider.submit(&page, &[("logout", "yes")]).await;
        soon("the end of the session", async {
            while look(&mut alice.clone()).await.status != 302 {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
        assert_eq!(look(&mut bob).await.status, 200, "others go on");
    }
}

/// Back-Channel Logout s2.8: 200 says that the logout was carried out.
#[tokio::test]
async fn a_provider_that_ends_sessions_is_heard_on_a_route_that_answers_by_itself() {
    let (mut oidc, origin) = (Oidc::start().await, Origin::echo().await);
    let own = "routes:
  - name: own
    match: {paths: [/oauth2/backchannel]}
    filters: [{authenticate: {any_of: [web]}}]
    respond: {status: 404}
";
    let gateway = Gateway::start(&document(&origin, &oidc, &["first"]).replacen("routes:\n", own, 1)).await;
    let backchannel = format!("http://{}/oauth2/backchannel", gateway.address());
    oidc.users(serde_json::json!({"ttl": 300, "backchannel": backchannel, "sid": true})).await;
    let site = Site { oidc, origin, gateway };
    let mut alice = site.logged_in("alice").await;
    let mut at_provider = alice.clone();
    let page = at_provider.go(&format!("{}/session/end", site.oidc.issuer)).await;
    at_provider.submit(&page, &[("logout", "yes")]).await;
    let told = site.gateway.log_line(|line| line["path"] == "/oauth2/backchannel").await;
    assert_eq!(told["status"], 200);
    assert_eq!(look(&mut alice).await.status, 302, "the session is over");
}

#[tokio::test]
async fn who_was_shut_out_stays_so_through_logouts_and_logins() {
    let (mut oidc, origin) = (Oidc::start().await, Origin::echo().await);
    let gateway = Gateway::administered(&document(&origin, &oidc, &["first"])).await;
    let backchannel = format!("http://{}/oauth2/backchannel", gateway.address());
    oidc.users(serde_json::json!({"ttl": 300, "backchannel": backchannel, "sid": false})).await;
    let site = Site { oidc, origin, gateway };
    let mut alice = site.logged_in("alice").await;
    let entry = r#"{"identity": "web", "sub": "alice", "expires": 4102444800}"#;
    assert_eq!(site.gateway.ask_admin("POST /api/revocations", entry).await.status, 201);
    // She logs out at the provider, which tells the gateway of it.
    let page = alice.go(&format!("{}/session/end", site.oidc.issuer)).await;
    alice.submit(&page, &[("logout", "yes")]).await;
    let told = site.gateway.log_line(|line| line["path"] == "/oauth2/backchannel").await;
    assert_eq!(told["status"], 200);
    let list = site.gateway.ask_admin("GET /api/revocations", "").await;
    assert!(list.text().contains("4102444800") && !list.text().contains("issued_before"), "{list:?}");

    let page = alice.visit("/start").await;
    let back = alice.log_in(&page, "alice").await;
    let answer = alice.step(back.field("location").expect("a place")).await;
    assert_eq!((answer.status, answer.problem().as_str()), (403, "forbidden"));
    assert!(answer.head.all("set-cookie").is_empty(), "{answer:?}");
}

#[tokio::test]
async fn what_is_no_logout_token_of_the_provider_ends_nothing() {
    let site = Site::start().await;
    let mut alice = site.logged_in("alice").await;
    let url = "https://app.test/oauth2/backchannel";
    let token = site.oidc.signed().await;
    let mut stranger = site.browser();
    for form in [
        None,
        Some(String::new()),
        Some("logout_token=".to_owned()),
        Some("logout_token=e30.e30.e30".to_owned()),
        Some(format!("logout_token={token}")),
        Some(format!("logout_token={token}&logout_token={token}")),
    ] {
        let answer = stranger.send("POST", url, form.as_deref(), "").await;
        assert_eq!((answer.status, answer.problem().as_str()), (400, "bad-request"), "{form:?}");
    }
    assert_eq!(stranger.send("GET", url, None, "Accept: text/html\r\n").await.status, 400);
    assert_eq!(look(&mut alice).await.status, 200);
    assert_eq!(site.origin.heads().len(), 2, "none of it went on");
}

#[tokio::test]
async fn a_session_is_renewed_once_before_its_tokens_end() {
    let mut site = Site::start().await;
    site.oidc.users(serde_json::json!({"ttl": 5})).await;
    let mut alice = site.logged_in("alice").await;
    let before = session(&alice).expect("a session").clone();
    let old = alice.clone();
    let asked = site.oidc.requests("/token").await;
    let page = soon("a renewed session", async {
        loop {
            let answer = look(&mut alice).await;
            assert_eq!(answer.status, 200, "nobody has to log in again");
            if session(&alice).expect("a session") != &before {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(page.head.all("set-cookie").iter().any(|line| line.starts_with("__Host-web=1.")), "{page:?}");
    assert_eq!(page.field("cache-control"), Some("private"), "the cookies are for nobody else");
    // Pages that were on their way with the cookies of before are answered, and the refresh token is used once.
    let pages: Vec<_> = (0..8)
        .map(|_| {
            let mut old = old.clone();
            tokio::spawn(async move { look(&mut old).await.status })
        })
        .collect();
    for page in pages {
        assert_eq!(page.await.expect("no failure"), 200);
    }
    assert_eq!(site.oidc.requests("/token").await, asked + 1);
}

#[tokio::test]
async fn a_reload_has_no_refresh_token_used_again() {
    let (mut oidc, origin) = (Oidc::start().await, Origin::echo().await);
    oidc.users(serde_json::json!({"ttl": 5})).await;
    let gateway = Gateway::administered(&document(&origin, &oidc, &["first"])).await;
    let mut site = Site { oidc, origin, gateway };
    let alice = site.logged_in("alice").await;
    let asked = site.oidc.requests("/token").await;
    let renewed = async {
        while site.oidc.requests("/token").await == asked {
            assert_eq!(look(&mut alice.clone()).await.status, 200);
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    soon("a renewal", renewed).await;
    site.gateway.rewrite_administered(&document(&site.origin, &site.oidc, &["second", "first"]));
    assert_eq!(site.gateway.ask_admin("POST /api/reload", "").await.status, 200);
    // The cookies of before are on their way still.
    assert_eq!(look(&mut alice.clone()).await.status, 200);
    assert_eq!(site.oidc.requests("/token").await, asked + 1);
}

#[tokio::test]
async fn sessions_live_on_as_long_as_a_key_opens_them() {
    let site = Site::start().await;
    let mut alice = site.logged_in("alice").await;
    let before = session(&alice).expect("a session").clone();
    let reload = async |keys: &[&str], status: u16| {
        std::fs::write(site.gateway.file(), site.gateway.text(&document(&site.origin, &site.oidc, keys)))
            .expect("write");
        soon("the new keys", async {
            let mut browser = alice.clone();
            while look(&mut browser).await.status != status {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await;
    };
    reload(&["second", "first"], 200).await;
    reload(&["second"], 302).await;
    reload(&["first"], 200).await;
    assert_eq!(session(&alice), Some(&before));
    let mut changed = before.clone().into_bytes();
    let last = changed.len() - 5;
    changed[last] = if changed[last] == b'A' { b'B' } else { b'A' };
    alice
        .cookies
        .insert(("app.test".to_owned(), "__Host-web".to_owned()), String::from_utf8(changed).expect("text"));
    assert_eq!(look(&mut alice).await.status, 302, "what was changed is no session");
}

#[tokio::test]
async fn without_the_provider_sessions_go_on_and_logins_wait() {
    let mut site = Site::start().await;
    let mut alice = site.logged_in("alice").await;
    site.oidc.stop().await;
    assert_eq!(look(&mut alice).await.status, 200);
    let gateway = Gateway::start(&document(&site.origin, &site.oidc, &["first"])).await;
    let mut elsewhere = Browser::new(gateway.address());
    elsewhere.cookies = alice.cookies.clone();
    assert_eq!(
        look(&mut elsewhere).await.status,
        200,
        "another gateway with the same keys knows the session"
    );
    let answer = look(&mut Browser::new(gateway.address())).await;
    assert_eq!((answer.status, answer.problem().as_str()), (503, "filter-unavailable"));
    assert!(answer.field("retry-after").is_some());
}

#[tokio::test]
async fn a_session_holds_for_each_filter_that_asks_for_it() {
    let (oidc, origin) = (Oidc::start().await, Origin::echo().await);
    let twice = "filters: [{authenticate: {any_of: [web], optional: true}}, ";
    let text = document(&origin, &oidc, &["first"]).replacen("filters: [", twice, 1);
    let site = Site { gateway: Gateway::start(&text).await, oidc, origin };
    let mut alice = site.logged_in("alice").await;
    assert_eq!(look(&mut alice).await.status, 200, "nobody is sent to log in again");
    for head in site.origin.heads() {
        assert_eq!((head.field("x-consumer"), head.field("cookie")), (Some("alice"), None));
    }
}
