//! Every problem at once, and nothing that is only a consequence.

use std::cell::Cell;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::*;
use crate::tree::{from_node_all, from_node_partly};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only errors matter")]
struct Document {
    version: u32,
    #[serde(default)]
    upstreams: Vec<Upstream>,
    #[serde(default)]
    chains: BTreeMap<String, Vec<BTreeMap<String, u8>>>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only errors matter")]
struct Upstream {
    name: String,
    weight: u8,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, try_from = "RouteFields")]
#[expect(dead_code, reason = "only errors matter")]
struct Route(RouteFields);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteFields {
    #[expect(dead_code, reason = "only errors matter")]
    name: String,
    #[expect(dead_code, reason = "only errors matter")]
    paths: Vec<String>,
    upstream: Option<String>,
    status: Option<u16>,
}

thread_local! {
    /// Routes that were read without an error in a field, by the test on this thread.
    static READ: Cell<usize> = const { Cell::new(0) };
}

impl TryFrom<RouteFields> for Route {
    type Error = &'static str;
    fn try_from(fields: RouteFields) -> Result<Route, &'static str> {
        READ.set(READ.get() + 1);
        let actions = usize::from(fields.upstream.is_some()) + usize::from(fields.status.is_some());
        if actions == 1 { Ok(Route(fields)) } else { Err("a route needs exactly one action") }
    }
}

fn all<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> Vec<String> {
    let errors = from_node_all::<T>(&tree(text)).expect_err("a wrong document");
    errors.iter().map(ToString::to_string).collect()
}

#[test]
fn a_right_document_is_read() {
    let doc = from_node_all::<Document>(&tree("version: 1\nroutes: [{name: a, paths: [/], status: 200}]\n"));
    assert_eq!(doc.expect("right").routes.len(), 1);
}

#[test]
fn all_problems_are_reported_without_their_consequences() {
    let text = "\
version: two
upstreams:
  - {name: 1, weight: 900}
  - {name: b}
  - {nam: c, weight: 1}
chains:
  edge: [{a: x}, {b: 1}, {c: y}]
routs: []
routes:
  - {name: a, paths: [1, /x, 2], upstream: 5}
  - {name: b, paths: [/b], status: 200, upstream: c}
  - {name: c, paths: [/c]}
  - {name: d, paths: [/d], status: 200}
  - text
";
    let expected = [
        "1:10: version: expected a whole number from 0 to 4294967295, found \"two\"",
        "3:12: upstreams[0].name: expected a string, found a number (quote it: \"1\")",
        "3:23: upstreams[0].weight: expected a whole number from 0 to 255, found 900",
        "4:5: upstreams[1]: missing key `weight`",
        "5:6: upstreams[2].nam: unknown key `nam` (did you mean `name`?)",
        "7:14: chains.edge[0].a: expected a whole number from 0 to 255, found \"x\"",
        "7:30: chains.edge[2].c: expected a whole number from 0 to 255, found \"y\"",
        "8:1: routs: unknown key `routs` (did you mean `routes`?)",
        "10:23: routes[0].paths[0]: expected a string, found a number (quote it: \"1\")",
        "10:30: routes[0].paths[2]: expected a string, found a number (quote it: \"2\")",
        "10:44: routes[0].upstream: expected a string, found a number (quote it: \"5\")",
        "11:5: routes[1]: a route needs exactly one action",
        "12:5: routes[2]: a route needs exactly one action",
        "14:5: routes[4]: expected a map, found \"text\"",
    ];
    assert_eq!(all::<Document>(text), expected);
}

#[test]
fn a_missing_key_at_the_top_comes_after_all_others() {
    let errors = all::<Document>("routes: [1]\n");
    assert_eq!(errors, ["1:10: routes[0]: expected a map, found a number", "1:1: missing key `version`"]);
}

#[test]
fn an_item_of_the_wrong_kind_costs_only_itself() {
    assert_eq!(all::<Vec<u8>>("[x, 1, y]").len(), 2);
    assert_eq!(all::<u8>("x"), ["1:1: expected a whole number from 0 to 255, found \"x\""]);
    assert_eq!(all::<(u8, u8)>("[x, 2]").len(), 1);
}

#[test]
fn an_alias_to_a_bad_value_is_bad_in_both_places() {
    let errors = all::<BTreeMap<String, Vec<u8>>>("a: &a [x]\nb: *a\n");
    assert!(errors[0].contains(": a[0]: ") && errors[1].contains(": b[0]: "), "{errors:?}");
}

#[test]
fn a_hundred_errors_are_enough() {
    let text: String = std::iter::once("version: 1\nroutes:\n".to_owned())
        .chain((0..500).map(|i| format!("  - {{name: r{i}, paths: [1], status: 200}}\n")))
        .collect();
    let errors = all::<Document>(&text);
    assert_eq!(errors.len(), 100);
    assert!(errors[99].starts_with("102:"), "{}", errors[99]);
}

