//! Versions, includes, merging, names, fingerprints and how problems are shown.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::*;
use crate::source::load_str;

#[test]
fn version_1_is_required() {
    let problem = |text| Temp::new(&[("main.yaml", text)]).problems();
    assert_eq!(
        problem("routes: []\n"),
        ["main.yaml:1:1: missing key `version`; write `version: 1` at the top"]
    );
    for text in ["version: 2", "version: '1'", "version:", "version: [1]"] {
        assert!(problem(text)[0].contains(": version: this gateway reads version 1"), "{text}");
    }
    assert!(problem("- a")[0].starts_with("main.yaml:1:1: expected a document"));
    assert!(problem("")[0].starts_with("main.yaml:1:1: expected a document"));
}

#[test]
fn a_version_that_is_missing_misspelt_or_unknown_hides_nothing_else() {
    let problems = |first: &str| {
        let text = format!("{first}include: [no.yaml]\nx: ${{env:NOT_SET}}\n");
        Temp::new(&[("main.yaml", &*text)]).problems()
    };
    for (first, told) in [
        ("", "missing key `version`; write `version: 1` at the top"),
        ("verison: 1\n", "verison: unknown key `verison` (did you mean `version`?)"),
        ("version: ${env:V}\n", "version: environment variable `V` is not set"),
    ] {
        let problems = problems(first);
        assert_eq!(problems.len(), 3, "{problems:?}");
        for told in [told, "include[0]: cannot include", "x: environment variable `NOT_SET` is not set"] {
            assert!(problems.iter().any(|problem| problem.contains(told)), "{told}: {problems:?}");
        }
    }
}

#[test]
fn of_a_document_of_another_version_nothing_else_is_told() {
    let temp = Temp::new(&[("main.yaml", "version: 2\ninclude: [no.yaml]\nx: ${env:NOT_SET}\n")]);
    let only = "main.yaml:1:10: version: this gateway reads version 1; write `version: 1`";
    assert_eq!(temp.problems(), [only]);
}

#[test]
fn a_missing_main_file_is_a_problem_of_the_whole_file() {
    let temp = Temp::new(&[]);
    assert!(temp.problems()[0].starts_with("main.yaml: cannot read main.yaml: "), "{:?}", temp.problems());
    assert_eq!(temp.load().expect_err("no file").inputs, [temp.path("main.yaml")]);
}

