//! `redirect`: sends the client elsewhere; also a route's action.
//!
//! ```yaml
//! - redirect: {to: "https://${request.host}${request.whole_path}", status: 308}
//! ```

use std::sync::Arc;

use async_trait::async_trait;
use http::header::LOCATION;
use pingora_http::{RequestHeader, ResponseHeader};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::context::Context;
use crate::filter::{Build, BuildError, Filter};
use crate::outcome::{FilterError, Outcome, Reply};
use crate::phase::{OnRequest, Phases};
use crate::template::{Escape, Template};

/// Where to, and how firmly.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The target: a URL or a path; a template whose values are percent-encoded.
    pub to: Template,
    /// 301, 302, 303, 307 or 308 (RFC 9110 s15.4); 302 by default.
    #[serde(default = "found")]
    pub status: u16,
    /// Whether the request's query is kept.
    #[serde(default = "kept")]
    pub keep_query: bool,
}

fn found() -> u16 {
    302
}

fn kept() -> bool {
    true
}

/// See the [module](self).
pub struct Redirect(Options);

impl Filter for Redirect {
    const NAME: &'static str = "redirect";
    const DECIDES: bool = true;
    type Options = Options;

    fn build(options: Options, build: &mut Build<'_>) -> Result<Phases, BuildError> {
        if ![301, 302, 303, 307, 308].contains(&options.status) {
            return Err(BuildError::at("status", "expected 301, 302, 303, 307 or 308"));
        }
        let target = options.to.to_string();
        if !target.starts_with('/') && !target.starts_with("https://") && !target.starts_with("http://") {
            return Err(BuildError::at(
                "to",
                "expected a URL or a path, such as `https://${request.host}/new`",
            ));
        }
        if !options.to.fits_a_field() {
            return Err(BuildError::at("to", "has a line break or another control character"));
        }
        build.fills_in(&options.to);
        Ok(Phases::new().on_request(Arc::new(Self(options))))
    }
}

#[async_trait]
impl OnRequest for Redirect {
    async fn on_request(
        &self,
        request: &mut RequestHeader,
        ctx: &mut Context,
    ) -> Result<Outcome, FilterError> {
        let mut location = self.0.to.render(request, ctx, Escape::Url);
        // `//host` would leave this site although a path was written.
        if location.starts_with("//") {
            location = format!("/{}", location.trim_start_matches('/'));
        }
        // What comes after a fragment's sign is the fragment (RFC 3986 s3.5).
        let end = location.find('#').unwrap_or(location.len());
        let has_query = location[..end].contains('?');
        if let Some(query) = request.uri.query().filter(|_| self.0.keep_query && !has_query) {
            location.insert_str(end, &format!("?{query}"));
        }
        let mut head = ResponseHeader::build(self.0.status, Some(2))?;
        head.insert_header(LOCATION, location)?;
        Ok(Reply::message(head, "").into())
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::{chain, get, refused};

    #[tokio::test]
    async fn path_and_query_are_kept() {
        let chain = chain("- redirect: {to: 'https://new.test${request.path}', status: 308}");
        chain.send(get("/a%20b?x=1")).await.responds(308).header("location", "https://new.test/a%20b?x=1");
    }

    #[tokio::test]
    async fn the_query_comes_before_a_fragment() {
        let to = async |to: &str| {
            let chain = chain(&format!("- redirect: {{to: '{to}'}}"));
            chain.send(get("/?x=1")).await.responds(302).field("location").expect("a target")
        };
        assert_eq!(to("/new#part").await, "/new?x=1#part");
        assert_eq!(to("/new#part?of=it").await, "/new?x=1#part?of=it");
        assert_eq!(to("/new?y=2#part").await, "/new?y=2#part");
    }

    #[tokio::test]
    async fn a_version_that_was_taken_off_the_path_is_kept_or_becomes_another() {
        let versioned = || get("/users?x=1").with(|ctx| ctx.whole_path = Some("/v2/users".into()));
        for (to, location) in [
            ("https://new.test${request.whole_path}", "https://new.test/v2/users?x=1"),
            ("/v3${request.path}", "/v3/users?x=1"),
        ] {
            let chain = chain(&format!("- redirect: {{to: '{to}', status: 308}}"));
            chain.send(versioned()).await.responds(308).header("location", location);
        }
    }

    #[tokio::test]
    async fn a_value_cannot_become_another_host() {
        let chain = chain("- redirect: {to: '/${query.next}', keep_query: false}");
        chain.send(get("/?next=/evil.test")).await.responds(302).header("location", "/%2Fevil.test");
    }

    #[tokio::test]
    async fn a_path_cannot_add_a_parameter_to_the_query_that_it_is_put_into() {
        let chain = chain("- redirect: {to: 'https://login.test/?next=${request.path}'}");
        let sent = chain.send(get("/x&prompt=none")).await.responds(302);
        sent.header("location", "https://login.test/?next=/x%26prompt%3Dnone");
    }

    #[test]
    fn a_target_that_no_field_can_hold_is_refused() {
        for to in [r"/new\n", r"https://new.test${request.path}\n", r"/\x01${query.q}"] {
            let said = refused(&format!("- redirect: {{to: \"{to}\"}}"));
            assert!(said.contains("control character"), "{to}: {said}");
        }
        // A folded text ends with the end of its line (YAML 1.2.2 s8.1.1.2).
        let folded = "- redirect:\n    to: >\n      https://new.test${request.path}\n";
        assert!(refused(folded).contains("line break"));
    }

    #[test]
    fn only_redirecting_statuses_are_taken() {
        assert!(refused("- redirect: {to: /, status: 200}").contains("308"));
        assert!(refused("- redirect: {to: 'javascript:1'}").contains("URL"));
    }
}
