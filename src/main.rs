//! The `tollhouse` program: the library with the built-in filters.

use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tollhouse::run(tollhouse_filters::builtin())
}
