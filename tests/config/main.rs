//! How a start ends: the configurations of `bad-config-results.txt`, on the real binary.
//!
//! That file says what ZooKeeper did: the settings, the exit code, the line on standard error and
//! the exceptions in its log. Every one of its cases is run here, and must end so; the text of
//! every exception must be in our log. `CASES` adds what the file does not hold (arguments, other
//! files, ports that are taken) and lists each deliberate difference with its reason.

#![allow(clippy::unwrap_used, reason = "that is how a test says that it cannot go on")]

mod control;
#[path = "../support/ports.rs"]
mod ports;
mod world;

use world::{Ended, World};

/// What a case needs besides the settings in the file, or does otherwise.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    arguments: Arguments,
    /// Replaces the settings in the file, where it has none.
    settings: Option<&'static str>,
    files: &'static [(&'static str, &'static str)],
    /// A port that somebody else listens on while it runs.
    taken_port: Option<u16>,
    /// What our log must say, if not the texts of ZooKeeper's exceptions.
    causes: Option<&'static [&'static str]>,
    ends: Ends,
}

#[derive(Clone, Copy)]
enum Arguments {
    ZooCfg,
    Words(&'static [&'static str]),
}

#[derive(Clone, Copy)]
enum Ends {
    AsInZooKeeper,
    Otherwise { code: i32, stderr: &'static str, reason: &'static str },
}

const PLAIN: Case = Case {
    name: "",
    arguments: Arguments::ZooCfg,
    settings: None,
    files: &[],
    taken_port: None,
    causes: None,
    ends: Ends::AsInZooKeeper,
};

const ENSEMBLE: &str = "dataDir=/var/zk/bad/data\nclientPort=21850\ninitLimit=5\nsyncLimit=2\n\
    server.1=127.0.1.1:22888:23888\nserver.2=127.0.1.2:22888:23888\n\
    server.3=127.0.1.3:22888:23888\n";
const MISSING_DYNAMIC: &str =
    "dataDir=/var/zk/bad/data\nclientPort=21850\ndynamicConfigFile=/var/zk/bad/missing.dyn\n";
const DYNAMIC: &str =
    "dataDir=/var/zk/bad/data\nclientPort=21850\ndynamicConfigFile=/var/zk/bad/dyn\n";

