//! The numbered facts about the client port, as raw packets, in one table ([`table::TABLE`]).
//!
//! The table is run against the ringkeeper binary:
//!
//! ```text
//! cargo test --test conformance
//! CASE=17,20 cargo test --test conformance      only these
//! ```
//!
//! and, so that the table itself is proven right, against Apache ZooKeeper, which decides where a
//! fact turns out wrong:
//!
//! ```text
//! CONFORMANCE_TARGET=zookeeper cargo test --test conformance
//! ```
//!
//! That takes Debian's package (3.8.0). `ZOOKEEPER_CLASSPATH` names any other release, as a Java
//! class path with ZooKeeper's jar and those it needs (`…/apache-zookeeper-3.9.3-bin/lib/*`). Its
//! version is asked for by `srvr`, unless `ZOOKEEPER_VERSION` tells it. The table knows what
//! releases from 3.8.0 on answer; it describes 3.10, which is how ringkeeper behaves.
//!
//! Nothing here uses the ringkeeper library: an encoder that is wrong on both sides would agree
//! with itself. Each case has a path prefix of its own, or a server of its own where the fact
//! needs a fresh one. Cases that share a server run in the order of the table; the groups run at
//! the same time. No case waits for time to pass, only for events and for the ends of connections.

#![expect(
    clippy::disallowed_methods,
    reason = "a client of a real server needs the real clock for its deadlines"
)]

mod cases;
mod client;
mod golden;
mod md5;
#[path = "../support/ports.rs"]
mod ports;
mod snapshot;
mod table;
mod target;
mod trial;
mod wire;

use std::env;
use std::io::{self, Write};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use table::{Against, Case, On, TABLE};
use target::{Seed, Server, Settings, Target};
use trial::{Stop, Trial};

/// How a case came out.
enum Verdict {
    Passed,
    Failed(Vec<String>),
    /// It fails, and the table says so.
    Missed(&'static str),
    NotRun(&'static str),
}

#[test]
fn the_server_answers_as_the_table_says() {
    let target = Target::from_environment().unwrap_or_else(|Stop(why)| panic!("{why}"));
    let chosen = chosen_cases();
    say(&format!("conformance of {}", target.name()));
    let verdicts = Mutex::new(Vec::new());
    let report = |case: &'static Case, started: Instant, verdict: Verdict| {
        let took_ms = started.elapsed().as_millis();
        let Case { number, name, .. } = case;
        say(&match &verdict {
            Verdict::Passed => format!("{number:>5} ok {took_ms:>5} ms  {name}"),
            Verdict::Failed(_) => format!("{number:>5} FAILED {took_ms} ms  {name}"),
            Verdict::Missed(why) => format!("{number:>5} missing  {name}: {why}"),
            Verdict::NotRun(why) => format!("{number:>5} not run  {name}: {why}"),
        });
        verdicts.lock().expect("no reporter panics").push((case, verdict));
    };

    let (target, report) = (&target, &report);
    thread::scope(|scope| {
        for group in groups(&chosen, target) {
            scope.spawn(move || run_group(target, group, report));
        }
    });

    let verdicts = verdicts.into_inner().expect("no reporter panics");
    let count = |wanted: fn(&Verdict) -> bool| verdicts.iter().filter(|v| wanted(&v.1)).count();
    say(&format!(
        "{} of {} cases passed, {} are known to be missing, {} not run",
        count(|v| matches!(v, Verdict::Passed)),
        chosen.len(),
        count(|v| matches!(v, Verdict::Missed(_))),
        count(|v| matches!(v, Verdict::NotRun(_))),
    ));
    assert_eq!(verdicts.len(), chosen.len(), "each case has one verdict");
    let mut failures = String::new();
    for (case, verdict) in &verdicts {
        if let Verdict::Failed(reasons) = verdict {
            failures += &format!("\n{} {}\n", case.number, case.name);
            if let Some(note) = case.note() {
                failures += &format!("  ({note})\n");
            }
            for reason in reasons {
                failures += &format!("  - {reason}\n");
            }
        }
    }
    assert!(
        failures.is_empty(),
        "{} does not answer as the table says:\n{failures}",
        target.name()
    );
}

/// The cases of `CASE=17,20`, or all.
fn chosen_cases() -> Vec<&'static Case> {
    let Ok(list) = env::var("CASE") else { return TABLE.iter().collect() };
    let find = |number: &str| {
        let number = number.trim();
        let case = TABLE.iter().find(|case| case.number == number);
        case.unwrap_or_else(|| panic!("CASE={list}: the table has no {number:?}"))
    };
    list.split(',').map(find).collect()
}

