//! Hosts: one spelling each, and patterns match by it.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tollhouse_filters::host::{HostPattern, host_of};

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(pattern) = HostPattern::parse(text) {
        let written = pattern.to_string();
        assert_eq!(HostPattern::parse(&written).as_ref(), Ok(&pattern), "{written}");
        match &pattern {
            HostPattern::Exact(name) => assert!(pattern.matches(name)),
            HostPattern::Wildcard(suffix) => {
                assert!(!pattern.matches(suffix) && pattern.matches(&format!("a.{suffix}")));
            }
        }
    }
    let Some(host) = host_of(text) else { return };
    assert_eq!(host_of(&host).as_deref(), Some(&*host), "twice");
    assert_eq!(host_of(&format!("{host}:80")).as_deref(), Some(&*host), "with a port");
    let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._:[]".contains(&byte);
    assert!(!host.is_empty() && host.bytes().all(known) && !host.ends_with('.'), "{host:?}");
    assert_eq!(host.contains(':'), host.starts_with('[') && host.ends_with(']'), "{host:?}");
    assert_eq!(HostPattern::parse(&host), Ok(HostPattern::Exact((&*host).into())));
});
