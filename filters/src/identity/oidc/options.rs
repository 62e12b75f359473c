//! What users write about logins.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::filter::BuildError;
use crate::identity::client::ClientAuth;
use crate::identity::jwt::AlgorithmName;
use crate::values::{Duration, Name, Secret, Url};

/// Users who log in at a provider of OpenID Connect, with a browser; who they are is kept in encrypted cookies.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "OidcIdentity")]
pub(in crate::identity) struct Options {
    /// What it is: `oidc`.
    #[serde(rename = "type")]
    pub(in crate::identity) _kind: Type,
    /// The provider; its document says where everything is (OpenID Connect Discovery).
    pub(in crate::identity) issuer: Url,
    /// What the provider calls the gateway.
    pub(in crate::identity) client_id: String,
    /// What proves that to it; none for a client that it calls public.
    #[serde(default)]
    pub(in crate::identity) client_secret: Option<Secret>,
    /// How that is shown (RFC 6749 s2.3.1).
    #[serde(default)]
    pub(in crate::identity) client_auth: ClientAuth,
    /// Where browsers come back to, as the provider knows it: https, except on this machine. Its host is the one that
    /// users see, and its path has to be on a route with this identity.
    pub(in crate::identity) redirect_uri: Url,
    /// Secrets of at least 32 bytes that cookies are encrypted with: by the first one; all of them decrypt.
    pub(in crate::identity) cookie_keys: Vec<Secret>,
    /// What cookies are called, behind `__Host-`; by default the identity's name.
    #[serde(default)]
    pub(in crate::identity) cookie: Option<CookieName>,
    /// The store that sessions are kept in, for all gateways that share it: cookies hold nothing but which one, and who is
    /// logged out is so everywhere. While it is away, 503, whatever its `on_failure` says. By default sessions are in
    /// cookies.
    #[serde(default)]
    pub(in crate::identity) store: Option<Name>,
    /// What is asked for; `openid` always is. With `offline_access`, or where the provider gives refresh tokens anyway,
    /// sessions are refreshed.
    #[serde(default = "openid")]
    pub(in crate::identity) scopes: Vec<String>,
    /// The only algorithms that tokens of the provider may be signed with: those of `jwt`, but none of a secret
    /// (`HS256`, `HS384`, `HS512`).
    #[serde(default = "rs256")]
    pub(in crate::identity) algorithms: Vec<AlgorithmName>,
    /// How long a session lasts at most, however often it is refreshed; without refresh tokens, as long as the provider's
    /// tokens hold.
    #[serde(default = "eight_hours")]
    pub(in crate::identity) session: Duration,
    /// The path that ends a session here and at the provider (OpenID Connect RP-Initiated Logout).
    #[serde(default)]
    pub(in crate::identity) logout: Option<LocalPath>,
    /// Where browsers go after that, as the provider knows it.
    #[serde(default)]
    pub(in crate::identity) post_logout_redirect_uri: Option<Url>,
    /// The path at which the provider says that sessions have ended (OpenID Connect Back-Channel Logout).
    #[serde(default)]
    pub(in crate::identity) backchannel_logout: Option<LocalPath>,
    /// The upstream through which the provider is called; by default that is the host of the URL itself.
    #[serde(default)]
    pub(in crate::identity) upstream: Option<String>,
    /// Longest wait for an answer of the provider.
    #[serde(default = "five_seconds")]
    pub(in crate::identity) timeout: Duration,
}

/// The one value of `type`.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "OidcType")]
pub(in crate::identity) enum Type {
    /// `oidc`
    Oidc,
}

/// The name of a cookie (RFC 6265 s4.1.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::identity) struct CookieName(pub(super) Box<str>);

/// A path of the gateway's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::identity) struct LocalPath(pub(super) Box<str>);

mod scalars {
    use std::fmt;

    use super::{CookieName, LocalPath};
    use crate::values::Scalar;

    impl Scalar for CookieName {
        const EXPECTED: &'static str = "a name of at most 64 letters, digits, `_` and `-`";
        const PATTERN: Option<&'static str> = Some("^[A-Za-z0-9_-]{1,64}$");
        const EXAMPLE: &'static str = "session";

