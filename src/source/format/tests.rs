//! Documents before and after.

use proptest::prelude::*;

use super::*;

fn formatted(text: &str) -> String {
    format(text.as_bytes(), "document").unwrap_or_else(|error| panic!("{error:?} in\n{text}"))
}

#[test]
fn the_layout_is_one_and_comments_stay() {
    let before = "# top\nversion:   1   # of the language\nlisteners:\n-   name:   'main'\n    address: \"127.0.0.1:0\"\n\n\n\n# two\nroutes: [ {name: a,respond: {  }} ,\n   # inside\n {name: b, respond: {}}]\n# end";
    let after = "# top\nversion: 1 # of the language\nlisteners:\n  - name: \"main\"\n    address: \"127.0.0.1:0\"\n\n# two\nroutes: [\n  {name: a, respond: {}},\n  # inside\n  {name: b, respond: {}}\n]\n# end\n";
    assert_eq!(formatted(before), after);
    assert_eq!(formatted(after), after);
}

#[test]
fn a_long_list_that_ends_with_a_quote_can_be_read_again() {
    let items: Vec<String> = (0..20).map(|n| format!("\"{n:06}\"")).collect();
    for text in [
        format!("x: [{}]\ny: 1\n", items.join(", ")),
        format!("x: {{a: [{}], b: \"c\"}} # c\n", items.join(", ")),
        format!("a:\n  - b: [{}]\n    c: [\n      1,\n      \"2\"\n      ]\n", items.join(", ")),
        format!("x:\n  - [{}]\n", items.join(", ")),
        format!("x: [\n  \"a\", # one\n  {{b: [{}]}}, \"c\"\n  ]\n", items.join(", ")),
    ] {
        let once = formatted(&text);
        assert_eq!(formatted(&once), once);
    }
}

#[test]
fn what_quotes_protect_stays_protected() {
    for text in [
        "a: '~^/v\\d+'\n",
        "a: 'it''s \"q\"'\n",
        "a: \"\\u00e9\\n\"\n",
        "a: \"true\"\nb: '1'\nc: ''\n",
        "a: |\n  # no comment\n    more\n",
        "a: >-\n  folded\n  text\n\n  para\n",
        "a: &x {b: 1}\nc: *x\n",
        "a: \"${env:X}\"\nb: ${path.id}\n",
    ] {
        assert_eq!(formatted(text).replace('"', "'"), text.replace('"', "'"), "{text}");
    }
}

#[test]
fn what_differs_is_told_with_its_line() {
    let tree =
        |text: &str| parse_bytes(text.as_bytes(), Files::default().add(String::new()), &Limits::default());
    let line = |one: &str, other: &str| {
        difference(&tree(one).expect("valid"), &tree(other).expect("valid")).map(|at| at.line)
    };
    assert_eq!(line("a: 1\nb: [1,\n  2]\n", "a: 1\nb: [1, 3]\n"), Some(3));
    assert_eq!(line("a: 1\nb: 2\n", "a: 1\nc: 2\n"), Some(2));
    assert_eq!(line("a: 1\nb: '2'\n", "a: 1\nb: 2\n"), Some(2));
    assert_eq!(line("a: 1\nb: [2]\n", "a: 1\nb: [2, 2]\n"), Some(2));
    assert_eq!(line("a: '1'\n", "a:   \"1\"\n"), None);
    let lost = |one: &str, other: &str| lost_comment(one, other).ok().flatten();
    assert_eq!(lost("a: 1\n# one\n# two\n", "# one\na: 1\n"), Some(3));
    assert_eq!(lost("a: 1\nb: 2\n", "a: 1 # new\nb: 2\n"), Some(2));
    assert_eq!(lost("a: 1\n# one\n", "# one\na: 1\n"), None);
}

#[test]
fn json_stays_json() {
    let text = formatted(
        "{\"version\": 1,\n  \"listeners\": [{\"name\": \"main\",\n\"address\": \"127.0.0.1:0\"}]}",
    );
    assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
}

#[test]
fn what_cannot_be_read_is_told_with_its_place() {
    for text in ["a: [1", "a: 1\na: 2\n", "a: *nobody\n"] {
        let Err(Unformatted::Problems(problems)) = format(text.as_bytes(), "d.yaml") else {
            panic!("{text} was formatted");
        };
        assert!(problems.to_string().starts_with("d.yaml:"), "{problems}");
    }
    assert!(format(b"a: \xff", "d.yaml").is_err());
}

#[test]
fn windows_line_ends_and_a_byte_order_mark_do_no_harm() {
    assert_eq!(formatted("a: 1\r\nb:\r\n- 2 # two\r\n"), "a: 1\nb:\n  - 2 # two\n");
    let marked = format("\u{feff}a:  1\n".as_bytes(), "d");
    assert!(marked.is_err() || marked.is_ok_and(|text| text.ends_with("a: 1\n")));
}

