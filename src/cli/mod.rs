//! The command line, one file per command.

mod check;
mod completions;
mod demo;
mod explain;
mod fmt;
mod man;
mod run;
mod schema;
mod test;
mod upgrade;
mod version;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use tollhouse_filters::registry::Registry;

use crate::server::StartError;
use crate::source::Problems;

/// An API gateway: one binary in front of your services.
#[derive(Debug, Parser)]
#[command(name = "tollhouse", version, about, disable_help_subcommand = true)]
struct Arguments {
    /// How results are printed.
    #[arg(long, global = true, value_enum, default_value_t = Output::Text)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serves traffic as a configuration file says.
    Run(run::Arguments),
    /// Checks a configuration file and prints every problem.
    Check(check::Arguments),
    /// Runs the tests written in a configuration file.
    Test(test::Arguments),
    /// Explains what would happen to a request, and why.
    Explain(explain::Arguments),
    /// Gives configuration files one layout; comments and meaning stay.
    Fmt(fmt::Arguments),
    /// Prints the JSON Schema of configuration files.
    Schema,
    /// Starts two sample services and a gateway in front of them.
    Demo(demo::Arguments),
    /// Prints the completions of a shell.
    Completions(completions::Arguments),
    /// Prints the manual page, or writes all of them.
    Man(man::Arguments),
    /// Has this program take the place of a running gateway, without a lost request.
    Upgrade(upgrade::Arguments),
    /// Prints the version.
    Version,
}

/// Why a command did not succeed; decides the exit code.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The user's file has problems: 1.
    Problems(Problems),
    /// The user's file or request is wrong: 1.
    Wrong(String),
    /// What is wrong was said already: this code.
    Said(u8),
    /// Something failed while running: 3.
    Runtime(String),
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::Problems(problems)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::Document(problems) => Self::Problems(problems),
            StartError::Runtime(message) => Self::Runtime(message),
        }
    }
}

/// Parses the arguments and runs the command.
pub(crate) fn run(registry: Registry) -> ExitCode {
    let Arguments { output, command } = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error).unwrap_or_else(|failure| report(&failure, Output::Text)),
    };
    let registry = Arc::new(registry);
    let result = match command {
        Command::Run(arguments) => run::run(arguments, registry),
        Command::Check(arguments) => check::run(arguments, &registry, output),
        Command::Test(arguments) => test::run(arguments, &registry, output),
        Command::Explain(arguments) => explain::run(arguments, &registry, output),
        Command::Fmt(arguments) => fmt::run(arguments, output),
        Command::Schema => schema::run(&registry),
        Command::Demo(arguments) => demo::run(arguments, registry, output),
        Command::Completions(arguments) => completions::run(arguments, Arguments::command(), output),
        Command::Man(arguments) => man::run(arguments, Arguments::command(), output),
        Command::Upgrade(arguments) => upgrade::run(arguments, output),
        Command::Version => version::run(output),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure, output),
    }
}

/// Prints help, or what is wrong with the arguments.
fn usage(error: &clap::Error) -> Result<ExitCode, Failure> {
    if !error.use_stderr() {
        printed(error.print())?;
        return Ok(ExitCode::SUCCESS);
    }
    let arguments: Vec<_> = std::env::args_os().collect();
    let wants_json = arguments.iter().any(|argument| argument == "--output=json")
        || arguments.windows(2).any(|pair| pair[0] == "--output" && pair[1] == "json");
    if wants_json {
        print_json(&serde_json::json!({"error": error.render().to_string().trim_end()}))?;
    } else {
        let _ = error.print();
    }
    Ok(ExitCode::from(2))
}

fn report(failure: &Failure, output: Output) -> ExitCode {
    let (text, code) = match failure {
        Failure::Problems(problems) => (problems.to_string(), 1),
        Failure::Wrong(message) => (message.clone(), 1),
        Failure::Said(code) => return ExitCode::from(*code),
        Failure::Runtime(message) => (message.clone(), 3),
    };
    let told = match (output, failure) {
        (Output::Text, _) => {
            complain(&text, code);
            Ok(())
        }
        (Output::Json, Failure::Problems(problems)) => print_json(problems),
        (Output::Json, _) => print_json(&serde_json::json!({"error": text})),
    };
    match told {
        Ok(()) => ExitCode::from(code),
        // There is nowhere left to tell it in JSON.
        Err(failure) => report(&failure, Output::Text),
    }
}

/// Tells on standard error what went wrong; whether anybody listens changes nothing.
fn complain(text: &str, code: u8) {
    let _ = writeln!(io::stderr(), "{}{}", if code == 3 { "error: " } else { "" }, text.trim_end());
}

/// Prints a line.
fn print(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    printed(writeln!(stdout, "{text}").and_then(|()| stdout.flush()))
}

fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    match serde_json::to_string_pretty(value) {
        Ok(text) => print(text),
        Err(error) => Err(Failure::Runtime(error.to_string())),
    }
}

/// What came of printing; a closed pipe is the reader's choice, not an error.
fn printed(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Runtime(format!("cannot write to standard output: {error}")))
        }
        _ => Ok(()),
    }
}
