//! What parses, where it stands, and what is refused.

use super::*;
use crate::tree::{Key, Mark, Resolved, Trail, Value, parse_bytes};

const DOC: &str = "\
version: 1
routes:
  - name: ping
    match: {paths: [/ping, \"/p\"]}
  -
    name: 'été'
    x: |
      two
      lines
";

fn mark(node: &Node) -> (u32, u32) {
    (node.at.line, node.at.column)
}

fn refused_with(text: &str, limits: Limits) -> String {
    parse(text, FileId(0), &limits).expect_err("over a limit")[0].to_string()
}

#[test]
fn every_node_and_key_knows_its_place() {
    let root = tree(DOC);
    let at = |steps: &[&str]| mark(root.find(&path(steps)).expect("a node"));
    assert_eq!(mark(&root), (1, 1));
    assert_eq!(at(&["version"]), (1, 10));
    assert_eq!(at(&["routes"]), (3, 3));
    assert_eq!(at(&["routes", "0"]), (3, 5));
    assert_eq!(at(&["routes", "0", "name"]), (3, 11));
    assert_eq!(at(&["routes", "0", "match"]), (4, 12));
    assert_eq!(at(&["routes", "0", "match", "paths", "1"]), (4, 28));
    assert_eq!(at(&["routes", "1", "name"]), (6, 11));
    let key = root.find(&path(&["routes", "0"])).and_then(|route| route.mark_of_key("match"));
    assert_eq!(key, Some(Mark { file: FileId(0), line: 4, column: 5 }));
}

#[test]
fn columns_count_characters() {
    let root = tree("{é: ü, b: c}");
    assert_eq!(root.mark_of_key("b").map(|at| at.column), Some(8));
}

#[test]
fn the_nearest_node_is_the_deepest_that_exists() {
    let root = tree(DOC);
    let near = root.nearest(&path(&["routes", "0", "match", "hosts", "0"]));
    assert_eq!(mark(near), (4, 12));
    assert_eq!(root.find(&path(&["routes", "7"])), None);
    assert_eq!(mark(root.nearest(&Path::new())), (1, 1));
}

#[test]
fn a_path_reads_like_code() {
    assert_eq!(path(&["routes", "3", "match", "paths", "0"]).to_string(), "routes[3].match.paths[0]");
    assert_eq!(path(&["set", "a.b"]).to_string(), "set[\"a.b\"]");
    assert_eq!(path(&["0", "name"]).to_string(), "[0].name");
    let mut walked = path(&["a"]);
    walked.push("b");
    walked.push(1);
    assert_eq!(walked.pop(), Some(Step::Index(1)));
    assert_eq!(walked.to_string(), "a.b");
    assert_eq!(Trail::root().key("a").index(2).path().to_string(), "a[2]");
}

#[test]
fn an_empty_document_is_null() {
    for text in ["", "\n\n", "# nothing\n", "---\n", "~"] {
        assert_eq!(tree(text).value, Value::Null, "{text:?}");
    }
}

#[test]
fn quoted_and_block_scalars_are_strings() {
    let root = tree("[8080, '8080', \"8080\", !!str 8080, !!int '8080', yes]");
    let kinds = root.as_list().expect("a list").iter().map(|n| n.as_scalar().expect("a scalar").resolve());
    let number = Resolved::Unsigned(8080);
    assert_eq!(
        kinds.collect::<Vec<_>>(),
        [number, Resolved::Str, Resolved::Str, Resolved::Str, number, Resolved::Str]
    );
}

#[test]
fn every_duplicate_key_is_reported_with_both_places() {
    let errors = refused("a: 1\nb: {x: 1, x: 2}\na: 2\na: 3\n");
    assert_eq!(
        errors,
        [
            "2:11: b.x: duplicate key `x`, first at 2:5",
            "3:1: a: duplicate key `a`, first at 1:1",
            "4:1: a: duplicate key `a`, first at 1:1",
        ]
    );
}

#[test]
fn a_place_is_counted_in_each_list_and_map_that_is_open() {
    let nested = "a: [0, [x, {b: 1, c: [0, 0, {d: 1, d: 2}]}]]\ne: {x: 1, y: {x: 1}, x: 2}\n";
    let expected = [
        "1:36: a[1][1].c[2].d: duplicate key `d`, first at 1:30",
        "2:22: e.x: duplicate key `x`, first at 2:5",
    ];
    assert_eq!(refused(nested), expected);
}

#[test]
fn a_duplicate_in_a_large_map_is_found() {
    let mut text: String = (0..1000).map(|i| format!("k{i}: {i}\n")).collect();
    text.push_str("k500: again\n");
    assert_eq!(refused(&text), ["1001:1: k500: duplicate key `k500`, first at 501:1"]);
}

#[test]
fn many_duplicates_in_a_large_map_are_refused_cheaply() {
    let others: String = (0..50_000).map(|at| format!("k{at}: 0\n")).collect();
    let errors = refused(&format!("a: 0\n{}{others}", "a: 1\n".repeat(50_000)));
    assert_eq!(errors[0], "2:1: a: duplicate key `a`, first at 1:1");
    assert_eq!(errors.len(), 100, "nobody reads more");
}

#[test]
fn what_yaml_allows_and_surprises_is_refused_in_place() {
    let cases = [
        ("a: 1\n---\nb: 2\n", "2:1: a second document"),
        ("a: {<<: {b: 1}}", "1:5: a: merge keys"),
        ("? [a]\n: 1\n", "1:3: a list or map cannot be a key"),
        ("? {a: 1}\n: 1\n", "1:3: a list or map cannot be a key"),
        ("a: !secret b", "1:4: a: tag `!secret` is not supported"),
        ("a: !!binary aGk=", "1:4: a: tag `!!binary` is not supported"),
        ("a: !!set {b}", "1:4: a: tag `!!set` is not supported"),
        ("a: !!int b", "1:4: a: value does not fit its tag `!!int`"),
        ("a: *b", "1:4: a: not YAML"),
        ("a: &a [*a]", "1:8: a[0]: alias to a value that contains it"),
        ("a: &l [1]\n*l : 2", "2:1: a key cannot be a list"),
        (": 1", "1:1: a key is missing"),
        ("a: [1, 2", "not YAML"),
        ("a: \"b", "not YAML"),
        ("a:\n\tb: 1\n", "not YAML"),
        ("a: 1\n  b: 2\n", "not YAML"),
        ("a: @b", "not YAML"),
    ];
    for (text, expected) in cases {
        let errors = refused(text).join("\n");
        assert!(errors.contains(expected), "{text:?} gave {errors}");
    }
}

#[test]
fn a_quoted_merge_key_is_an_ordinary_key() {
    assert!(tree("'<<': 1").get("<<").is_some());
}

#[test]
fn odd_bytes_are_refused_where_they_stand() {
    let cases: [(&[u8], &str); 6] = [
        (b"\xef\xbb\xbfa: 1", "1:1: file begins with a byte order mark"),
        (b"a: 1\nb: \0", "2:4: control character 0x00"),
        (b"a: \x1b[0m", "1:4: control character 0x1b"),
        (b"a: 1\n\xc3\xa9: \xff", "2:4: not UTF-8"),
        (b"\x7fELF\x02\x01", "1:1: control character 0x7f"),
        (b"\xff\xfea\0", "1:1: not UTF-8"),
    ];
    for (bytes, expected) in cases {
        let errors = parse_bytes(bytes, FileId(0), &Limits::default()).expect_err("odd bytes");
        assert!(errors[0].to_string().starts_with(expected), "{bytes:?} gave {}", errors[0]);
    }
}

#[test]
fn an_alias_shares_the_node_of_its_anchor() {
    let root = tree("a: &x {b: [1, 2]}\nc: *x\n? &k key\n: 1\nd: *k\n");
    let (a, c) = (root.get("a").expect("a"), root.get("c").expect("c"));
    assert!(Arc::ptr_eq(a, c));
    assert_eq!((a.size(), root.size()), (4, 11));
    assert_eq!(root.get("d").and_then(|d| d.as_str()), Some("key"));
}

#[test]
fn a_billion_laughs_are_refused_cheaply() {
    let mut text = String::from("a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n");
    for i in 1..40 {
        let list = vec![format!("*a{}", i - 1); 9].join(", ");
        text.push_str(&format!("a{i}: &a{i} [{list}]\n"));
    }
    assert!(refused(&text)[0].contains("more than 2000000 values"), "{:?}", refused(&text));
}

#[test]
fn depth_is_bounded_however_it_is_reached() {
    let flow = "[".repeat(100_000);
    let block: String = (0..3000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    let dashes = "- ".repeat(100_000);
    let mut aliases = String::from("a0: &a0 [1]\n");
    for i in 1..10_000 {
        aliases.push_str(&format!("a{i}: &a{i} [*a{}]\n", i - 1));
    }
    // The scanner looks ahead in flow style and has a limit of its own (255).
    assert!(refused(&flow)[0].starts_with("1:"), "{:?}", refused(&flow));
    assert!(refused(&"[".repeat(100))[0].contains("nested more than 64 levels deep"));
    for text in [block, dashes, aliases] {
        assert!(refused(&text)[0].contains("nested more than 64 levels deep"), "{}", &text[..20]);
    }
    let boundless = Limits { depth: usize::MAX, ..Limits::default() };
    assert!(refused_with(&"- ".repeat(5000), boundless).contains("nested more than 128 levels"));
}

#[test]
fn bytes_and_nodes_are_bounded() {
    let short = Limits { bytes: 10, ..Limits::default() };
    assert!(refused_with("a: 12345678", short).contains("11 bytes long, over the limit of 10"));
    let few = Limits { nodes: 5, ..Limits::default() };
    assert!(refused_with("[1, 2, 3, 4, 5]", few).contains("more than 5 values"));
}

#[test]
fn mapping_scalars_shares_what_is_unchanged() {
    let root = tree("a: {b: 1}\nc: &c [x, $]\nd: *c\n");
    let mut visited = Vec::new();
    let new = root.map_scalars(|scalar, _, trail| {
        visited.push(trail.path().to_string());
        (scalar.text() == "$").then(|| scalar.substitute("y"))
    });
    assert_eq!(visited, ["a.b", "c[0]", "c[1]"]);
    assert!(Arc::ptr_eq(root.get("a").expect("a"), new.get("a").expect("a")));
    let (c, d) = (new.get("c").expect("c"), new.get("d").expect("d"));
    assert!(Arc::ptr_eq(c, d));
    assert_eq!(c.as_list().and_then(|list| list[1].as_str()), Some("y"));
    assert!(Arc::ptr_eq(&root, &root.map_scalars(|_, _, _| None)));
}

#[test]
fn maps_are_built_and_changed() {
    let at = Mark::default();
    let key = |text: &str| Key { text: text.into(), at };
    let root = Node::map(vec![(key("a"), Node::null(at))], at);
    let root = root.with(key("b"), Node::list(vec![Node::string("x", at)], at));
    let root = root.with(key("a"), Node::string("y", at)).without("c");
    assert_eq!(serde_json::to_string(&*root).unwrap(), r#"{"a":"y","b":["x"]}"#);
    assert_eq!((root.size(), root.height()), (4, 2));
    assert!(root.without("a").get("a").is_none());
}

#[test]
fn a_bracket_may_close_at_the_column_of_the_key() {
    let root = tree(
        "a: [\n  \"x\",\n  \"y\"\n]\nb:\n  c: [\n    1,\n  ]\n  d: {\n    k: \"v\"\n}\n  e: [{\n    k: \"v\"\n  }, \"z\"]\n",
    );
    let at = |steps: &[&str]| mark(root.find(&path(steps)).expect("a node"));
    assert_eq!(at(&["a", "1"]), (3, 3));
    assert_eq!(at(&["b", "c", "0"]), (7, 5));
    assert_eq!(at(&["b", "d", "k"]), (10, 8));
    assert_eq!(at(&["b", "e", "1"]), (14, 6), "as written, whatever the parser needs");
}

#[test]
fn a_long_document_may_have_many_such_brackets() {
    let list = |at: usize| format!("k{at}: [\n  \"{}\",\n]\n", "x".repeat(190));
    let lists: String = (0..1_000).map(list).collect();
    assert!(lists.len() > 200_000);
    let texts = "a: |\n  {\n  \"b\": [\n  ]\n  }\nc: >-\n  ]\n  d\ne: \"f\n  ]\"\ng: h\n  ] i\n\
                 j: |\n\n  ]\n  k\nl: | # why\n  }\n  m\n";
    for whole in [format!("{lists}{texts}"), format!("{texts}{lists}")] {
        let root = tree(&whole);
        let text = |key: &str| root.get(key).and_then(|node| node.as_str()).expect("a text").to_owned();
        assert_eq!((text("a").as_str(), text("c").as_str()), ("{\n\"b\": [\n]\n}\n", "] d"));
        assert_eq!((text("e").as_str(), text("g").as_str()), ("f ]", "h ] i"));
        assert_eq!((text("j").as_str(), text("l").as_str()), ("\n]\nk\n", "}\nm\n"));
        let last = root.find(&path(&["k999", "0"])).expect("an item");
        assert_eq!(last.at.column, 3);
    }
    let odd = format!("{lists}a: 1\n]\n");
    assert!(refused(&odd)[0].starts_with("3002:1: "), "{:?}", refused(&odd));
}

#[test]
fn a_carriage_return_alone_ends_a_line_too() {
    // YAML 1.2.2 s5.4.
    let root = tree("#a\r#b\r#c\r\nk: [\n  \"x\",\n]\na: |\n  {\n  ]\n");
    let text = |steps: &[&str]| root.find(&path(steps)).and_then(|node| node.as_str()).map(str::to_owned);
    assert_eq!((text(&["a"]).as_deref(), text(&["k", "0"]).as_deref()), (Some("{\n]\n"), Some("x")));
}

#[test]
fn what_only_looks_like_a_bracket_stays_as_it_is() {
    let root = tree("a: |\n  ]\nb: \"x\n  ]\"\nc: [\n  \"]\"\n]\n");
    let text =
        |key: &str| root.find(&path(&[key])).and_then(|node| node.as_scalar().map(|it| it.text().to_owned()));
    assert_eq!((text("a").as_deref(), text("b").as_deref()), (Some("]\n"), Some("x ]")));
    for wrong in ["a: 1\n]\n", "a:\n  b: 1\n]\n", "a: [\n  \"x\"\n]]\n", "]", "a: [\n  \"x\"\n}\n"] {
        assert!(parse(wrong, FileId(0), &Limits::default()).is_err(), "{wrong}");
    }
}
