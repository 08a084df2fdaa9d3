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
mod wire;

use std::fs;
use std::path::{Path, PathBuf};

use cast::World;

const RULE: &str = "----";

#[test]
fn scripts_come_out_as_written() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut different = String::new();
    for path in scripts() {
        let script = fs::read_to_string(&path).unwrap();
        let outcome = play(&path, &script, World::new());
        if outcome == script {
            continue;
        }
        if update {
            fs::write(&path, &outcome).unwrap();
        } else {
            different.push_str(&difference(&path, &script, &outcome));
        }
    }
    assert!(different.is_empty(), "\n{different}");
}

/// What the scripts are worth: each seeded bug makes one of them come out otherwise.
#[cfg(feature = "mutants")]
#[test]
fn every_seeded_bug_shows_in_some_script() {
    use ringkeeper::shard::Mutant;
    for mutant in Mutant::ALL {
        let shows = scripts().iter().any(|path| {
            let script = fs::read_to_string(path).unwrap();
            play(path, &script, World::with_mutant(mutant)) != script
        });
        assert!(shows, "{mutant:?} is not noticed");
    }
}

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenario");
    let mut scripts = Vec::new();
    for group in fs::read_dir(&folder).unwrap() {
        let group = group.unwrap().path();
        if group.is_dir() {
            scripts.extend(fs::read_dir(group).unwrap().map(|script| script.unwrap().path()));
        }
    }
    scripts.sort();
    assert!(!scripts.is_empty(), "no scripts in {}", folder.display());
    scripts
}

/// The script with what came out of it.
fn play(path: &Path, script: &str, mut world: World) -> String {
    let mut played = String::new();
    for (number, block) in script.split("\n\n").enumerate() {
        let block = block.trim_matches('\n');
        if number > 0 {
            played.push_str("\n\n");
        }
        let commands = block.split_once(&format!("\n{RULE}")).map_or(block, |(before, _)| before);
        played.push_str(commands);
        let commands: Vec<&str> = commands.lines().filter(|line| !line.starts_with('#')).collect();
        if commands.is_empty() {
            continue;
        }
        for line in commands {
            world.play(line).unwrap_or_else(|error| {
                panic!("{}: {line}: {error}", path.display());
            });
        }
        played.push_str(&format!("\n{RULE}\n{}", world.take_outcome()));
        played.truncate(played.trim_end_matches('\n').len());
    }
    played.push('\n');
    played
}

fn difference(path: &Path, script: &str, outcome: &str) -> String {
    let line = script.lines().zip(outcome.lines()).position(|(written, now)| written != now);
    let line = line.unwrap_or(script.lines().count().min(outcome.lines().count()));
    let at = |text: &str| text.lines().nth(line).unwrap_or("(end)").to_owned();
    format!(
        "{}:{}: came out otherwise\n  written: {}\n  now:     {}\n",
        path.display(),
        line + 1,
        at(script),
        at(outcome)
    )
}
