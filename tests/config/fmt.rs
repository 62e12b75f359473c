//! `tollhouse fmt`, `completions` and `man`: what they print, what they leave alone.

use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::gateway::{code, json_of, program, run, stderr, stdout};
use crate::{project, read, yaml_files};

const UNTIDY: &str = "version:   1\nlisteners:   # where\n- {name: main,address: '127.0.0.1:0'}\n# end\n";
const TIDY: &str = "version: 1\nlisteners: # where\n  - {name: main, address: \"127.0.0.1:0\"}\n# end\n";

fn folder(files: &[(&str, &str)]) -> (TempDir, Vec<PathBuf>) {
    let folder = tempfile::tempdir().expect("a folder");
    let paths = files.iter().map(|(name, text)| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        path
    });
    let paths = paths.collect();
    (folder, paths)
}

fn fmt(options: &[&str], files: &[PathBuf]) -> Output {
    let files = files.iter().map(|path| path.to_str().expect("UTF-8"));
    run(&["fmt"].iter().chain(options).copied().chain(files).collect::<Vec<_>>())
}

fn piped(options: &[&str], text: &str) -> Output {
    let mut child = program()
        .args(options)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("read");
    child.wait_with_output().expect("the program ends")
}

fn names(folder: &Path) -> usize {
    std::fs::read_dir(folder).expect("a folder").count()
}

#[test]
fn files_are_formatted_in_place_and_only_once() {
    let (folder, files) = folder(&[("a.yaml", UNTIDY), ("b.yaml", TIDY)]);
    let output = fmt(&[], &files);
    assert_eq!((code(&output), stderr(&output)), (0, String::new()));
    assert_eq!(stdout(&output), format!("formatted {}\n", files[0].display()));
    assert_eq!((read(&files[0]), read(&files[1])), (TIDY.to_owned(), TIDY.to_owned()));
    let output = fmt(&[], &files);
    assert_eq!((code(&output), stdout(&output)), (0, String::new()));
    assert_eq!(names(folder.path()), 2, "nothing is left beside the files");
}

#[test]
fn check_changes_nothing_and_is_code_1_where_something_would_change() {
    let (_folder, files) = folder(&[("a.yaml", UNTIDY), ("b.yaml", TIDY)]);
    let output = fmt(&["--check"], &files);
    assert_eq!((code(&output), stdout(&output)), (1, String::new()));
    assert_eq!(stderr(&output), format!("{}: not formatted\n", files[0].display()));
    assert_eq!(read(&files[0]), UNTIDY);
    assert_eq!(code(&fmt(&["--check"], &files[1..])), 0);
}

#[test]
fn a_file_that_cannot_be_read_is_left_alone_and_the_others_are_not() {
    let broken = "version: 1\nversion: 1\nroutes:   []\n";
    let (_folder, mut files) = folder(&[("a.yaml", broken), ("b.yaml", UNTIDY)]);
    files.push(files[0].with_file_name("missing.yaml"));
    let output = fmt(&[], &files);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).starts_with(&format!("{}:2:1: ", files[0].display())), "{output:?}");
    assert!(stderr(&output).contains(&format!("cannot read {}", files[2].display())), "{output:?}");
    assert_eq!((read(&files[0]), read(&files[1])), (broken.to_owned(), TIDY.to_owned()));
    assert_eq!(code(&fmt(&[], &[project("conf")])), 1, "a folder is no file");
    assert_eq!(code(&fmt(&[], &[])), 2);
}

#[test]
fn a_file_keeps_its_mode_and_its_links() {
    let (folder, files) = folder(&[("a.yaml", UNTIDY)]);
    std::fs::set_permissions(&files[0], std::fs::Permissions::from_mode(0o640)).expect("a mode");
    let link = folder.path().join("link.yaml");
    symlink("a.yaml", &link).expect("a link");
    assert_eq!(code(&fmt(&[], std::slice::from_ref(&link))), 0);
    assert!(link.is_symlink());
    assert_eq!(read(&files[0]), TIDY);
    assert_eq!(std::fs::metadata(&files[0]).expect("a file").permissions().mode() & 0o777, 0o640);
}

