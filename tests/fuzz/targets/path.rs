//! Paths: normal once, normal for ever, and with nothing left that a server could read in another way.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tollhouse_filters::path::{DotSegments, EncodedSlash, PathRules, normalize};

fuzz_target!(|input: &[u8]| {
    let Some((choice, rest)) = input.split_first() else { return };
    let Ok(path) = std::str::from_utf8(rest) else { return };
    let rules = PathRules {
        encoded_slash: [EncodedSlash::Reject, EncodedSlash::Decode, EncodedSlash::Keep]
            [usize::from(choice % 3)],
        dot_segments: if choice & 4 == 0 { DotSegments::Normalize } else { DotSegments::Reject },
        merge_slashes: choice & 8 == 0,
    };
    let Ok(normal) = normalize(path, &rules) else { return };
    let wire = normal.wire();
    assert_eq!(normalize(wire, &rules).as_ref(), Ok(&normal), "twice");
    if wire == "*" {
        return assert_eq!(path, "*");
    }
    assert!(wire.starts_with('/') && normal.matched().starts_with('/'));
    let known = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&byte);
    assert!(wire.bytes().all(known), "{wire:?}");
    assert!(normal.segments().all(|segment| segment != "." && segment != ".."), "{:?}", normal.matched());
    if rules.merge_slashes {
        assert!(!wire.contains("//"), "{wire:?}");
    }
    let lower = wire.to_ascii_lowercase();
    for escape in ["%00", "%0a", "%0d", "%2e", "%41"] {
        assert!(!lower.contains(escape), "{wire:?}");
    }
    if rules.encoded_slash != EncodedSlash::Keep {
        assert!(!lower.contains("%2f") && !lower.contains("%5c"), "{wire:?}");
    }
});