        fn read(text: &str) -> Option<Self> {
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
            (!text.is_empty() && text.len() <= 64 && text.bytes().all(is_plain)).then(|| Self(text.into()))
        }
    }

    crate::scalar!(CookieName);

    impl fmt::Display for CookieName {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }

    impl Scalar for LocalPath {
        const EXPECTED: &'static str = "a path of plain characters, such as `/oauth2/logout`";
        const PATTERN: Option<&'static str> = Some("^(/[A-Za-z0-9._~-]+)+$");
        const EXAMPLE: &'static str = "/oauth2/logout";

        fn read(text: &str) -> Option<Self> {
            super::is_plain_path(text).then(|| Self(text.into()))
        }
    }

    crate::scalar!(LocalPath);

    impl fmt::Display for LocalPath {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.0)
        }
    }
}

/// A path that is the same however it is normalised.
fn is_plain_path(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._~-".contains(&byte);
    let mut segments = text.strip_prefix('/').unwrap_or_default().split('/');
    segments.all(|segment| !["", ".", ".."].contains(&segment) && segment.bytes().all(is_plain))
}

impl Options {
    /// Checks what its types cannot.
    pub(super) fn check(&self) -> Result<(), BuildError> {
        let Self { client_id, redirect_uri, algorithms, cookie_keys, scopes, .. } = self;
        if client_id.is_empty() {
            return Err(BuildError::at("client_id", "expected what the provider calls the gateway"));
        }
        if !redirect_uri.is_https() && !redirect_uri.is_loopback() {
            return Err(BuildError::at(
                "redirect_uri",
                "expected an https URL; only on this machine it may be http",
            ));
        }
        if redirect_uri.target().query().is_some() || !is_plain_path(redirect_uri.target().path()) {
            let message = "expected a path of plain characters, such as `/oauth2/callback`, and no query";
            return Err(BuildError::at("redirect_uri", message));
        }
        let mut paths = vec![redirect_uri.target().path()];
        let further = [("logout", &self.logout), ("backchannel_logout", &self.backchannel_logout)];
        for (option, path) in further.into_iter().filter_map(|(option, path)| Some((option, path.as_ref()?)))
        {
            if paths.contains(&&*path.0) {
                return Err(BuildError::at(option, "the path is taken by another option"));
            }
            paths.push(&path.0);
        }
        if self.post_logout_redirect_uri.is_some() && self.logout.is_none() {
            return Err(BuildError::at("post_logout_redirect_uri", "there is no `logout`"));
        }
        if algorithms.is_empty() || algorithms.iter().any(AlgorithmName::is_symmetric) {
            let message = "expected at least one, and none of a secret, such as `RS256`";
            return Err(BuildError::at("algorithms", message));
        }
        let is_scope = |scope: &String| {
            !scope.is_empty() && scope.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte))
        };
        if !scopes.iter().all(is_scope) {
            return Err(BuildError::at("scopes", "expected words without spaces (RFC 6749 s3.3)"));
        }
        match cookie_keys.iter().all(|key| key.expose().len() >= 32) && !cookie_keys.is_empty() {
            true => Ok(()),
            false => Err(BuildError::at("cookie_keys", "expected secrets of at least 32 bytes")),
        }
    }

    /// All that is asked for, as one text.
    pub(super) fn scope(&self) -> String {
        let others = self.scopes.iter().map(String::as_str).filter(|scope| *scope != "openid");
        ["openid"].into_iter().chain(others).collect::<Vec<_>>().join(" ")
    }

    /// The path that browsers come back to.
    pub(super) fn callback(&self) -> &str {
        self.redirect_uri.target().path()
    }
}

fn openid() -> Vec<String> {
    vec!["openid".to_owned()]
}

fn rs256() -> Vec<AlgorithmName> {
    vec![AlgorithmName::RS256]
}

fn eight_hours() -> Duration {
    Duration::from_secs(8 * 3600)
}

fn five_seconds() -> Duration {
    Duration::from_secs(5)
}
