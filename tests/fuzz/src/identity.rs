//! Identities of a document, with nothing around them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tollhouse_filters::identity::consumers::Consumers;
use tollhouse_filters::identity::{
    ConsumerSpec, Identities, IdentitySpec, Presented, Site, build, index, layout,
};
use tollhouse_filters::plan::Plans;
use tollhouse_filters::testing::{Alone, request, yaml};
use tollhouse_filters::values::Name;
use tollhouse_filters::world::World;

/// 2026-01-01T00:00:00Z.
pub const NOW: u64 = 1_767_225_600;
/// The secret of the identities `token` and `signed`.
pub const SECRET: &str = "a secret of thirty-two bytes, or so";

/// The identities `token`, `signed` and `web`.
pub fn identities() -> Identities {
    let identities: BTreeMap<Name, IdentitySpec> = yaml(&format!(
        "token: {{type: jwt, algorithms: [HS256], secret: '{SECRET}', issuer: joe, audiences: [api]}}
signed: {{type: hmac, components: ['@method']}}
web: {{type: oidc, issuer: 'https://id.test', client_id: web, redirect_uri: 'https://app.test/callback',
  cookie_keys: ['{SECRET}']}}"
    ));
    let consumers: Vec<ConsumerSpec> =
        yaml(&format!("[{{name: acme, credentials: [{{type: hmac, id: k1, secret: '{SECRET}'}}]}}]"));
    let layout = layout(&identities, &Plans::default());
    let (index, errors) = index(&layout, consumers);
    assert!(errors.is_empty(), "{errors:?}");
    let world = World::dry();
    let site = Site { world: &world, surroundings: &Alone };
    let (built, errors) = build(&identities, &Arc::new(Consumers::new(layout, index)), &site);
    assert!(errors.is_empty(), "{errors:?}");
    built
}

/// What an identity says of a request with these fields; none if they are no fields.
pub fn check(identities: &Identities, name: &str, fields: &[(&'static str, &[u8])]) -> Option<Presented> {
    let (mut head, ctx) = request("GET", "/a?b=1");
    for (field, value) in fields {
        head.append_header(*field, *value).ok()?;
    }
    let identity = identities.get(name).expect("an identity");
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(NOW);
    let checked = identity.check(&head, &ctx, now).now_or_never();
    Some(checked.expect("nothing to wait for"))
}