#[test]
fn errors_at_the_end_of_a_long_list_do_not_read_it_again_each_time() {
    let good = (0..20_000).map(|i| format!("  - {{name: r{i}, paths: [/{i}], status: 200}}\n"));
    let bad = (0..99).map(|i| format!("  - {{name: {i}, paths: [/{i}], status: 200}}\n"));
    let text: String = std::iter::once("version: 1\nroutes:\n".to_owned()).chain(good).chain(bad).collect();
    let root = tree(&text);
    let errors = from_node_all::<Document>(&root).expect_err("99 bad routes");
    assert_eq!(errors.len(), 99);
    assert_eq!(errors[98].path.to_string(), "routes[20098].name");
    assert_eq!(READ.get(), 20_000, "each good route is read once");
}

#[test]
fn what_can_be_read_is_read_and_places_in_it_are_told_as_they_are_written() {
    let text = "\
version: 1
upstreams: [{name: a, weight: 1}, {name: b}, {name: c, weight: 3, more: 1}]
chains: {edge: [{a: x}, {b: 1}]}
";
    let read = from_node_partly::<Document>(&tree(text));
    assert_eq!(read.errors.len(), 3, "{:?}", read.errors);
    let document = read.value.expect("the rest");
    let names: Vec<&str> = document.upstreams.iter().map(|upstream| &*upstream.name).collect();
    assert_eq!(names, ["a", "c"]);
    let written = |steps: &[&str]| read.lost.written(&path(steps)).to_string();
    assert_eq!(written(&["upstreams", "0"]), "upstreams[0]");
    assert_eq!(written(&["upstreams", "1", "name"]), "upstreams[2].name");
    assert_eq!(written(&["upstreams", "2"]), "upstreams[3]");
    assert_eq!(written(&["chains", "edge", "1", "b"]), "chains.edge[1].b");
    let lacks = |steps: &[&str]| read.lost.lacks(&path(steps));
    assert!(lacks(&["upstreams", "1"]) && lacks(&["upstreams", "1", "name"]));
    assert!(lacks(&["upstreams", "2", "more"]) && !lacks(&["chains", "edge"]));
    assert!(!lacks(&["upstreams", "2"]) && !lacks(&["chains", "edge", "0"]) && !lacks(&["routes"]));
}

#[test]
fn the_rest_of_a_long_list_is_all_there() {
    let item = |at: usize| if at % 40 == 39 { "- x\n".to_owned() } else { format!("- {at}\n") };
    let read = from_node_partly::<Vec<u8>>(&tree(&(0..100).map(item).collect::<String>()));
    assert_eq!((read.errors.len(), read.value.map(|rest| rest.len())), (2, Some(98)));
    assert_eq!(read.lost.written(&path(&["78"])).to_string(), "[80]");
    let read = from_node_partly::<Vec<u8>>(&tree(&"- x\n".repeat(200)));
    assert_eq!((read.errors.len(), read.value), (100, None), "nobody knows what else is wrong");
}

/// The tree in which every `?` is a reference that could not be resolved.
fn unresolved(text: &str) -> Arc<Node> {
    tree(text).map_scalars(|scalar, _, _| (scalar.text() == "?").then(|| scalar.unresolved()))
}

#[test]
fn neither_what_an_unresolved_reference_is_not_nor_what_comes_of_it_is_reported() {
    let text = "\
version: 1
upstreams: [{name: '?', weight: 1}, {name: b, weight: '?', more: 1}]
routes: [{name: a, paths: ['?'], upstream: '?'}]
";
    let read = from_node_partly::<Document>(&unresolved(text));
    let places: Vec<String> = read.errors.iter().map(|error| error.path.to_string()).collect();
    assert_eq!(places, ["upstreams[1].more"]);
    let rest = read.value.expect("the rest");
    assert!(rest.upstreams.is_empty() && rest.routes.is_empty(), "{rest:?}");
    let nothing = from_node_all::<(bool, Option<u8>, String)>(&unresolved("['?', '?', '?']"));
    assert!(nothing.is_err_and(|errors| errors.is_empty()));
}

#[test]
fn entries_at_the_end_of_a_long_map_do_not_read_it_again_each_time() {
    let good = (0..2_000).map(|i| format!("r{i}: {{name: r, paths: [/{i}], status: 200}}\n"));
    let bad = (0..50).map(|i| format!("x{i}: {{name: {i}, paths: [/{i}], status: 200}}\n"));
    let text: String = good.chain(bad).collect();
    let errors = from_node_all::<BTreeMap<String, Route>>(&tree(&text)).expect_err("50 bad routes");
    assert_eq!(errors.len(), 50);
    assert_eq!(errors[49].path.to_string(), "x49.name");
    assert_eq!(READ.get(), 2_000, "each good route is read once");
}

#[test]
fn many_unresolved_references_neither_hide_the_rest_nor_are_read_one_by_one() {
    let text = format!("- {{name: a, paths: [/], status: 200}}\n- [{} 7]\n- [x]\n", "'?', ".repeat(5_000));
    let read = from_node_partly::<(Route, Vec<u8>, Vec<u8>)>(&unresolved(&text));
    let places: Vec<String> = read.errors.iter().map(|error| error.path.to_string()).collect();
    assert_eq!(places, ["[2][0]"]);
    assert_eq!(read.value.map(|(_, known, other)| (known, other)), Some((vec![7], vec![])));
    assert!(READ.get() < 600, "{} readings", READ.get());
}