const CASES: &[Case] = &[
    Case { name: "no-initLimit", files: &[("data/myid", "1")], ..PLAIN },
    Case { name: "no-syncLimit", files: &[("data/myid", "1")], ..PLAIN },
    Case {
        name: "secure-port-nio",
        // ZooKeeper's cause is a socket factory that we do not have.
        causes: Some(&["secureClientPort: TLS is not supported by this version"]),
        ..PLAIN
    },
    Case {
        name: "purge-empty",
        causes: Some(&["autopurge.purgeInterval"]),
        ends: Ends::Otherwise {
            code: 2,
            stderr: "Invalid config, exiting abnormally",
            reason: "an empty value is a bad setting; ZooKeeper trips over it by accident",
        },
        ..PLAIN
    },
    Case {
        name: "port-in-use-admin",
        taken_port: Some(21852),
        causes: Some(&[
            "Problem starting AdminServer on address 0.0.0.0, port 21852 and command URL /commands",
            "Address already in use",
        ]),
        ..PLAIN
    },
    Case { name: "clientport-in-use", taken_port: Some(21852), ..PLAIN },
    Case {
        name: "myid-not-number",
        settings: Some(ENSEMBLE),
        files: &[("data/myid", "abc\n")],
        ..PLAIN
    },
    Case {
        name: "myid-not-in-list",
        settings: Some(ENSEMBLE),
        files: &[("data/myid", "9\n")],
        ..PLAIN
    },
    Case { name: "myid-empty", settings: Some(ENSEMBLE), files: &[("data/myid", "")], ..PLAIN },
    Case { name: "dynamic-missing", settings: Some(MISSING_DYNAMIC), ..PLAIN },
    Case {
        name: "dynamic-with-version",
        settings: Some(DYNAMIC),
        files: &[("dyn", "server.1=127.0.1.1:22888:23888;21850\nversion=100000000\n")],
        ..PLAIN
    },
    Case {
        name: "dynamic-unknown-key",
        settings: Some(DYNAMIC),
        files: &[("dyn", "server.1=127.0.1.1:22888:23888\nclientPort=21850\n")],
        ..PLAIN
    },
    Case { name: "file-missing", arguments: Arguments::Words(&["/var/zk/bad/nope.cfg"]), ..PLAIN },
    Case {
        name: "no-args",
        arguments: Arguments::Words(&[]),
        // Taken, so that the test does not serve the whole network.
        taken_port: Some(2181),
        causes: Some(&["the embedded default", "Address already in use"]),
        ends: Ends::Otherwise {
            code: 1,
            stderr: "",
            reason: "the program alone runs a server on the embedded default",
        },
        ..PLAIN
    },
    Case {
        name: "server-in-both",
        // ZooKeeper names whichever of the three its hash table holds first.
        causes: Some(&["parameter: server.1 must be in a separate dynamic config file"]),
        ..PLAIN
    },
    // One argument is a file, even if it is a number.
    Case { name: "three-args-bad", arguments: Arguments::Words(&["21850"]), ..PLAIN },
    Case {
        name: "two-args",
        arguments: Arguments::Words(&["21852", "/var/zk/bad/data"]),
        taken_port: Some(21852),
        causes: Some(&["Address already in use"]),
        ends: Ends::Otherwise {
            code: 1,
            stderr: "",
            reason: "accepted as in ZooKeeper, which listens on every address then; the test \
                     takes the port, so that it does not serve the whole network",
        },
        ..PLAIN
    },
    Case { name: "five-args", arguments: Arguments::Words(&["1", "2", "3", "4", "5"]), ..PLAIN },
    Case {
        name: "datadir-uncreatable",
        settings: Some("dataDir=/proc/nonexist\nclientPort=21850\n"),
        ..PLAIN
    },
    Case {
        name: "datadir-autocreate-false",
        settings: Some("dataDir=/var/zk/bad/fresh\nclientPort=21850\ndatadir.autocreate=false\n"),
        ..PLAIN
    },
];

/// One case of `bad-config-results.txt`.
struct Sample {
    name: &'static str,
    settings: String,
    /// `None`: it was accepted and ran.
    code: Option<i32>,
    stderr: &'static str,
    /// The texts of the exceptions.
    causes: Vec<&'static str>,
}

fn samples() -> Vec<Sample> {
    let sections = include_str!("bad-config-results.txt").split("\n=== ").skip(1);
    sections.map(Sample::parse).collect()
}

impl Sample {
    fn parse(section: &'static str) -> Sample {
        let (name, rest) = section.split_once('\n').unwrap();
        let mut sample = Sample {
            name: name.trim(),
            settings: String::new(),
            code: None,
            stderr: "",
            causes: Vec::new(),
        };
        for line in rest.lines() {
            if let Some(setting) = line.strip_prefix("    | ") {
                sample.settings.push_str(setting);
                sample.settings.push('\n');
            } else if let Some(code) = line.strip_prefix("exit: ") {
                sample.code = code.parse().ok();
                assert!(sample.code.is_some() || code == "still running (accepted)", "{line}");
            } else if let Some(text) = line.strip_prefix("stderr: ") {
                sample.stderr = text.trim();
            } else if let Some(exception) = line.strip_prefix("  ").filter(|l| !l.starts_with('['))
            {
                let exception = exception.strip_prefix("Caused by: ").unwrap_or(exception);
                sample.causes.push(exception.split_once(": ").unwrap().1);
            }
        }
        sample
    }

