//! References in scalars.

use serde_json::json;

use super::*;
use tollhouse_filters::template::{Template, Variable};
use tollhouse_filters::tree::from_node;

/// The value of `a` in a document with these variables: A=1, EMPTY, SECRET, NESTED.
fn value(scalar: &str) -> Result<serde_json::Value, String> {
    let temp = Temp::new(&[
        ("main.yaml", &format!("version: 1\na: {scalar}\n")),
        ("token", "t0k\nen\r\n"),
        ("two", "x\n\n"),
        ("refers", "${env:A}"),
    ]);
    temp.write("binary", b"\xff");
    temp.write("large", vec![b'x'; (1 << 20) + 1]);
    let set = [("A", "1"), ("EMPTY", ""), ("SECRET", "hunter2: [x]"), ("NESTED", "${env:A} ${client.ip}")];
    match temp.load_in(&set) {
        Ok(loaded) => Ok(serde_json::to_value(&*loaded.root).unwrap()["a"].clone()),
        Err(problems) => Err(problems.to_string().replace(&format!("{}/", temp.0.display()), "")),
    }
}

#[test]
fn references_are_replaced_by_text_and_never_read_again() {
    let cases = [
        ("${env:A}", "1"),
        ("'${env:A}'", "1"),
        ("x${env:A}y${env:A}z", "x1y1z"),
        ("${env:SECRET}", "hunter2: [x]"),
        ("${env:NESTED}", "${env:A} ${client.ip}"),
        ("${env:NO:-dflt}", "dflt"),
        ("'${env:NO:-}'", ""),
        ("${env:EMPTY:-dflt}", "dflt"),
        ("'${env:EMPTY}'", ""),
        ("${env:NO:-http://x:1}", "http://x:1"),
        ("${file:token}", "t0k\nen"),
        ("${file:./two}", "x\n"),
        ("${file:refers}", "${env:A}"),
        ("été ${env:A} €", "été 1 €"),
        (r#""\x24{env:A}""#, "1"),
    ];
    for (scalar, expected) in cases {
        assert_eq!(value(scalar), Ok(json!(expected)), "{scalar}");
    }
}

#[test]
fn run_time_templates_and_their_escape_stay() {
    for text in [
        "${client.address}",
        "$${client.address}",
        "$$${x}",
        "$5 $",
        "${",
        "${}",
        "/${a.b}/{c}:x",
        "$${vault:x}",
    ] {
        assert_eq!(value(&format!("'{text}'")), Ok(json!(text)), "{text}");
    }
    assert_eq!(value("'$${client.address} ${env:A}'"), Ok(json!("$${client.address} 1")));
}

#[test]
fn what_only_begins_like_a_reference_is_cheap() {
    for beginning in ["${", "$${", "${a"] {
        let text = beginning.repeat(200_000);
        assert!(value(&format!("'{text}'")) == Ok(json!(text)), "{beginning}");
    }
}

#[test]
fn an_escaped_reference_becomes_its_literal_text() {
    assert_eq!(value("'$${env:A}'"), Ok(json!("${env:A}")));
    assert_eq!(value("'$${file:x} ${env:A}'"), Ok(json!("${file:x} 1")));
    assert_eq!(value("'$$${env:A}'"), Ok(json!("$${env:A}")));
}

#[test]
fn what_a_reference_stands_for_is_no_template() {
    let temp = Temp::new(&[
        ("main.yaml", "version: 1\na: '${request.id} ${file:page} $${env:A}${env:A}'\n"),
        ("page", "<p>${name} ${header.x} ${</p>"),
    ]);
    let loaded = temp.load_in(&[("A", "${path.id} $${")]).expect("right");
    for tree in [&loaded.root, &loaded.pack().unpack().root] {
        let template: Template = from_node(tree.get("a").expect("a")).expect("a template");
        assert_eq!(template.variables().collect::<Vec<_>>(), [&Variable::RequestId]);
        assert!(template.to_string().ends_with("${env:A}${path.id} $${"), "{template}");
    }
}

#[test]
fn what_cannot_be_resolved_is_an_error_without_its_content() {
    let cases = [
        ("${env:NO}", "environment variable `NO` is not set"),
        ("${env:1X}", "`1X` is no name"),
        ("${env:}", "`` is no name"),
        ("${env:NO", "without its closing"),
        ("${env:NO:-${env:A}}", "references do not nest"),
        ("${env:A:-${env:NO}}", "references do not nest"),
        ("${env:NO:-by ${client.address}}", "references do not nest"),
        ("${file:${env:A}/x}", "references do not nest"),
        ("${vault:secret/x#y}", "unknown reference `${vault:..}`; there are"),
        ("${evn:A}", "did you mean `${env:..}`?"),
        ("${file:}", "needs a path"),
        ("${file:missing}", "cannot read missing: "),
        ("${file:.}", "not a file"),
        ("${file:binary}", "binary is not UTF-8"),
        ("${file:large}", "large is longer than 1048576 bytes"),
    ];
    for (scalar, expected) in cases {
        let problem = value(&format!("'{scalar}'")).expect_err(scalar);
        assert!(problem.starts_with("main.yaml:2:4: a: ") && problem.contains(expected), "{problem}");
    }
}

#[test]
fn all_unresolved_references_are_reported_at_once() {
    let problems = value("['${env:X}${env:Y}', {k: '${env:Z}'}]").expect_err("unset");
    assert_eq!(problems.lines().count(), 3);
    assert!(problems.lines().last().is_some_and(|line| line.contains(": a[1].k: ")), "{problems}");
}

#[test]
fn a_document_goes_on_without_what_could_not_be_resolved() {
    let routes = "routes: [{name: '${env:NO}'}, {name: '${env:NO}'}]";
    let text = format!("version: 1\na: x${{env:NO}}\nb: ${{env:A}}\n{routes}\n");
    let loaded = Temp::new(&[("main.yaml", &text)]).load_partly(&[("A", "1")]).expect("a document");
    assert_eq!((loaded.errors.len(), loaded.complete), (3, true), "{:?}", loaded.errors);
    assert!(loaded.duplicates.is_empty(), "nobody knows whether they share a name");
    let scalar = |key: &str| loaded.root.get(key).and_then(|node| node.as_scalar()).expect("a scalar");
    assert!(scalar("a").is_unresolved() && !scalar("b").is_unresolved());
}

#[test]
fn a_key_cannot_hold_a_reference() {
    let problem = value("{'x-${env:A}': 1, '${client.ip}': 2}").expect_err("a reference in a key");
    assert_eq!(problem, "main.yaml:2:5: a[\"x-${env:A}\"]: a reference cannot be part of a key");
}

#[test]
fn a_substituted_value_is_what_is_wanted_and_is_not_quoted() {
    let temp = Temp::new(&[("main.yaml", "version: 1\na: ${env:A}\n")]);
    let loaded = temp.load_in(&[("A", "8080")]).expect("right");
    let node = loaded.root.get("a").expect("a");
    assert_eq!(from_node::<u16>(node).expect("a number"), 8080);
    assert_eq!(from_node::<String>(node).expect("a string"), "8080");
    let error = from_node::<bool>(node).expect_err("no boolean").to_string();
    assert!(!error.contains("8080"), "{error}");
    let twice = Temp::new(&[("main.yaml", "version: 1\nroutes: [{name: '${env:A}'}, {name: '${env:A}'}]\n")]);
    let loaded = twice.load_in(&[("A", "hunter2")]).expect("nothing but a duplicate");
    let problems = Problems::located(loaded.duplicates, &loaded.files).to_string();
    assert!(
        problems.contains("duplicate route name, first at") && !problems.contains("hunter2"),
        "{problems}"
    );
}

#[test]
fn a_file_is_relative_to_the_file_that_names_it() {
    let temp = Temp::new(&[
        ("main.yaml", "version: 1\ninclude: ['${env:DIR}/*.yaml']\n"),
        ("d/a.yaml", "routes: [{name: '${file:name}'}]\n"),
        ("d/name", "inner"),
        ("name", "outer"),
    ]);
    let loaded = temp.load_in(&[("DIR", "d")]).expect("right");
    let routes = serde_json::to_value(loaded.root.get("routes").map(|node| &**node)).unwrap();
    assert_eq!(routes, json!([{"name": "inner"}]));
    assert!(loaded.inputs.contains(&temp.path("d/name")));
}
