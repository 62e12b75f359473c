//! Compiling expressions: what they name exists, and what they can cost is bounded.

use std::thread;

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, SourceInfo, operators};
use cel::parser::Expression as Tree;
use regex::Regex;

use super::Compiled;
use super::evaluate::{BOUNDED, FUNCTIONS, MATCHES};
use super::facts::{NAMES, Root};
use crate::tree::suggest;
use crate::values;

/// Most parts of an expression.
const PARTS: usize = 500;
/// How deep they can be within each other.
const DEPTH: usize = 48;

/// What can be called, beside operators.
const CALLS: [&str; 12] = [
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "string",
    "int",
    "uint",
    "double",
    "bool",
    "type",
    "dyn",
];
/// What `type` gives.
const TYPES: [&str; 10] =
    ["bool", "int", "uint", "double", "string", "bytes", "list", "map", "null_type", "type"];

/// Stack to compile with, of which little is touched: the parser descends once for each part, and looks at how deep
/// they are too late.
const STACK: usize = 64 << 20;

/// Compiles an expression, or says what is wrong and where.
pub(super) fn compile(text: &str) -> Result<Compiled, String> {
    let owned = text.to_owned();
    let compiler = thread::Builder::new().name("expression".to_owned()).stack_size(STACK);
    let compiled =
        compiler.spawn(values::carried(move || compile_here(&owned))).map_err(|error| error.to_string())?;
    compiled.join().unwrap_or_else(|_| Err("no expression: its reader broke off".to_owned()))
}

fn compile_here(text: &str) -> Result<Compiled, String> {
    let parser = FUNCTIONS.parser().enable_optional_syntax(false);
    let (mut tree, source) = parser.parse_with_source_info(text).map_err(|errors| {
        let first = errors.errors.first();
        let (place, message) = first.map_or(((1, 1), "it cannot be read"), |error| (error.pos, &*error.msg));
        format!("no expression, at line {}, column {}: {}", place.0, place.1, message.trim())
    })?;
    let mut walk = Walk { text, source: &source, bound: vec![], reads: vec![], patterns: vec![], parts: 0 };
    walk.visit(&mut tree, 0)?;
    let Walk { reads, patterns, .. } = walk;
    Ok(Compiled { text: text.into(), tree, reads, patterns: patterns.into() })
}

/// Goes through an expression once.
struct Walk<'a> {
    text: &'a str,
    source: &'a SourceInfo,
    /// Variables of the loops around.
    bound: Vec<String>,
    reads: Vec<Root>,
    patterns: Vec<Regex>,
    parts: usize,
}

