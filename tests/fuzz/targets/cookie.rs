//! Cookies of sessions: none holds that the gateway did not make, and none of them goes on.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tollhouse_filters::condition::cookie_values;
use tollhouse_filters::identity::{Identities, Presented};
use tollhouse_filters::testing::request;
use tollhouse_fuzz::identity::{check, identities};

static IDENTITIES: LazyLock<Identities> = LazyLock::new(identities);

fuzz_target!(|input: &[u8]| {
    let lines: Vec<(&'static str, &[u8])> =
        input.split(|byte| *byte == b'\n').take(8).map(|line| ("cookie", line)).collect();
    let Some(presented) = check(&IDENTITIES, "web", &lines) else { return };
    assert!(matches!(presented, Presented::Nothing), "{presented:?}");
    let (mut head, mut ctx) = request("GET", "/");
    for (name, value) in &lines {
        head.append_header(*name, *value).expect("a field");
    }
    IDENTITIES.hide_sessions(&mut head, &mut ctx);
    for name in ["__Host-web", "__Host-web.1", "__Host-web.4", "__Host-web.login0", "__Host-web.login3"] {
        assert_eq!(cookie_values(&head.headers, name).count(), 0, "{name}");
    }
});