/// Cases that run one after the other, on one server if they share one.
struct Group {
    shared: Option<&'static Settings>,
    cases: Vec<&'static Case>,
}

fn groups(chosen: &[&'static Case], target: &Target) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for &case in chosen {
        let shared = match (case.why_not_run(target), case.on) {
            (None, On::Shared(settings)) => Some(settings),
            (Some(_), _) | (None, On::Fresh(_) | On::Own | On::Ensemble) => None,
        };
        let name = |settings: Option<&Settings>| settings.map(|s| s.name);
        match groups.iter_mut().find(|group| name(group.shared) == name(shared)) {
            Some(group) => group.cases.push(case),
            None => groups.push(Group { shared, cases: vec![case] }),
        }
    }
    groups
}

fn run_group(target: &Target, group: Group, report: &impl Fn(&'static Case, Instant, Verdict)) {
    let server = match group.shared.map(|settings| Server::start(target, settings, Seed::Empty)) {
        None => None,
        Some(Ok(server)) => Some(server),
        Some(Err(Stop(why))) => {
            for case in group.cases {
                report(case, Instant::now(), Verdict::Failed(vec![why.clone()]));
            }
            return;
        }
    };
    for case in group.cases {
        let started = Instant::now();
        let verdict = match case.why_not_run(target) {
            Some(why) => Verdict::NotRun(why),
            None => judge(case, target, try_case(case, target, server.as_ref())),
        };
        report(case, started, verdict);
    }
}

/// What is wrong with the answers to one case.
fn try_case(case: &Case, target: &Target, shared: Option<&Server>) -> Vec<String> {
    let fresh;
    let server = match case.on {
        On::Shared(_) => shared,
        On::Fresh(settings) => match Server::start(target, settings, Seed::Empty) {
            Ok(server) => {
                fresh = server;
                Some(&fresh)
            }
            Err(Stop(why)) => return vec![why],
        },
        On::Own | On::Ensemble => None,
    };
    let mut trial = Trial::new(target, server, case.number);
    let prepared = match case.on {
        On::Shared(settings) if settings.name != target::ENFORCED.name => trial.make_root(),
        On::Shared(_) | On::Fresh(_) | On::Own | On::Ensemble => Ok(()),
    };
    let outcome = prepared.and_then(|()| (case.run)(&mut trial));
    let mut reasons = trial.into_mismatches();
    if let Err(Stop(why)) = outcome {
        reasons.push(why);
    }
    reasons
}

/// A case that ringkeeper is known to miss must be missed, or its line in the table is stale.
fn judge(case: &Case, target: &Target, reasons: Vec<String>) -> Verdict {
    match (case.against, target.is_ours(), reasons.is_empty()) {
        (Against::ZooKeeperUntil(why), true, false) => Verdict::Missed(why),
        (Against::ZooKeeperUntil(why), true, true) => {
            Verdict::Failed(vec![format!("it passes, although the table says: {why}")])
        }
        (_, _, true) => Verdict::Passed,
        (_, _, false) => Verdict::Failed(reasons),
    }
}

/// A line for whoever watches, past the test harness, which would keep it back.
fn say(line: &str) {
    // Nobody watching is no reason to fail.
    drop(writeln!(io::stderr().lock(), "{line}"));
}