impl Walk<'_> {
    /// What is wrong at this part.
    fn wrong(&self, part: u64, message: &str) -> String {
        let Some((start, _)) = self.source.offset_for(part) else { return message.to_owned() };
        let before: Vec<char> = self.text.chars().take(start as usize).collect();
        let line = before.iter().filter(|c| **c == '\n').count() + 1;
        let column = before.iter().rev().take_while(|c| **c != '\n').count() + 1;
        format!("{message}, at line {line}, column {column}")
    }

    fn visit(&mut self, part: &mut Tree, depth: usize) -> Result<(), String> {
        self.parts += 1;
        if self.parts > PARTS {
            return Err(format!("expected an expression of at most {PARTS} parts"));
        }
        if depth > DEPTH {
            return Err(format!("expected an expression of parts at most {DEPTH} deep"));
        }
        let id = part.id;
        match &mut part.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => match self.root(name) {
                Some(at) => self.read(at, None, id),
                None if self.bound.contains(name) || TYPES.contains(&name.as_str()) => Ok(()),
                None => Err(self.wrong(id, &unknown("variable", name, NAMES.iter().map(|(name, _)| *name)))),
            },
            Expr::Select(select) => {
                if let Expr::Ident(name) = &select.operand.expr
                    && let Some(at) = self.root(name)
                {
                    return self.read(at, Some(&select.field), id);
                }
                self.visit(&mut select.operand, depth + 1)
            }
            Expr::Call(call) => self.call(call, id, depth),
            Expr::Comprehension(comprehension) => self.comprehension(comprehension, depth),
            Expr::List(list) => list.elements.iter_mut().try_for_each(|part| self.visit(part, depth + 1)),
            Expr::Map(map) => map.entries.iter_mut().try_for_each(|entry| match &mut entry.expr {
                EntryExpr::MapEntry(entry) => {
                    self.visit(&mut entry.key, depth + 1)?;
                    self.visit(&mut entry.value, depth + 1)
                }
                EntryExpr::StructField(_) => Err(self.wrong(id, "there are no messages here")),
            }),
            Expr::Struct(_) => Err(self.wrong(id, "there are no messages here")),
            Expr::Unspecified => Err(self.wrong(id, "a part is missing")),
        }
    }

    /// The variable of this name, unless a loop has one that is called the same.
    fn root(&self, name: &str) -> Option<usize> {
        let is_bound = self.bound.iter().any(|bound| bound == name);
        NAMES.iter().position(|(known, _)| !is_bound && *known == name)
    }

    /// Notes what of a variable is read, if that exists.
    fn read(&mut self, at: usize, member: Option<&str>, part: u64) -> Result<(), String> {
        let (name, known) = NAMES[at];
        if let (Some(member), Some(known)) = (member, known)
            && !known.contains(&member)
        {
            let what = format!("member of `{name}`");
            return Err(self.wrong(part, &unknown(&what, member, known.iter().copied())));
        }
        let member = member.map(str::to_owned);
        match (self.reads.iter_mut().find(|root| root.name == name), member) {
            (Some(root), None) => root.members = None,
            (Some(Root { members: None, .. }), _) => {}
            (Some(Root { members: Some(members), .. }), Some(member)) => members.push(member),
            (None, member) => self.reads.push(Root { name, members: member.map(|member| vec![member]) }),
        }
        Ok(())
    }

    fn call(&mut self, call: &mut CallExpr, id: u64, depth: usize) -> Result<(), String> {
        // A member by its name in brackets.
        if let (operators::INDEX, [of, member]) = (call.func_name.as_str(), &call.args[..])
            && let (Expr::Ident(name), Expr::Literal(LiteralValue::String(member))) = (&of.expr, &member.expr)
            && let Some(at) = self.root(name)
        {
            let member = member.inner().to_owned();
            return self.read(at, Some(&member), id);
        }
        let is_operator = !call.func_name.starts_with(|c: char| c.is_ascii_alphabetic());
        if !is_operator && !CALLS.contains(&call.func_name.as_str()) {
            return Err(self.wrong(id, &unknown("function", &call.func_name, CALLS)));
        }
        if call.func_name == "matches" {
            self.pattern(call, id)?;
        }
        if let Some(target) = &mut call.target {
            self.visit(target, depth + 1)?;
        }
        call.args.iter_mut().try_for_each(|part| self.visit(part, depth + 1))
    }

    /// Compiles a pattern now: one that a request brings along could be made to be slow.
    fn pattern(&mut self, call: &mut CallExpr, id: u64) -> Result<(), String> {
        let wrong = |message| self.wrong(id, message);
        let pattern = call.args.pop();
        let text = match (call.target.take(), call.args.pop()) {
            (Some(target), None) => *target,
            (None, Some(text)) => text,
            _ => return Err(wrong("expected `TEXT.matches('PATTERN')`")),
        };
        let Some(Tree { id: place, expr: Expr::Literal(LiteralValue::String(pattern)) }) = pattern else {
            return Err(wrong("the pattern of `matches` has to be written as it is"));
        };
        let regex = values::regex(pattern.inner());
        let regex = regex.map_err(|_| wrong("expected a regular expression of RE2's kind"))?;
        let number = i64::try_from(self.patterns.len()).unwrap_or(i64::MAX);
        self.patterns.push(regex);
        let number = Tree { id: place, expr: Expr::Literal(LiteralValue::Int(number.into())) };
        *call = CallExpr { func_name: MATCHES.to_owned(), target: None, args: vec![text, number] };
        Ok(())
    }

    fn comprehension(&mut self, of: &mut ComprehensionExpr, depth: usize) -> Result<(), String> {
        self.visit(&mut of.iter_range, depth + 1)?;
        self.visit(&mut of.accu_init, depth + 1)?;
        let before = self.bound.len();
        self.bound.extend([of.iter_var.clone(), of.accu_var.clone()]);
        self.bound.extend(of.iter_var2.clone());
        for part in [&mut of.loop_cond, &mut of.loop_step, &mut of.result] {
            self.visit(part, depth + 1)?;
        }
        self.bound.truncate(before);
        let range = std::mem::take(&mut of.iter_range);
        let call = CallExpr { func_name: BOUNDED.to_owned(), target: None, args: vec![range] };
        of.iter_range = Tree { id: 0, expr: Expr::Call(call) };
        Ok(())
    }
}

fn unknown<'a>(what: &str, name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let near = suggest(name, known).map_or(String::new(), |near| format!(", did you mean `{near}`?"));
    format!("there is no {what} called `{name}`{near}")
}
