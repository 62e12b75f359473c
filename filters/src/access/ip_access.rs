//! `ip_access`: lets requests pass or not by the address of their client.
//!
//! ```yaml
//! - ip_access: {allow: [10.0.0.0/8, "fd00::/8"], deny: [10.9.0.0/16]}
//! ```
//!
//! An address in `deny` is refused, whatever `allow` says; with `allow`, so is every address that is not
//! in it. The address is the client's behind `server.trusted_proxies`, and an IPv4-mapped IPv6 address
//! is the IPv4 address it holds. Who comes over a Unix socket has no address: it is in no range, so
//! that `allow` refuses it.
//!
//! A file holds an address or a range on each line; what follows `#` is a comment. It is read with the
//! document, and a change of it reloads the document.
//!
//! Hardened against untrusted clients: a decision walks down a prefix trie, however many ranges there are.

use std::sync::Arc;

use async_trait::async_trait;
use pingora_http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::{Context, Verdict};
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome};
use crate::phase::{OnRequest, Phases};
use crate::problem::{FORBIDDEN, NO_ROUTE, Problem};
use crate::values::{IpSet, Network};

/// Who may pass.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Addresses and ranges that may pass; when there are any, others may not.
    pub allow: Vec<Network>,
    /// A file of further addresses and ranges that may pass, relative to the document; even an
    /// empty one means that others may not.
    pub allow_file: Option<String>,
    /// Addresses and ranges that may not pass, even if they are in `allow`.
    pub deny: Vec<Network>,
    /// A file of further addresses and ranges that may not pass, relative to the document.
    pub deny_file: Option<String>,
    /// The answer to who may not: 403, or 404 as if there were nothing here.
    pub status: u16,
}

impl Default for Options {
    fn default() -> Self {
        Self { allow: Vec::new(), allow_file: None, deny: Vec::new(), deny_file: None, status: 403 }
    }
}

/// See the [module](self).
pub struct IpAccess {
    allow: Option<IpSet>,
    deny: IpSet,
    hidden: bool,
}

impl Filter for IpAccess {
    const NAME: &'static str = "ip_access";
    const GUARD: bool = true;
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        if !matches!(options.status, 403 | 404) {
            return Err(BuildError::at("status", "expected 403 or 404"));
        }
        let only_allowed = !options.allow.is_empty() || options.allow_file.is_some();
        let allow = set(options.allow, "allow_file", options.allow_file.as_deref(), build)?;
        let denies = !options.deny.is_empty() || options.deny_file.is_some();
        let deny = set(options.deny, "deny_file", options.deny_file.as_deref(), build)?;
        if !only_allowed && !denies {
            return Err(BuildError::new("everybody would pass: add `allow` or `deny`"));
        }
        let allow = only_allowed.then_some(allow);
        Ok(Phases::new().on_request(Arc::new(Self { allow, deny, hidden: options.status == 404 })))
    }
}

/// What was written, and what is in a file.
fn set(
    mut networks: Vec<Network>,
    option: &str,
    file: Option<&str>,
    build: &mut Build<'_>,
) -> Result<IpSet, BuildError> {
    if let Some(file) = file {
        let text = build.file(option, file)?;
        for (at, line) in text.lines().enumerate() {
            let entry = line.split('#').next().unwrap_or_default().trim();
            if !entry.is_empty() {
                let wrong = |_| BuildError::at(option, format!("line {} is no address or range", at + 1));
                networks.push(entry.parse().map_err(wrong)?);
            }
        }
    }
    Ok(networks.into())
}

