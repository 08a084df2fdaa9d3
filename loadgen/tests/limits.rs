//! What the machine allows is found out, and by a server that answers as it should.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::time::Duration;

use loadgen::Load;
use loadgen::echo::Echo;
use loadgen::limits::{Fractions, Limits};
use loadgen::workload::{Mix, Op};
use ringkeeper::record::op::code;

fn load() -> Load {
    Load {
        mix: "get=4,set=2,create=1,delete=1,multi=1,children=1".parse().unwrap(),
        connections: 5,
        depth: 3,
        threads: 2,
        znodes: 50,
        fan_out: 10,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(300),
        ..Load::default()
    }
}

fn limits(load: Load) -> Limits {
    let duration = Duration::from_millis(300);
    Limits { load, directory: None, server_cpus: Vec::new(), duration }
}

#[test]
fn the_echo_answers_frames_of_every_size() {
    // Requests and replies beyond one read of either side.
    for value_bytes in ["0", "100", "10..300000"] {
        let load = Load { value_bytes: value_bytes.parse().unwrap(), ..load() };
        let report = limits(load).run().unwrap();
        assert!(report.echo.summary.is_clean(), "{value_bytes}: {report}");
        assert!(0.0 < report.echo.own_cpu_us_per_op, "{report}");
        assert!(0.0 < report.round_trip.p50_us && report.syncs.is_empty(), "{report}");
        let fan_out = report.fan_out;
        assert!(fan_out.connections == 5 && 0 < fan_out.rounds && 0.0 < fan_out.p50_ms, "{report}");
    }
}

#[test]
fn the_disk_is_asked_where_a_directory_is_given() {
    let directory = std::env::temp_dir().join(format!("loadgen-limits-{}", std::process::id()));
    std::fs::create_dir(&directory).unwrap();
    let load = Load { mix: Mix::only(Op::Set), ..load() };
    let report = Limits { directory: Some(directory.clone()), ..limits(load) }.run().unwrap();
    let bytes: Vec<_> = report.syncs.iter().map(|sync| sync.batch_bytes).collect();
    assert!(bytes.is_sorted() && 5 < bytes.len(), "{report}");
    assert!(report.syncs.iter().all(|sync| 0 < sync.samples), "{report}");
    // Nothing is left behind: this succeeds only on an empty directory.
    std::fs::remove_dir(&directory).unwrap();
}

#[test]
fn a_report_is_a_fraction_of_what_the_machine_allows() {
    // A load on an echo is half of what two such allow, and about all of one.
    let load = Load { mix: Mix::only(Op::Set), ..load() };
    let replies = vec![(code::SET_DATA, 68), (code::CREATE, 4 + "/loadgen/000000".len())];
    let echo = Echo::start(replies, &[]).unwrap();
    let load = Load { servers: vec![echo.address().to_string()], keep: true, ..load };
    // The echo's replies to creates are of one length, which not all paths have: no set-up.
    let refused = load.run(None, &mut |_, _| {}).unwrap_err().to_string();
    assert!(refused.contains("odd length"), "{refused}");
    let limits = limits(load.clone()).run().unwrap();
    let report = loadgen::report::Report {
        load,
        summary: limits.echo.summary.clone(),
        server: None,
        own: loadgen::report::OwnCost { cpu_seconds: 0.0, cpu_us_per_op: None, cores: 0.0 },
        fractions: None,
    };
    let fractions = Fractions::new(&report, limits);
    assert!((fractions.of_echo - 1.0).abs() < 1e-9, "{fractions}");
    assert!(fractions.of_round_trip_and_sync.is_none(), "{fractions}");
    assert!(echo.end().unwrap() < Duration::from_secs(60));
}
