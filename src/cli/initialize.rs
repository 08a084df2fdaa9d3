//! initialize: data directories made ready, what `zkServer-initialize.sh` does, with its messages
//! and exit codes.
//!
//! ```text
//! <dataDir>/version-2, <dataLogDir>/version-2    new and empty
//! <dataDir>/myid                                 where one is given
//! <dataDir>/initialize                           says that an empty database is meant to be
//! ```
//!
//! `--force` deletes what was there before. Unlike the script's, ours does not do so under a
//! server that runs, and takes the watermark of the deleted logs with them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::control::config_path;
use super::{Invocation, World, say};
use crate::config::Surroundings as _;
use crate::config::properties::Properties;
use crate::shell;

/// What is asked for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wishes {
    config_file: Option<String>,
    my_id: Option<i64>,
    force: bool,
}

/// Why nothing was done; the line to say.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Usage(Option<String>),
    Other(String),
}

pub(super) fn initialize(invocation: &Invocation) -> u8 {
    let outcome = Wishes::parse(&invocation.words).and_then(|wishes| {
        let file = config_path(invocation, wishes.config_file.clone());
        make_ready(&wishes, &file).map_err(Refusal::Other)
    });
    match outcome {
        Ok(()) => 0,
        Err(Refusal::Usage(complaint)) => {
            complaint.into_iter().for_each(|line| say(&format!("{line}\n")));
            say(&usage(&config_path(invocation, None)));
            1
        }
        Err(Refusal::Other(line)) => {
            say(&format!("{line}\n"));
            1
        }
    }
}

impl Wishes {
    fn parse(words: &[String]) -> Result<Wishes, Refusal> {
        let mut wishes = Wishes::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let mut value = || {
                let given = value.clone().or_else(|| words.next().cloned());
                let given = given.filter(|text| !text.is_empty());
                given.ok_or_else(|| Refusal::Usage(Some(format!("{name} needs a value"))))
            };
            match name {
                "--configfile" => wishes.config_file = Some(value()?),
                "--myid" => {
                    let text = value()?;
                    let wrong = |_| Refusal::Other(format!("myid {text} is not a number"));
                    wishes.my_id = Some(text.parse().map_err(wrong)?);
                }
                "--force" => wishes.force = true,
                "-h" | "--help" => return Err(Refusal::Usage(None)),
                _ => return Err(Refusal::Usage(Some(format!("Unknown option: {word}")))),
            }
        }
        Ok(wishes)
    }
}

fn usage(config_file: &Path) -> String {
    format!(
        "usage: ringkeeper initialize <parameters>\n  \
         Optional parameters:\n     \
         -h                                                    Display this message\n     \
         --help                                                Display this message\n     \
         --configfile={:<40} ZooKeeper config file\n     \
         --myid=#                                              Set the myid to be used, if any (1-255)\n     \
         --force                                               Force creation of the data/txnlog dirs\n",
        config_file.display()
    )
}

fn make_ready(wishes: &Wishes, file: &Path) -> Result<(), String> {
    let shown = file.display();
    let text = World.read(file).map_err(|error| format!("{shown}: {error}"))?;
    let text = text.ok_or_else(|| format!("Unable to find config file at {shown}"))?;
    let settings = Properties::parse(&text).map_err(|error| format!("{shown}: {error}"))?;
    let directory = |key| settings.value(key).filter(|value| !value.is_empty()).map(PathBuf::from);
    let data = directory("dataDir").ok_or(format!("Unable to determine dataDir from {shown}"))?;
    let logs = directory("dataLogDir");
    if wishes.force {
        say("Force enabled, data/txnlog directories will be re-initialized\n");
    } else {
        for (what, directory) in [("data", Some(&data)), ("txnlog", logs.as_ref())] {
            if let Some(directory) = directory.filter(|at| at.join("version-2").is_dir()) {
                return Err(format!(
                    "ZooKeeper {what} directory already exists at {} (or use --force to force \
                     re-initialization)",
                    directory.display()
                ));
            }
        }
    }
    shell::begin_anew(&data, logs.as_ref().unwrap_or(&data)).map_err(|error| error.to_string())?;
    let my_id = data.join("myid");
    let written = match wishes.my_id {
        Some(id) => {
            say(&format!("Using myid of {id}\n"));
            fs::write(&my_id, format!("{id}\n"))
        }
        None => {
            say(&format!(
                "No myid provided, be sure to specify it in {} if using non-standalone\n",
                my_id.display()
            ));
            fs::remove_file(&my_id).or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            })
        }
    };
    written.map_err(|error| format!("{}: {error}", my_id.display()))?;
    let mark = data.join("initialize");
    fs::write(&mark, b"").map_err(|error| format!("{}: {error}", mark.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_as_the_script_reads_them() {
        let parse = |line: &str| {
            Wishes::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        };
        let all = Wishes { config_file: Some("/z".to_owned()), my_id: Some(3), force: true };
        assert_eq!(parse("--configfile=/z --myid=3 --force").as_ref(), Ok(&all));
        assert_eq!(parse("--configfile /z --force --myid 3").as_ref(), Ok(&all));
        assert_eq!(parse(""), Ok(Wishes::default()));
        assert_eq!(parse("--myid 3 -h"), Err(Refusal::Usage(None)));
        assert!(
            matches!(parse("--bogus"), Err(Refusal::Usage(Some(line))) if line == "Unknown option: --bogus")
        );
        assert!(matches!(parse("--myid"), Err(Refusal::Usage(Some(_)))));
        assert!(matches!(parse("--myid=x"), Err(Refusal::Other(_))));
    }
}
