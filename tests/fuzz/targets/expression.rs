//! Expressions in CEL: refused with a message or evaluated, in bounded time, with the same end each time.

#![no_main]

use libfuzzer_sys::fuzz_target;
use tollhouse_filters::expression::Expression;
use tollhouse_filters::testing::request;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(expression) = Expression::parse(text) else { return };
    let (mut head, ctx) = request("GET", "/a/b?c=d&c=e");
    head.append_header("x-a", "1").expect("a field");
    let first = expression.holds(&head, &ctx);
    assert_eq!(expression.holds(&head, &ctx), first);
});
