//! `tollhouse fmt`: gives configuration files the one layout, comments and meaning kept.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{Failure, Output, print, print_json, printed};
use crate::source::format::{Unformatted, format};
use crate::source::{self, Problems};

/// What stands for standard input.
const STDIN: &str = "-";

/// Arguments of `tollhouse fmt`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Changes nothing; fails if a file is laid out another way.
    #[arg(long)]
    check: bool,
    /// The files; `-` is standard input, written to standard output.
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// What came of one file.
#[derive(Debug, Serialize)]
struct Done {
    file: String,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    problems: Option<Problems>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// What standard input was made to.
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Unchanged,
    Formatted,
    /// Under `--check`.
    Unformatted,
    /// The file is wrong.
    Refused,
    /// It could not be formatted or written.
    Failed,
}

pub(super) fn run(arguments: Arguments, output: Output) -> Result<(), Failure> {
    let done: Vec<Done> = arguments.files.iter().map(|file| one(file, arguments.check)).collect();
    match output {
        Output::Json => print_json(&done)?,
        Output::Text => done.iter().try_for_each(say)?,
    }
    let any = |wanted| done.iter().any(|done| done.outcome == wanted);
    match () {
        () if any(Outcome::Failed) && output == Output::Json => Err(Failure::Said(3)),
        () if any(Outcome::Failed) => Err(Failure::Runtime("not every file could be formatted".to_owned())),
        () if any(Outcome::Refused) || any(Outcome::Unformatted) => Err(Failure::Said(1)),
        () => Ok(()),
    }
}

fn say(done: &Done) -> Result<(), Failure> {
    let mut stderr = io::stderr();
    // Whether anybody listens to complaints changes nothing.
    let _ = match done.outcome {
        Outcome::Unchanged | Outcome::Formatted => return say_done(done),
        Outcome::Unformatted => writeln!(stderr, "{}: not formatted", done.file),
        Outcome::Refused | Outcome::Failed => match (&done.problems, &done.error) {
            (Some(problems), _) => writeln!(stderr, "{problems}"),
            (_, Some(error)) => writeln!(stderr, "{error}"),
            _ => Ok(()),
        },
    };
    Ok(())
}

fn say_done(done: &Done) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    match &done.text {
        Some(text) => printed(stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())),
        None if done.outcome == Outcome::Formatted => print(format_args!("formatted {}", done.file)),
        None => Ok(()),
    }
}

fn one(file: &Path, check: bool) -> Done {
    let is_stdin = file == Path::new(STDIN);
    let name = if is_stdin { "stdin".to_owned() } else { file.display().to_string() };
    let mut done =
        Done { file: name.clone(), outcome: Outcome::Unchanged, problems: None, error: None, text: None };
    let read = if is_stdin { read_stdin() } else { source::read_document(file) };
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => return Done { outcome: Outcome::Refused, error: Some(error), ..done },
    };
    let text = match format(&bytes, &name) {
        Ok(text) => text,
        Err(Unformatted::Problems(problems)) => {
            return Done { outcome: Outcome::Refused, problems: Some(problems), ..done };
        }
        Err(Unformatted::Unsafe { line, why }) => {
            let place = line.map_or_else(|| name.clone(), |line| format!("{name}:{line}"));
            return Done {
                outcome: Outcome::Failed,
                error: Some(format!("{place}: left as it is: {why}")),
                ..done
            };
        }
    };
    let changed = text.as_bytes() != bytes;
    done.outcome = match (changed, check) {
        (false, _) => Outcome::Unchanged,
        (true, true) => Outcome::Unformatted,
        (true, false) => Outcome::Formatted,
    };
    if is_stdin && !check {
        done.text = Some(text);
    } else if done.outcome == Outcome::Formatted
        && let Err(error) = replace(file, text.as_bytes())
    {
        return Done {
            outcome: Outcome::Failed,
            error: Some(format!("cannot write {name}: {error}")),
            ..done
        };
    }
    done
}

fn read_stdin() -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = io::stdin().take(source::LONGEST as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| format!("cannot read standard input: {error}"))?;
    Ok(bytes)
}

/// Puts a whole new file in the place of the old one: nobody ever reads half of it, and a full disk
/// costs nothing. Links to the file stay, and so do its mode and, where that is allowed, its owner.
fn replace(file: &Path, text: &[u8]) -> io::Result<()> {
    let file = fs::canonicalize(file)?;
    let about = fs::metadata(&file)?;
    let mut beside = file.clone().into_os_string();
    beside.push(format!(".{}.new", std::process::id()));
    let beside = PathBuf::from(beside);
    let written = write(&beside, text, &about).and_then(|()| fs::rename(&beside, &file));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write(path: &Path, text: &[u8], like: &fs::Metadata) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.set_permissions(like.permissions())?;
    let _ = chown(path, Some(like.uid()), Some(like.gid()));
    file.write_all(text)?;
    file.sync_all()
}