/// A document as somebody might have typed it.
#[derive(Debug, Clone)]
enum Typed {
    Scalar(&'static str),
    List(Vec<Typed>, bool),
    Map(Vec<Typed>, bool),
}

const SCALARS: [&str; 19] = [
    "1",
    "plain",
    "two words",
    "''",
    "'it''s'",
    "\"q\"",
    "\"\\t\\\"\"",
    "'~^/v\\d+$'",
    "/a/*",
    "\"*\"",
    "~",
    "null",
    "10.0.0.0/8",
    "\"a # b\"",
    "a#b",
    "'${path.id}'",
    "\"${env:X:-y}\"",
    "http://a.test:80/x",
    "50ms..1s",
];

fn typed() -> impl Strategy<Value = Typed> {
    let leaf = prop::sample::select(&SCALARS[..]).prop_map(Typed::Scalar);
    leaf.prop_recursive(4, 24, 4, |inner| {
        let some = prop::collection::vec(inner, 0..4);
        (some, any::<bool>(), any::<bool>()).prop_map(|(items, flow, list)| {
            if list { Typed::List(items, flow) } else { Typed::Map(items, flow) }
        })
    })
}

/// Writes text as typed: what is odd about it follows from `noise`.
struct Typist {
    text: String,
    noise: Vec<u8>,
    at: usize,
    comments: usize,
}

impl Typist {
    fn next(&mut self, below: u8) -> u8 {
        self.at += 1;
        self.noise[self.at % self.noise.len()] % below
    }

    fn comment(&mut self, indent: usize) {
        match self.next(5) {
            0 => {
                self.comments += 1;
                let line = format!("{}# comment {}\n", " ".repeat(indent), self.comments);
                self.text.push_str(&line);
            }
            1 => self.text.push_str("\n\n"),
            _ => {}
        }
    }

    fn end(&mut self) {
        if self.next(4) == 0 {
            self.comments += 1;
            let comment = format!("   # comment {}", self.comments);
            self.text.push_str(&comment);
        }
        self.text.push('\n');
    }

    fn flow(&mut self, value: &Typed) {
        let space = " ".repeat(usize::from(self.next(3)));
        match value {
            Typed::Scalar(text) => self.text.push_str(text),
            Typed::List(items, _) => {
                self.text.push('[');
                for item in items {
                    self.flow(item);
                    self.text.push_str(&format!("{space}, "));
                }
                self.text.push(']');
            }
            Typed::Map(items, _) => {
                self.text.push('{');
                for (index, item) in items.iter().enumerate() {
                    self.text.push_str(&format!("{space}k{index}: "));
                    self.flow(item);
                    self.text.push_str(", ");
                }
                self.text.push('}');
            }
        }
    }

    /// After `key:` or `-`.
    fn value(&mut self, value: &Typed, indent: usize) {
        let (items, is_list) = match value {
            Typed::List(items, false) if !items.is_empty() => (items, true),
            Typed::Map(items, false) if !items.is_empty() => (items, false),
            other => {
                let space = " ".repeat(1 + usize::from(self.next(3)));
                self.text.push_str(&space);
                self.flow(other);
                return self.end();
            }
        };
        self.end();
        let indent = indent + 1 + usize::from(self.next(4));
        for (index, item) in items.iter().enumerate() {
            self.comment(indent);
            let head = if is_list { "-".to_owned() } else { format!("k{index}:") };
            self.text.push_str(&format!("{}{head}", " ".repeat(indent)));
            self.value(item, indent);
        }
    }
}

proptest! {
    #[test]
    fn formatting_keeps_meaning_and_comments_and_is_done_once(
        values in prop::collection::vec(typed(), 1..5),
        noise in prop::collection::vec(any::<u8>(), 7..40),
    ) {
        let mut typist = Typist { text: String::new(), noise, at: 0, comments: 0 };
        for (index, value) in values.iter().enumerate() {
            typist.comment(0);
            typist.text.push_str(&format!("key{index}:"));
            typist.value(value, 0);
        }
        let text = typist.text;
        let after = format(text.as_bytes(), "d");
        prop_assert!(after.is_ok(), "{:?} in\n{text}", after);
        let after = after.unwrap();
        // Read by another parser than the one that `format` compares with.
        let read = |text: &str| serde_yaml::from_str::<serde_yaml::Value>(text).unwrap();
        prop_assert_eq!(read(&text), read(&after));
        for comment in 1..=typist.comments {
            let lines = |text: &str| text.lines().filter(|line| line.ends_with(&format!("# comment {comment}"))).count();
            prop_assert_eq!((lines(&text), lines(&after)), (1, 1), "{}", after);
        }
        prop_assert_eq!(&format(after.as_bytes(), "d").unwrap(), &after);
    }

    /// What formatting gives back is always what its promise says, whatever comes in.
    #[test]
    fn any_text_is_formatted_or_left_alone(text in "[a-c:\\-#'\" \n\\[\\]{},|>&*!?0-9]{0,60}") {
        if let Ok(after) = format(text.as_bytes(), "d") {
            prop_assert_eq!(format(after.as_bytes(), "d").unwrap(), after);
        }
    }
}
