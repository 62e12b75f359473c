//! A real provider of OpenID Connect: `oidc-provider`, on loopback.

use std::net::SocketAddr;

use serde_json::Value;

use super::{Answer, Program, exchange};

/// The secret of both clients, `caller` and `gateway`, as forms encode it.
const SECRET: &str = "a+secret+of+at+least+thirty-two+characters";

/// A provider with two clients: `caller`, who gets tokens, and `gateway`, who may ask about them.
pub(crate) struct Oidc {
    program: Program,
    /// What it calls itself.
    pub(crate) issuer: String,
}

impl Oidc {
    pub(crate) async fn start() -> Self {
        let program = Program::node("oidc/provider.mjs");
        let begun = program.says(|line| line["issuer"].is_string()).await;
        Self { program, issuer: begun["issuer"].as_str().expect("a text").to_owned() }
    }

    fn address(&self) -> SocketAddr {
        self.issuer.strip_prefix("http://").and_then(|text| text.parse().ok()).expect("an address")
    }

    /// A token that anybody can verify, for the audience `api`.
    pub(crate) async fn signed(&self) -> String {
        self.token("urn:api:jwt").await
    }

    /// A token that only the provider can read.
    pub(crate) async fn opaque(&self) -> String {
        self.token("urn:api:opaque").await
    }

    async fn token(&self, resource: &str) -> String {
        let form = format!("grant_type=client_credentials&scope=read&resource={resource}");
        let answer = self.post("/token", &form).await;
        let token = answer.json()["access_token"].as_str().map(str::to_owned);
        token.unwrap_or_else(|| panic!("{answer:?}"))
    }

    /// Has the provider forget a token.
    pub(crate) async fn revoke(&self, token: &str) {
        let answer = self.post("/token/revocation", &format!("token={token}")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    async fn post(&self, path: &str, form: &str) -> Answer {
        let form = format!("{form}&client_id=caller&client_secret={SECRET}");
        let head = format!("POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address());
        let kind = "Content-Type: application/x-www-form-urlencoded\r\n";
        let bytes = format!("{head}{kind}Content-Length: {}\r\n\r\n{form}", form.len());
        exchange(self.address(), bytes).await.unwrap_or_else(|error| panic!("{path}: {error:?}"))
    }

    /// How users log in from now on: `ttl` of their tokens in seconds, and `backchannel`, where logouts are told.
    pub(crate) async fn users(&mut self, settings: Value) {
        self.ask(&format!("web {settings}"), "web").await;
    }

    /// Signs with a new key from now on; its set has the last one as well.
    pub(crate) async fn rotate(&mut self) {
        self.ask("rotate", "rotated").await;
    }

    /// Is not there any more.
    pub(crate) async fn stop(&mut self) {
        self.ask("stop", "stopped").await;
    }

    /// Is there again.
    pub(crate) async fn resume(&mut self) {
        self.ask("start", "started").await;
    }

    /// How often this path was asked for.
    pub(crate) async fn requests(&mut self, path: &str) -> u64 {
        self.ask("requests", "requests").await["requests"][path].as_u64().unwrap_or_default()
    }

    async fn ask(&mut self, what: &str, answered: &str) -> Value {
        let before = self.program.said().len();
        self.program.tell(what);
        super::until(what, || self.program.said().get(before).cloned())
            .await
            .as_object()
            .filter(|line| line.contains_key(answered))
            .cloned()
            .map(Value::Object)
            .unwrap_or_else(|| panic!("{:?}", self.program.said()))
    }
}
