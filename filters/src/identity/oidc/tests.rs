//! What needs no provider: who is sent where, and which documents are refused.

use crate::testing::{Chain, chain_with, get, refused_with, send};

const KEY: &str = "a key of thirty-two bytes, or longer";

fn document(options: &str) -> String {
    format!(
        "identities:\n  web: {{type: oidc, issuer: 'https://id.example.com', client_id: web, \
         redirect_uri: 'https://app.test/oauth2/callback', cookie_keys: ['{KEY}'], logout: /logout, \
         backchannel_logout: /backchannel{options}}}\n  keys: {{type: api_key, from: [header:x-api-key]}}\n"
    )
}

fn chain(options: &str) -> Chain {
    chain_with(&document(""), &format!("- authenticate: {options}"))
}

#[tokio::test]
async fn browsers_wait_for_the_provider_and_programs_are_told_at_once() {
    let chain = chain("{any_of: [keys, web]}");
    // Nothing is fetched in tests.
    chain.send(get("/").header("accept", "text/html")).await.responds(503).header("retry-after", "1");
    for request in [
        get("/"),
        get("/").header("accept", "application/json"),
        send("POST", "/").header("accept", "text/html"),
    ] {
        let answer = chain.send(request).await.responds(401);
        answer.header("www-authenticate", "ApiKey realm=\"keys\", Session realm=\"web\"");
    }
    // Who shows a wrong key is told so, browser or not.
    chain.send(get("/").header("accept", "text/html").header("x-api-key", "wrong")).await.responds(401);
    chain.send(get("/").header("accept", "text/html;q=0.9, */*")).await.responds(503);
}

#[tokio::test]
async fn where_users_may_stay_unknown_nobody_is_sent_to_log_in() {
    let chain = chain("{any_of: [web], optional: true}");
    let sent =
        chain.send(get("/").header("accept", "text/html").header("cookie", "__Host-web=1.AAAA; a=b")).await;
    let head = sent.continues().attempt(1).await;
    assert_eq!(head.headers["cookie"], "a=b");
}

#[tokio::test]
async fn what_is_for_the_identity_itself_never_goes_on() {
    let chain = chain("{any_of: [web], optional: true}");
    chain.send(get("/oauth2/callback")).await.responds(400);
    chain.send(get("/oauth2/callback?state=a&code=b")).await.responds(400);
    chain.send(get("/oauth2/callback?state=a&state=b&code=c")).await.responds(400);
    chain.send(send("POST", "/oauth2/callback?state=a&code=b")).await.responds(400);
    chain.send(get("/logout")).await.responds(200);
    chain.send(send("PUT", "/logout")).await.responds(405).header("allow", "GET, POST");
    let mut sent = chain.send(send("POST", "/backchannel")).await.continues();
    assert_eq!(sent.wants_body(), Some(32 * 1024));
    assert_eq!(sent.body_status(b"logout_token=x").await, Some(400));
    for path in ["/oauth2/callback/", "/oauth2/callbac", "/logout/x"] {
        chain.send(get(path)).await.continues();
    }
    let dry = chain_with(&document(""), "- authenticate: {any_of: [web]}\n  dry_run: true");
    dry.send(get("/logout")).await.continues();
}

#[test]
fn documents_that_make_no_sense_are_refused_at_their_place() {
    for (from, to, told) in [
        (
            "https://app.test/oauth2",
            "http://app.test/oauth2",
            "identities.web.redirect_uri: expected an https URL",
        ),
        ("/oauth2/callback", "/", "identities.web.redirect_uri: expected a path"),
        ("/oauth2/callback", "/oauth2/callback?a=b", "identities.web.redirect_uri: expected a path"),
        ("/oauth2/callback", "/oauth2/%63allback", "identities.web.redirect_uri: expected a path"),
        ("/logout", "/oauth2/callback", "identities.web.logout: the path is taken"),
        ("/backchannel", "/logout", "identities.web.backchannel_logout: the path is taken"),
        ("/backchannel", "/a/../b", "identities.web.backchannel_logout: expected a path"),
        (KEY, "hunter2", "identities.web.cookie_keys: expected secrets of at least 32 bytes"),
        ("client_id: web", "client_id: ''", "identities.web.client_id: expected"),
        ("https://id.example.com", "http://id.example.com", "identities.web.issuer: expected an https URL"),
        (
            "https://id.example.com",
            "https://id.example.com/?a=b",
            "identities.web.issuer: expected a URL without a query",
        ),
        ("type: oidc", "type: oidc, algorithms: [HS256]", "identities.web.algorithms: expected at least one"),
        ("type: oidc", "type: oidc, scopes: ['a b']", "identities.web.scopes: expected words"),
        ("type: oidc", "type: oidc, cookie: 'a b'", "identities.web.cookie: expected a name"),
        ("type: oidc", "type: oidc, upstream: idp", "identities.web.upstream: no upstream is named `idp`"),
        (
            "logout: /logout, ",
            "post_logout_redirect_uri: 'https://app.test/', ",
            "identities.web.post_logout_redirect_uri: there is no `logout`",
        ),
    ] {
        let document = document("").replace(from, to);
        let error = refused_with(&document, "- request_id: {}");
        assert!(error.starts_with(told), "{from} {to}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}
