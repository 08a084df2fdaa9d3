//! The `ringkeeper` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    ringkeeper::cli::main()
}
