//! Scripts: commands, a line `----`, what came out; an empty line ends a block. Lines that begin
//! with `#` are comments. Each file is a world of its own, and each block goes on where the one
//! before ended. With `UPDATE=1` in the environment, what came out is written into the files, and
//! the difference is read like code.

use std::fs;
use std::path::{Path, PathBuf};

const RULE: &str = "----";

/// What a script is about.
pub(crate) trait Stage {
    /// Does what a line says.
    fn play(&mut self, line: &str) -> Result<(), String>;
    /// What has come out since this was last asked.
    fn take_outcome(&mut self) -> String;
}

/// Plays every script in the folders of `folder`, which lies in the package, and holds the outcome
/// against what is written.
pub(crate) fn check<S: Stage>(folder: &str, begin: impl Fn() -> S) {
    let update = std::env::var_os("UPDATE").is_some();
    let mut different = String::new();
    for path in scripts(folder) {
        let script = fs::read_to_string(&path).unwrap();
        let outcome = play(&path, &script, begin());
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

pub(crate) fn scripts(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
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
pub(crate) fn play(path: &Path, script: &str, mut world: impl Stage) -> String {
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
