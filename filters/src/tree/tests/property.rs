//! The tree against an independent parser, and against arbitrary bytes.

use proptest::prelude::*;
use serde_yaml::Value as Yaml;

use super::*;
use crate::tree::parse_bytes;

const DOCUMENTS: &[&str] = &[
    "a: 1\nb: [x, 'y', \"z\\n\\u00e9\"]\nc: {d: ~, e: , f: null}\n",
    "- a\n-  - b\n   - c\n- - d\n-\n  e: f\n",
    "text: |\n  one\n   two\n\n  three\nfolded: >-\n  a\n  b\n\n  c\nkeep: |+\n  x\n\n",
    "a: plain text# and hash # comment\n",
    "url: http://x.y/z?a=b#c\ntime: 12:30:45\nip: 10.0.0.0/8\nneg: -7\nf: 1.5e3\nhex: 0xff\noct: 0o17\n",
    "bools: [true, True, TRUE, false, yes, no, on, off, y, n]\n",
    "a: &x {b: 1}\nc: *x\nd: [*x, *x]\n",
    "{\"json\": [1, 2.5, \"three\", null, true, {\"deep\": []}]}",
    "? complex\n: value\n? other\n",
    "\"quoted key\": 1\n'single ''quote''': 2\n",
    "multi: this is\n  a folded\n  plain scalar\nquoted: \"line one\n  line two\\\n  joined\"\n",
    "empty_list: []\nempty_map: {}\nempty_text: ''\n",
    "--- # a comment\na: 1\n...\n",
    "nan: [.inf, -.inf, .5, 1e5]\n",
    "same_indent:\n- 1\n- 2\nother: 3\n",
    "crlf: 1\r\nlist:\r\n  - a\r\n  - b\r\n",
];

fn as_yaml(node: &Node) -> Yaml {
    serde_yaml::to_value(node).expect("plain data")
}

#[test]
fn handwritten_documents_read_as_another_parser_reads_them() {
    for text in DOCUMENTS {
        let expected: Yaml = serde_yaml::from_str(text).expect("YAML");
        assert_eq!(as_yaml(&tree(text)), expected, "{text}");
    }
}

/// Text with everything that YAML gives a meaning to.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-z/_-]{0,12}",
        "[ -~]{0,16}",
        "[a-z:#\\-?\\[\\]{},&*!|>'\"%@` \n\té\u{1F600}]{0,12}",
        Just("true".to_owned()),
        Just("null".to_owned()),
        Just("~".to_owned()),
        "[0-9]{1,4}",
        "[-+]?[0-9]{1,3}\\.[0-9]{1,3}",
    ]
}

fn document() -> impl Strategy<Value = Yaml> {
    let leaf = prop_oneof![
        Just(Yaml::Null),
        any::<bool>().prop_map(Yaml::from),
        any::<i64>().prop_map(Yaml::from),
        any::<u64>().prop_map(Yaml::from),
        (-1e15..1e15f64).prop_map(Yaml::from),
        text().prop_map(Yaml::from),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        let key = text().prop_filter("no key that we refuse", |key| !matches!(key.as_str(), "" | "<<"));
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Yaml::from),
            prop::collection::btree_map(key, inner, 0..8)
                .prop_map(|map| Yaml::Mapping(map.into_iter().map(|(k, v)| (k.into(), v)).collect())),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_documents_read_as_another_parser_reads_them(value in document()) {
        let text = serde_yaml::to_string(&value).expect("plain data");
        let expected: Yaml = serde_yaml::from_str(&text).expect("its own output");
        prop_assert_eq!(as_yaml(&tree(&text)), expected, "{}", text);
    }

    #[test]
    fn json_reads_as_yaml(value in document()) {
        let text = serde_json::to_string(&value).expect("plain data");
        let expected: Yaml = serde_yaml::from_str(&text).expect("JSON is YAML");
        prop_assert_eq!(as_yaml(&tree(&text)), expected, "{}", text);
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = parse_bytes(&bytes, FileId(0), &Limits::default());
    }

    #[test]
    fn arbitrary_yaml_like_text_never_panics_and_errors_have_a_place(
        text in "[a-b0:#\\-?\\[\\]{},&*!|>'\"%@`<~. \n\té\u{85}\u{2028}]{0,80}"
    ) {
        if let Err(errors) = parse(&text, FileId(3), &Limits::default()) {
            prop_assert!(!errors.is_empty());
            for error in errors {
                prop_assert!(error.at.line > 0 && error.at.column > 0 && error.at.file == FileId(3));
            }
        }
    }
}