#[test]
fn lists_are_joined_and_maps_merged_in_order() {
    let temp = Temp::new(&[
        (
            "main.yaml",
            "version: 1\ninclude: [conf.d/*.yaml, more/one.yaml]\nroutes: [{name: m}]\nchains: {a: []}\n",
        ),
        ("conf.d/20.yaml", "routes: [{name: c}]\n"),
        ("conf.d/10.yaml", "routes: [{name: a}, {name: b}]\nupstreams: [{name: u}]\nchains: {b: [x]}\n"),
        ("conf.d/.hidden.yaml", "nonsense\n"),
        ("conf.d/notes.txt", "nonsense\n"),
        ("more/one.yaml", "include: [two.yaml]\nroutes:\n"),
        ("more/two.yaml", "routes: [{name: d}]\n"),
    ]);
    assert_eq!(
        temp.json(),
        json!({
            "version": 1,
            "include": ["conf.d/*.yaml", "more/one.yaml"],
            "routes": [{"name": "m"}, {"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}],
            "chains": {"a": [], "b": ["x"]},
            "upstreams": [{"name": "u"}],
        })
    );
    let loaded = temp.load().expect("right");
    let route = loaded.root.get("routes").and_then(|routes| routes.as_list()).expect("routes")[3].at;
    assert_eq!(loaded.files.name(route.file), temp.path("conf.d/20.yaml").display().to_string());
    let inputs =
        ["conf.d", "conf.d/10.yaml", "conf.d/20.yaml", "main.yaml", "more/one.yaml", "more/two.yaml"];
    assert_eq!(loaded.inputs, inputs.map(|name| temp.path(name)));
}

#[test]
fn a_pattern_may_match_nothing_but_a_named_file_must_exist() {
    let temp = Temp::new(&[("main.yaml", "version: 1\ninclude: [conf.d/*.yaml, no.yaml]\n")]);
    let problems = temp.problems();
    assert_eq!(problems.len(), 1);
    assert!(problems[0].starts_with("main.yaml:2:26: include[1]: cannot include no.yaml: "), "{problems:?}");
    let inputs = temp.load().expect_err("no file").inputs;
    assert_eq!(inputs, ["conf.d", "main.yaml", "no.yaml"].map(|name| temp.path(name)));
}

#[test]
fn wrong_patterns_are_refused_in_place() {
    let temp =
        Temp::new(&[("main.yaml", "version: 1\ninclude: ['*/a.yaml', 5, '', '**', d]\n"), ("d/x", "")]);
    let problems = temp.problems();
    let expected = [
        "main.yaml:2:11: include[0]: `*` may stand only",
        "main.yaml:2:23: include[1]: expected the path of a file",
        "main.yaml:2:26: include[2]: the path of a file is empty",
        "main.yaml:2:30: include[3]: `*` may stand only",
        "main.yaml:2:36: include[4]: cannot read d: not a file",
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem}");
    }
    temp.write("main.yaml", "version: 1\ninclude: conf.d/*.yaml\n");
    assert!(temp.problems()[0].contains("2:10: include: expected a list of files"));
}

#[test]
fn an_included_file_holds_only_entities() {
    let temp = Temp::new(&[
        ("main.yaml", "version: 1\ninclude: [a.yaml, b.yaml, c.yaml]\nroutes: []\n"),
        ("a.yaml", "version: 1\nserver: {}\nroute: []\n"),
        ("b.yaml", "routes: {a: 1}\nchains: []\n"),
        ("c.yaml", "- routes\n"),
    ]);
    let problems = temp.problems();
    assert!(problems[0].starts_with("a.yaml:1:1: version: `version` cannot be in an included file; move it"));
    assert!(problems[0].ends_with(
        "(included files hold upstreams, identities, chains, consumers, plans, services, routes, tests)"
    ));
    assert!(problems[1].starts_with("a.yaml:2:1: server: "));
    assert!(problems[2].ends_with("(did you mean `routes`?)"));
    assert_eq!(
        problems[3..],
        [
            "b.yaml:1:9: routes: expected a list",
            "b.yaml:2:9: chains: expected a map",
            "c.yaml:1:1: expected a map such as `routes: [..]`",
        ]
    );
}

#[test]
fn cycles_and_depth_are_bounded() {
    let temp = Temp::new(&[
        ("main.yaml", "version: 1\ninclude: [a.yaml]\n"),
        ("a.yaml", "include: [b.yaml]\n"),
        ("b.yaml", "include: [./a.yaml, main.yaml]\n"),
    ]);
    assert_eq!(
        temp.problems(),
        [
            "b.yaml:1:11: include[0]: ./a.yaml includes itself",
            "b.yaml:1:21: include[1]: main.yaml includes itself",
        ]
    );
    let deep = Temp::new(&[("main.yaml", "version: 1\ninclude: [f1.yaml]\n")]);
    for i in 1..=8 {
        deep.write(&format!("f{i}.yaml"), format!("include: [f{}.yaml]\n", i + 1));
    }
    assert_eq!(deep.problems(), ["f7.yaml:1:11: include[0]: f8.yaml is included more than 8 files deep"]);
}

#[test]
fn a_file_named_twice_is_read_once() {
    let temp = Temp::new(&[
        ("main.yaml", "version: 1\ninclude: [a.yaml, '*.yml', a.yaml, link.yaml]\n"),
        ("a.yaml", "routes: [{name: a}]\n"),
    ]);
    symlink("a.yaml", temp.path("link.yaml")).unwrap();
    assert_eq!(temp.json()["routes"], json!([{"name": "a"}]));
}

#[test]
fn duplicate_names_are_reported_with_both_places() {
    let temp = Temp::new(&[
        (
            "main.yaml",
            "version: 1\ninclude: [a.yaml]\nroutes: [{name: r}, {name: r}]\nlisteners: [{name: l}, {name: l}]\nchains: {c: []}\n",
        ),
        (
            "a.yaml",
            "routes: [{name: x}, {name: r}]\nchains: {c: []}\nupstreams: [{name: r}]\ntests: [{name: t}, {name: t}]\n",
        ),
    ]);
    assert_eq!(
        temp.problems(),
        [
            "a.yaml:2:10: chains.c: duplicate chain `c`, first at main.yaml:5:10",
            "main.yaml:4:31: listeners[1].name: duplicate listener name `l`, first at main.yaml:4:20",
            "main.yaml:3:28: routes[1].name: duplicate route name `r`, first at main.yaml:3:17",
            "a.yaml:1:28: routes[3].name: duplicate route name `r`, first at main.yaml:3:17",
            "a.yaml:4:27: tests[1].name: duplicate test name `t`, first at a.yaml:4:16",
        ]
    );
}

#[test]
fn errors_of_all_files_come_at_once() {
    let temp = Temp::new(&[
        ("main.yaml", "version: 1\ninclude: [a.yaml, b.yaml]\nx: ${env:NOT_SET}\n"),
        ("a.yaml", "routes: [\n"),
        ("b.yaml", "routes: {a: 1, a: 2}\n"),
    ]);
    assert_eq!(temp.problems().len(), 3, "{:?}", temp.problems());
}

#[test]
fn what_an_unresolved_reference_should_have_named_is_missing_and_told_once() {
    let temp = Temp::new(&[
        ("main.yaml", "version: 1\ninclude: ['${env:NOT_SET}', a.yaml]\n"),
        ("a.yaml", "routes: '${env:NOT_SET}'\n"),
    ]);
    let loaded = temp.load_partly(&[]).expect("a document");
    assert_eq!((loaded.errors.len(), loaded.complete), (2, false), "{:?}", loaded.errors);
}

#[test]
fn a_file_that_does_not_parse_stands_in_nobody_s_way() {
    let temp = Temp::new(&[
        ("main.yaml", "version: 1\ninclude: [bad.yaml, b.yaml]\n"),
        ("bad.yaml", "routes: [\n"),
        ("b.yaml", "include: [bad.yaml]\nroutes: []\n"),
    ]);
    let problems = temp.problems();
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("bad.yaml:2:1: routes[0]: not YAML: "), "{problems:?}");
}

