//! Scripts: what a few clients do to a server, and what comes of it.
//!
//! ```text
//! # A comment says what is shown.
//! connect a
//! synced
//! ----
//! a: connected, 10000 ms
//! ```
//!
//! Commands, a line `----`, what came out; an empty line ends it. Each file is a server of its
//! own, and each block goes on where the one before ended. `UPDATE=1 cargo test --test scenario`
//! writes what came out into the files, and the difference is read like code. The commands are
//! explained in `cast.rs`.

#![expect(clippy::unwrap_used, reason = "a script that cannot be played fails the test")]

mod cast;
#[path = "../support/script.rs"]
mod script;
mod wire;

use cast::World;

const FOLDER: &str = "tests/scenario";

#[test]
fn scripts_come_out_as_written() {
    script::check(FOLDER, World::new);
}

/// What the scripts are worth: each seeded bug makes one of them come out otherwise.
#[cfg(feature = "mutants")]
#[test]
fn every_seeded_bug_shows_in_some_script() {
    use ringkeeper::shard::Mutant;
    for mutant in Mutant::ALL {
        let shows = script::scripts(FOLDER).iter().any(|path| {
            let script = std::fs::read_to_string(path).unwrap();
            script::play(path, &script, World::with_mutant(mutant)) != script
        });
        assert!(shows, "{mutant:?} is not noticed");
    }
}