#[async_trait]
impl OnRequest for IpAccess {
    async fn on_request(&self, _: &mut RequestHeader, ctx: &mut Context) -> Result<Outcome, FilterError> {
        let reason = if ctx.client.is_in(&self.deny) {
            "the address is denied"
        } else if self.allow.as_ref().is_some_and(|allow| !ctx.client.is_in(allow)) {
            "the address is not allowed"
        } else {
            return Ok(Outcome::Continue);
        };
        let client = ctx.client.address.to_string();
        ctx.decide(Verdict::Changed, reason, &[("client", &client)]);
        let kind = if self.hidden { &NO_ROUTE } else { &FORBIDDEN };
        let problem = Problem::new(kind);
        Ok(if self.hidden { problem } else { problem.detail(reason) }.into())
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use crate::testing::{Chain, Request, chain, get, refused};

    fn from(address: &str) -> Request {
        let address: IpAddr = address.parse().expect("an address");
        get("/").with(|ctx| ctx.client.address = address)
    }

    async fn passes(chain: &Chain, address: &str) {
        chain.send(from(address)).await.continues();
    }

    async fn is_refused(chain: &Chain, address: &str) {
        chain.send(from(address)).await.responds(403);
    }

    #[tokio::test]
    async fn with_an_allow_list_others_are_refused() {
        let chain = chain("- ip_access: {allow: [10.0.0.0/8, 192.0.2.7, 'fd00::/8']}");
        for address in ["10.0.0.1", "10.255.255.255", "192.0.2.7", "fd12::1", "::ffff:10.1.2.3"] {
            passes(&chain, address).await;
        }
        for address in ["11.0.0.0", "192.0.2.8", "::1", "::ffff:192.0.2.8"] {
            is_refused(&chain, address).await;
        }
    }

    #[tokio::test]
    async fn with_a_deny_list_others_pass() {
        let chain = chain("- ip_access: {deny: [203.0.113.0/24, '2001:db8::/32']}");
        passes(&chain, "203.0.114.1").await;
        passes(&chain, "2001:db9::1").await;
        is_refused(&chain, "203.0.113.77").await;
        is_refused(&chain, "2001:db8::77").await;
        is_refused(&chain, "::ffff:203.0.113.77").await;
    }

    #[tokio::test]
    async fn what_is_denied_is_not_allowed_however_exactly_that_is_written() {
        let chain = chain("- ip_access: {allow: [10.0.0.0/8, 10.9.9.9], deny: [10.9.0.0/16]}");
        passes(&chain, "10.8.0.1").await;
        is_refused(&chain, "10.9.9.9").await;
        is_refused(&chain, "192.0.2.1").await;
    }

    #[tokio::test]
    async fn who_has_no_address_is_in_no_range() {
        let nobody = || from("0.0.0.0").with(|ctx| ctx.client.port = None);
        chain("- ip_access: {allow: [0.0.0.0/0, '::/0']}").send(nobody()).await.responds(403);
        chain("- ip_access: {deny: [0.0.0.0/0]}").send(nobody()).await.continues();
    }

    #[tokio::test]
    async fn the_unspecified_address_of_who_has_a_port_is_an_address() {
        let chain = chain("- ip_access: {deny: [0.0.0.0/0, '::/0']}");
        is_refused(&chain, "0.0.0.0").await;
        is_refused(&chain, "::").await;
    }

    #[tokio::test]
    async fn a_refusal_can_look_as_if_nothing_were_here() {
        let chain = chain("- ip_access: {deny: [192.0.2.0/24], status: 404}");
        let sent = chain.send(get("/")).await;
        assert_eq!(sent.ctx.ended_by.as_ref().map(|ended| ended.filter), Some("ip_access"));
        sent.responds(404);
    }

    #[tokio::test]
    async fn a_dry_run_refuses_nobody() {
        passes(&chain("- ip_access: {deny: [0.0.0.0/0]}\n  dry_run: true"), "192.0.2.1").await;
    }

    #[tokio::test]
    async fn files_add_to_the_lists() {
        // The files of tests are given by the harness.
        let chain = chain("- ip_access: {allow: [198.51.100.1], allow_file: networks.txt}");
        for address in ["198.51.100.1", "10.1.1.1", "2001:db8::5"] {
            passes(&chain, address).await;
        }
        is_refused(&chain, "192.0.2.1").await;
        let chain = crate::testing::chain("- ip_access: {allow_file: empty.txt}");
        is_refused(&chain, "192.0.2.1").await;
    }

    #[tokio::test]
    async fn ten_thousand_ranges_are_as_good_as_one() {
        let ranges: Vec<String> = (0..10_000).map(|n| format!("10.{}.{}.0/25", n / 256, n % 256)).collect();
        let chain = chain(&format!("- ip_access: {{deny: [{}]}}", ranges.join(", ")));
        is_refused(&chain, "10.39.15.127").await;
        passes(&chain, "10.39.15.128").await;
        passes(&chain, "10.39.16.1").await;
    }

    #[test]
    fn options_that_make_no_sense_are_refused_at_their_place() {
        assert!(refused("- ip_access: {}").contains("everybody would pass"));
        assert!(refused("- ip_access: {deny: [10.0.0.0/8], status: 200}").starts_with("status"));
        assert!(refused("- ip_access: {deny: [10.0.0.1/8]}").starts_with("deny[0]"));
        assert!(refused("- ip_access: {deny_file: nowhere.txt}").starts_with("deny_file: cannot read"));
        let bad = refused("- ip_access: {deny_file: bad.txt}");
        assert_eq!(bad, "deny_file: line 2 is no address or range");
    }
}