#[test]
fn a_file_named_by_a_reference_is_not_named_in_messages() {
    let temp = Temp::new(&[("main.yaml", "version: 1\ninclude: ['${env:A}', '${env:A}/*', '*/${env:A}']\n")]);
    temp.write("hunter2", "not a directory");
    let problems = temp.load_in(&[("A", "hunter2")]).expect_err("no such file");
    assert!(problems.list.iter().all(|problem| !problem.message.contains("hunter2")), "{problems}");
}

#[test]
fn problems_are_a_list_in_json() {
    let temp = Temp::new(&[("main.yaml", "version: 1\na: 1\na: 2\n")]);
    let problems = temp.load().expect_err("a duplicate");
    let file = temp.path("main.yaml").display().to_string();
    assert_eq!(
        serde_json::to_value(&problems).unwrap(),
        json!([{"file": file, "line": 3, "column": 1, "path": "a", "message": "duplicate key `a`",
                "first": {"file": file, "line": 2, "column": 1}}])
    );
}

#[test]
fn a_document_from_an_api_reads_no_files_without_a_base() {
    let none = |_: &str| None;
    let text = "version: 1\ninclude: [/etc/*.yaml]\na: '${file:/etc/hostname}'\n";
    let loaded = load_str(text, "upload", None, &none);
    let problems = loaded.and_then(Loaded::sound).expect_err("no files").to_string();
    assert_eq!(
        problems,
        "upload:3:4: a: `${file:..}` is not available in a document from an API\n\
         upload:2:11: include[0]: a document from an API cannot include files"
    );
    let temp = Temp::new(&[("a.yaml", "routes: [{name: a}]\n")]);
    let loaded = load_str("{version: 1, include: [a.yaml]}", "upload", Some(&temp.0), &none).expect("right");
    assert!(loaded.root.get("routes").is_some());
}

#[test]
fn the_fingerprint_follows_every_input_and_nothing_else() {
    let temp = Temp::new(&[
        ("main.yaml", "version: 1\ninclude: [d/*.yaml]\na: '${env:A:-x}'\nb: '${file:secret}'\n"),
        ("d/a.yaml", "routes: []\n"),
        ("secret", "s\n"),
    ]);
    let print = |environment: &[(&str, &str)]| temp.load_in(environment).expect("right").fingerprint;
    let first = print(&[]);
    temp.write("d/readme.txt", "ignored");
    assert_eq!(print(&[("UNUSED", "1")]), first);
    assert_eq!(first.to_string().len(), 64);
    let mut seen = vec![first, print(&[("A", "")]), print(&[("A", "x")])];
    temp.write("secret", "t\n");
    seen.push(print(&[]));
    temp.write("d/a.yaml", "routes: [] # changed\n");
    seen.push(print(&[]));
    temp.write("d/b.yaml", "");
    seen.push(print(&[]));
    temp.write("main.yaml", "version: 1\n");
    seen.push(print(&[]));
    for (index, print) in seen.iter().enumerate() {
        assert!(!seen[..index].contains(print), "step {index}");
    }
}