    fn case(&self) -> Case {
        CASES.iter().find(|case| case.name == self.name).copied().unwrap_or(PLAIN)
    }
}

/// What is wrong with how a case ended, if anything.
fn complaint(sample: &Sample) -> Option<String> {
    let case = sample.case();
    let world = World::new();
    for (name, text) in case.files {
        world.write(name, text);
    }
    let settings = case.settings.unwrap_or(&sample.settings);
    world.write("zoo.cfg", &world.localized(settings));
    let _listener = case.taken_port.map(|port| world.take(port));
    let words: &[&str] = match case.arguments {
        Arguments::ZooCfg => &["/var/zk/bad/zoo.cfg"],
        Arguments::Words(words) => words,
    };
    let words: Vec<String> = words.iter().map(|word| world.localized(word)).collect();
    let Ended { code, stdout, stderr } = world.run(&words);

    let (expected_code, expected_stderr) = match case.ends {
        Ends::AsInZooKeeper => (sample.code.unwrap(), sample.stderr),
        Ends::Otherwise { code, stderr, reason } => {
            assert!(!reason.is_empty());
            (code, stderr)
        }
    };
    let mut wrong = Vec::new();
    if code != Some(expected_code) {
        wrong.push(format!("exit code {code:?} instead of {expected_code}"));
    }
    if stderr.trim_end() != expected_stderr {
        wrong.push(format!("standard error {stderr:?} instead of {expected_stderr:?}"));
    }
    for cause in case.causes.unwrap_or(&sample.causes) {
        let cause = world.localized(cause);
        if !stdout.contains(&cause) {
            wrong.push(format!("the log does not say {cause:?}"));
        }
    }
    let last = format!("Exiting JVM with code {expected_code}");
    if !stdout.lines().last().is_some_and(|line| line.ends_with(&last)) {
        wrong.push(format!("the log does not end in {last:?}"));
    }
    (!wrong.is_empty()).then(|| format!("{}: {}\n{stdout}", sample.name, wrong.join("; ")))
}

/// Those whose outcome needs a server that binds its port.
const SERVED: [&str; 3] = ["clientport-in-use", "no-args", "two-args"];

fn check(samples: impl Iterator<Item = Sample>) {
    let complaints: Vec<String> = samples.filter_map(|sample| complaint(&sample)).collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

#[test]
fn the_table_holds_every_case_that_was_recorded() {
    let samples = samples();
    assert_eq!(samples.len(), 48);
    for case in CASES {
        assert!(samples.iter().any(|sample| sample.name == case.name), "{}", case.name);
    }
    let accepted: Vec<_> = samples.iter().filter(|sample| sample.code.is_none()).collect();
    assert_eq!(accepted.len(), 2);
}

#[test]
fn a_configuration_that_zookeeper_rejects_ends_as_it_does_there() {
    let rejected = |sample: &Sample| sample.code.is_some() && !SERVED.contains(&sample.name);
    check(samples().into_iter().filter(rejected));
}

#[test]
fn a_server_whose_port_is_taken_ends_and_says_so() {
    check(samples().into_iter().filter(|sample| SERVED.contains(&sample.name)));
}

/// The case jute-bad-sysprop: a property that is no number is the default, and no reason to end.
#[test]
fn a_configuration_that_zookeeper_accepts_is_served_until_the_server_is_asked_to_end() {
    let accepted = samples();
    let accepted = accepted.iter().find(|sample| sample.name == "jute-bad-sysprop").unwrap();
    let world = World::new();
    let settings = format!("{}clientPortAddress=127.0.0.1\n", accepted.settings);
    world.write("zoo.cfg", &world.localized(&settings));
    let server = world.start(&[world.localized("/var/zk/bad/zoo.cfg")]);
    server.answers_on(world.port(21850));
    let Ended { code, stdout, stderr } = server.ended_by_request();
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{stdout}");
    assert!(stdout.contains("snapCount=abc"), "{stdout}");
}