#[test]
fn standard_input_goes_to_standard_output() {
    let output = piped(&["fmt", "-"], UNTIDY);
    assert_eq!((code(&output), stdout(&output).as_str()), (0, TIDY));
    let output = piped(&["fmt", "-", "--check"], UNTIDY);
    assert_eq!(
        (code(&output), stdout(&output), stderr(&output)),
        (1, String::new(), "stdin: not formatted\n".into())
    );
    let output = piped(&["fmt", "-"], "a: ]");
    assert_eq!((code(&output), stdout(&output)), (1, String::new()));
    assert!(stderr(&output).starts_with("stdin:1:"), "{output:?}");
    let output = piped(&["fmt", "-", "--output", "json"], UNTIDY);
    assert_eq!(json_of(&output), json!([{"file": "stdin", "outcome": "formatted", "text": TIDY}]));
}

#[test]
fn fmt_tells_in_json_what_came_of_each_file() {
    let (_folder, files) = folder(&[("a.yaml", UNTIDY), ("b.yaml", TIDY), ("c.yaml", "a: ]")]);
    let output = fmt(&["--check", "--output", "json"], &files);
    assert_eq!((code(&output), stderr(&output)), (1, String::new()));
    let said = json_of(&output);
    assert_eq!(said[0], json!({"file": files[0], "outcome": "unformatted"}));
    assert_eq!(said[1], json!({"file": files[1], "outcome": "unchanged"}));
    assert_eq!((&said[2]["outcome"], &said[2]["problems"][0]["line"]), (&json!("refused"), &json!(1)));
}

#[test]
fn a_file_that_cannot_be_written_is_told_in_the_same_json_as_the_others() {
    // The new file beside it would have a longer name than there can be.
    let long = format!("{}.yaml", "a".repeat(245));
    let (_folder, files) = folder(&[(long.as_str(), UNTIDY), ("b.yaml", UNTIDY)]);
    let output = fmt(&["--output", "json"], &files);
    assert_eq!((code(&output), stderr(&output)), (3, String::new()));
    let said = json_of(&output);
    assert_eq!((&said[0]["outcome"], &said[1]["outcome"]), (&json!("failed"), &json!("formatted")));
    assert!(said[0]["error"].as_str().is_some_and(|error| error.starts_with("cannot write ")), "{said}");
    assert_eq!((read(&files[0]), read(&files[1])), (UNTIDY.to_owned(), TIDY.to_owned()));
}

#[test]
fn every_example_can_be_formatted_and_means_the_same() {
    for path in yaml_files("conf/examples") {
        let before = read(&path);
        let output = piped(&["fmt", "-"], &before);
        assert_eq!(code(&output), 0, "{}: {output:?}", path.display());
        let (before, after): (Value, Value) = (
            serde_yaml::from_str(&before).expect("YAML"),
            serde_yaml::from_str(&stdout(&output)).expect("YAML"),
        );
        assert_eq!(before, after, "{}", path.display());
    }
}

#[test]
fn completions_know_the_commands_of_every_shell() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(&["completions", shell]);
        assert_eq!(code(&output), 0, "{shell}");
        assert!(stdout(&output).contains("explain") && stdout(&output).contains("check"), "{shell}");
    }
    assert_eq!(json_of(&run(&["completions", "fish", "--output", "json"]))["shell"], "fish");
    assert_eq!(code(&run(&["completions", "csh"])), 2);
    let script = stdout(&run(&["completions", "bash"]));
    let parsed = std::process::Command::new("bash").args(["-n", "-c", &script]).status();
    assert!(parsed.expect("bash runs").success());
}

#[test]
fn manual_pages_are_made_for_every_command() {
    let page = stdout(&run(&["man"]));
    assert!(page.contains(".TH tollhouse 1") && page.contains("tollhouse\\-explain(1)"), "{page}");
    let folder = tempfile::tempdir().expect("a folder");
    let into = folder.path().join("man");
    let output = run(&["man", "--into", into.to_str().expect("UTF-8")]);
    assert_eq!((code(&output), stdout(&output)), (0, String::new()));
    for name in ["tollhouse.1", "tollhouse-run.1", "tollhouse-fmt.1", "tollhouse-check.1"] {
        assert!(into.join(name).is_file(), "{name}");
    }
    assert!(
        json_of(&run(&["man", "--output", "json"]))["page"].as_str().is_some_and(|page| page.contains(".TH"))
    );
    assert_eq!(code(&run(&["man", "--into", "/proc/nowhere"])), 3);
}

#[test]
fn wrong_usage_is_json_too_where_json_is_wanted() {
    for arguments in [&["--output", "json"][..], &["fmt", "--output=json"], &["--output", "json", "nonsense"]]
    {
        let output = run(arguments);
        assert_eq!((code(&output), stderr(&output)), (2, String::new()), "{arguments:?}");
        assert!(json_of(&output)["error"].is_string(), "{output:?}");
    }
}
