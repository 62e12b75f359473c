//! Evaluating expressions, within bounds.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, LazyLock};

use cel::common::types::{CelBool, CelInt, CelString, DYN_TYPE, INT_TYPE, STRING_TYPE};
use cel::common::value::CowVal;
use cel::{Env, ExecutionError, Value};
use pingora_http::RequestHeader;
use regex::Regex;

use super::{Compiled, STEPS, facts};
use crate::context::Context;

/// Charges a loop for what it goes through.
pub(super) const BOUNDED: &str = "@bounded";
/// Asks a pattern by its number.
pub(super) const MATCHES: &str = "@matches";

thread_local! {
    /// Steps left of the evaluation that this thread is at.
    static LEFT: Cell<u32> = const { Cell::new(0) };
    /// Its patterns.
    static PATTERNS: RefCell<Option<Arc<[Regex]>>> = const { RefCell::new(None) };
}

/// The functions of CEL's standard, and our own.
pub(super) static FUNCTIONS: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    env.add_overload(BOUNDED, "bounded", vec![DYN_TYPE], bounded).expect("a name of our own");
    env.add_overload(MATCHES, "matches_number", vec![STRING_TYPE, INT_TYPE], matches)
        .expect("a name of our own");
    Arc::new(env)
});

/// What a loop goes through, if that is not too much.
fn bounded<'b, 'v>(mut args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let range = args.pop().ok_or(ExecutionError::MissingArgumentOrTarget)?;
    let size = range.as_sizer().map_or(0, |sizer| *sizer.size().inner());
    // A loop through nothing costs as well, for who has many of them.
    let cost = u32::try_from(size).unwrap_or(u32::MAX).max(1);
    let left = LEFT.get().checked_sub(cost);
    LEFT.set(left.unwrap_or(0));
    left.map(|_| range).ok_or_else(|| ExecutionError::function_error("loop", "too many steps"))
}

fn matches<'b, 'v>(args: Vec<CowVal<'b, 'v>>) -> Result<CowVal<'b, 'v>, ExecutionError> {
    let text = args.first().and_then(|text| text.downcast_ref::<CelString<'_>>());
    let number = args.get(1).and_then(|number| number.downcast_ref::<CelInt>());
    let (text, number) = text.zip(number).ok_or(ExecutionError::MissingArgumentOrTarget)?;
    let number = usize::try_from(*number.inner()).unwrap_or(usize::MAX);
    let matched = PATTERNS.with_borrow(|patterns| {
        patterns.as_ref().and_then(|patterns| patterns.get(number)).map(|regex| regex.is_match(text.inner()))
    });
    let matched = matched.ok_or_else(|| ExecutionError::function_error("matches", "no such pattern"))?;
    Ok(CowVal::owned(CelBool::from(matched)))
}

/// Whether it holds; else why nobody can tell.
pub(super) fn evaluate(compiled: &Compiled, request: &RequestHeader, ctx: &Context) -> Result<bool, String> {
    let mut scope = cel::Context::with_env(FUNCTIONS.clone());
    for root in &compiled.reads {
        scope.add_variable_from_value(root.name, facts::value(root, request, ctx));
    }
    LEFT.set(STEPS);
    PATTERNS.set((!compiled.patterns.is_empty()).then(|| compiled.patterns.clone()));
    // Whatever a caller's claims bring about in a library, it is no yes and ends no worker.
    let outcome = catch_unwind(AssertUnwindSafe(|| Value::resolve(&compiled.tree, &scope)));
    match outcome {
        Ok(Ok(Value::Bool(holds))) => Ok(holds),
        Ok(Ok(other)) => {
            Err(format!("it is neither true nor false, but a value of type {}", other.type_of()))
        }
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err("its evaluation broke off".to_owned()),
    }
}

/// Why an evaluation failed, without the values that it was about: those may be secrets.
fn reason(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchKey(name) => format!("there is no `{name}`"),
        ExecutionError::NoSuchOverload(error) => error.to_string(),
        ExecutionError::UnexpectedType { got, want } => format!("expected {want}, got {got}"),
        ExecutionError::FunctionError { function, message } if function == "loop" => {
            format!("its loops take {message}: at most {STEPS}")
        }
        ExecutionError::FunctionError { function, .. } => format!("the function `{function}` failed"),
        ExecutionError::UndeclaredReference(name) => format!("there is no `{name}`"),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => {
            "division by zero".to_owned()
        }
        ExecutionError::Overflow(..) => "a number is too large".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => "a list is shorter".to_owned(),
        ExecutionError::ValuesNotComparable(..) => "values of different types are compared".to_owned(),
        _ => "it cannot be evaluated".to_owned(),
    }
}
