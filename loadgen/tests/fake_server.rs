//! What loadgen says of a server that fails: a server of a few lines, which answers as a closure
//! tells it to, in this process or in one of its own.
#![allow(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a server that stalls is one of the cases; what fails here fails the test"
)]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use std::{env, fs, process};

use loadgen::Load;
use loadgen::compare::{Compare, Subject};
use loadgen::fill::Fill;
use loadgen::idle::Idle;
use loadgen::report::Report;
use loadgen::scene::Scene;
use loadgen::side::{Side, Way};
use loadgen::start_time::StartTime;
use loadgen::storm::{Kind, Storm};
use loadgen::workload::{Mix, Op};
use ringkeeper::jute::frame;
use ringkeeper::jute::record::Record as _;
use ringkeeper::jute::{Reader, Write as _};
use ringkeeper::record::op::{code, xid};
use ringkeeper::record::proto::{ConnectResponse, ReplyHeader, RequestHeader};

const VALUE: [u8; 10] = [7; 10];
const STAT: [u8; 68] = [0; 68];

/// What the server does with a request.
enum Does {
    Answers,
    Refuses(i32),
    AnswersShort,
    AnswersAnother,
    StallsThenAnswers(Duration),
    HangsUp,
}

#[derive(Default)]
struct Seen {
    gets: AtomicUsize,
    pings: AtomicUsize,
}

/// Starts a server; `does` is told how many gets there have been.
fn server(does: impl Fn(usize) -> Does + Send + Sync + 'static) -> (String, Arc<Seen>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let seen = Arc::new(Seen::default());
    let seen_by_us = Arc::clone(&seen);
    thread::spawn(move || serve_all(&listener, &seen, &Arc::new(does)));
    (address, seen_by_us)
}

fn serve_all(
    listener: &TcpListener,
    seen: &Arc<Seen>,
    does: &Arc<impl Fn(usize) -> Does + Send + Sync + 'static>,
) {
    for client in listener.incoming() {
        let (seen, does) = (Arc::clone(seen), Arc::clone(does));
        // A client that goes is no failure of the server.
        thread::spawn(move || serve(client.unwrap(), &seen, &*does));
    }
}

fn serve(mut client: TcpStream, seen: &Seen, does: &dyn Fn(usize) -> Does) -> Option<()> {
    client.set_nodelay(true).ok()?;
    greet(&mut client)?;
    loop {
        let request = frame_of(&mut client)?;
        let mut reader = Reader::new(&request);
        let RequestHeader { xid: asked, op } = RequestHeader::read(&mut reader).unwrap();
        let header = ReplyHeader { xid: asked, zxid: 1, err: 0 };
        let mut body = Vec::new();
        match op {
            code::GET_DATA => {
                body.put_buffer(Some(&VALUE));
                body.extend_from_slice(&STAT);
            }
            code::CREATE => body.put_text(&reader.text().unwrap().unwrap()),
            code::SET_DATA | code::EXISTS => body.extend_from_slice(&STAT),
            code::PING => {
                assert_eq!(asked, xid::PING);
                seen.pings.fetch_add(1, Ordering::Relaxed);
            }
            code::CLOSE_SESSION | code::DELETE => {}
            other => panic!("op {other}"),
        }
        let mut header = header;
        if op == code::GET_DATA {
            match does(seen.gets.fetch_add(1, Ordering::Relaxed)) {
                Does::Answers => {}
                Does::Refuses(err) => {
                    header.err = err;
                    body.clear();
                }
                Does::AnswersShort => body.truncate(body.len() - 1),
                Does::AnswersAnother => header.xid += 1,
                Does::StallsThenAnswers(stall) => thread::sleep(stall),
                Does::HangsUp => return None,
            }
        }
        send(&mut client, |out| {
            header.write(out);
            out.extend_from_slice(&body);
        })?;
    }
}

/// Gives a client the session that it asks for.
fn greet(client: &mut TcpStream) -> Option<()> {
    let request = frame_of(client)?;
    let timeout_ms = i32::from_be_bytes(request[12..16].try_into().unwrap());
    let greeting =
        ConnectResponse { timeout_ms, session: 1, password: [0; 16], read_only: Some(false) };
    send(client, |out| greeting.write(out))
}

fn frame_of(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 4];
    client.read_exact(&mut length).ok()?;
    let mut body = vec![0; u32::from_be_bytes(length) as usize];
    client.read_exact(&mut body).ok()?;
    Some(body)
}

fn send(client: &mut TcpStream, body: impl FnOnce(&mut Vec<u8>)) -> Option<()> {
    let mut out = Vec::new();
    frame::write(&mut out, body);
    client.write_all(&out).ok()
}

fn load(server: String) -> Load {
    Load {
        servers: vec![server],
        mix: Mix::only(Op::Get),
        connections: 3,
        depth: 2,
        value_bytes: VALUE.len().into(),
        znodes: 5,
        fan_out: 2,
        warmup: Duration::ZERO,
        duration: Duration::from_millis(300),
        ..Load::default()
    }
}

fn run(load: &Load) -> Report {
    load.run(Some(process::id()), &mut |_, _| {}).unwrap()
}

#[test]
fn right_replies_are_counted_and_each_once() {
    let (server, seen) = server(|_| Does::Answers);
    for threads in [1, 2] {
        let before = seen.gets.load(Ordering::Relaxed);
        let report = run(&Load { threads, ..load(server.clone()) });
        assert!(report.summary.is_clean(), "{report}");
        let asked = seen.gets.load(Ordering::Relaxed) - before;
        let counted = report.summary.ops[0].count as usize;
        // What is in flight at the end is answered, and not counted.
        assert!(0 < counted && counted <= asked && asked <= counted + 6, "{counted} of {asked}");
        assert_eq!(report.summary.per_second.iter().sum::<u64>() as usize, counted);
        assert!(report.server.is_some_and(|server| 0 < server.resident_bytes_end));
    }
}

#[test]
fn refusals_and_odd_replies_are_told_apart() {
    let (server, _) = server(|get| match get % 10 {
        0 => Does::Refuses(-101),
        1 => Does::Refuses(-4444),
        2 => Does::AnswersShort,
        _ => Does::Answers,
    });
    let report = run(&load(server));
    let get = &report.summary.ops[0];
    assert_eq!(get.errors.keys().collect::<Vec<_>>(), ["NoNode (-101)", "error -4444"], "{report}");
    assert!(0 < get.malformed && 0 < get.count, "{report}");
    assert!(!report.summary.is_clean());
}

#[test]
fn a_server_that_hangs_up_is_not_clean() {
    let (server, _) = server(|get| if get == 20 { Does::HangsUp } else { Does::Answers });
    let report = run(&load(server));
    assert_eq!(report.summary.dropped.values().sum::<u64>(), 1, "{report}");
    assert!((1..=2).contains(&report.summary.unanswered), "{report}");
    assert!(!report.summary.is_clean());
}

#[test]
fn a_reply_to_another_request_ends_the_connection() {
    let (server, _) = server(|get| if get == 20 { Does::AnswersAnother } else { Does::Answers });
    let report = run(&load(server));
    let reason = report.summary.dropped.keys().next().unwrap();
    assert!(reason.contains("broke the protocol"), "{reason}");
}

#[test]
fn an_open_loop_charges_a_stall_to_all_it_delayed() {
    const STALL: Duration = Duration::from_millis(500);
    let stalling = |get| match get {
        20 => Does::StallsThenAnswers(STALL),
        _ => Does::Answers,
    };
    let one = |server| Load {
        connections: 1,
        depth: 1,
        duration: Duration::from_secs(1),
        ..load(server)
    };
    let (open_server, _) = server(stalling);
    let open = run(&Load { rate: Some(200.0), ..one(open_server) });
    let (closed_server, _) = server(stalling);
    let closed = run(&one(closed_server));
    let (open, closed) = (&open.summary, &closed.summary);
    // 200 were due, 100 of them while the server stood still.
    assert_eq!(open.ops[0].count + open.unanswered, 200, "{open}");
    assert!(STALL.as_micros() as f64 * 0.99 <= open.ops[0].latency_us.max, "{open}");
    assert!(100_000.0 <= open.ops[0].latency_us.p90, "{open}");
    // Alone, a closed loop has one slow request to show for it.
    assert!(STALL.as_micros() as f64 * 0.99 <= closed.ops[0].latency_us.max, "{closed}");
    assert!(closed.ops[0].latency_us.p90 < 100_000.0, "{closed}");
}

#[test]
fn idle_sessions_are_kept_alive() {
    let (server, seen) = server(|_| Does::Answers);
    let idle = Idle {
        servers: vec![server],
        connections: 40,
        threads: 2,
        hold: Duration::from_millis(700),
        session_timeout_ms: 600,
    };
    let report = idle.run(None, &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{report}");
    // Each once in 200 ms.
    let pings = seen.pings.load(Ordering::Relaxed);
    assert!((80..=240).contains(&pings), "{pings} pings");
}

fn storm(server: String, kind: Kind) -> Storm {
    let scene = Scene {
        servers: vec![server],
        connections: 20,
        threads: 3,
        session_timeout_ms: 10_000,
        root: "/storm".to_owned(),
    };
    Storm { scene, ephemerals: 2, kind, within: Duration::from_secs(60), bystanders: None }
}

#[test]
fn a_storm_makes_cuts_resumes_and_closes_each_session() {
    let (server, _) = server(|_| Does::Answers);
    let kind = Kind::AtOnce { rounds: 2, reconnects: 3 };
    let report = storm(server, kind).run(None, &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{report}");
    let counts: Vec<_> = report.summary.ops.iter().map(|op| (op.op, op.count)).collect();
    let each = [(Op::Ephemeral, 80), (Op::Connect, 40), (Op::Reconnect, 120), (Op::Close, 40)];
    assert_eq!(counts, each, "{report}");
    assert!(report.figures.contains_key("reconnect: ms until the last"), "{report}");
}

#[test]
fn a_storm_waits_for_others_when_a_session_that_lived_is_lost() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let seen = Seen::default();
        let answers: &(dyn Fn(usize) -> Does + Sync) = &|_| Does::Answers;
        thread::scope(|scope| {
            let next = || listener.accept().unwrap().0;
            // What sets up, and then the first session: its server goes once it lives.
            serve(next(), &seen, answers);
            let mut cut = next();
            let others: Vec<TcpStream> = (0..2).map(|_| next()).collect();
            greet(&mut cut).unwrap();
            cut.shutdown(Shutdown::Write).unwrap();
            // It has been seen to be lost before the others are answered.
            assert_eq!(cut.read(&mut [0]).unwrap(), 0);
            for client in others {
                scope.spawn(|| serve(client, &seen, answers));
            }
            loop {
                let client = next();
                scope.spawn(|| serve(client, &seen, answers));
            }
        });
    });
    let kind = Kind::AtOnce { rounds: 1, reconnects: 1 };
    let mut storm = storm(address, kind);
    (storm.scene.connections, storm.scene.threads, storm.ephemerals) = (3, 1, 0);
    let report = storm.run(None, &mut |_, _| {}).unwrap();
    let counts: Vec<_> = report.summary.ops.iter().map(|op| (op.op, op.count)).collect();
    assert_eq!(counts, [(Op::Connect, 3), (Op::Reconnect, 2), (Op::Close, 2)], "{report}");
    let lost: u64 = report.summary.dropped.values().sum();
    assert_eq!((lost, report.summary.unanswered), (1, 0), "{report}");
}

#[test]
fn a_storm_goes_on_for_as_long_as_asked() {
    let (server, _) = server(|_| Does::Answers);
    // Long enough for a machine that does much else to come round a second time.
    let kind = Kind::ForLong { duration: Duration::from_secs(2) };
    let report = storm(server, kind).run(None, &mut |_, _| {}).unwrap();
    assert!(report.is_clean(), "{report}");
    let count = |op| report.summary.ops.iter().find(|it| it.op == op).map_or(0, |it| it.count);
    assert!(20 < count(Op::Connect), "{report}");
    assert_eq!(count(Op::Connect), count(Op::Close), "{report}");
}

#[test]
fn a_comparison_is_of_medians_and_keeps_every_run() {
    let side = |name: &str, server| Side {
        name: name.to_owned(),
        server: Some(server),
        way: Way::Runs { pid: None },
        cpus: Vec::new(),
        config: Vec::new(),
    };
    let (quick, _) = server(|_| Does::Answers);
    let (slow, _) = server(|_| Does::StallsThenAnswers(Duration::from_millis(5)));
    let compare = Compare {
        subject: Subject::Trial(Box::new(load("any:1".to_owned()))),
        prepare: None,
        a: side("quick", quick),
        b: side("slow", slow),
        pairs: 3,
        rehearsal: Duration::from_millis(50),
        restart: false,
        directory: env::temp_dir(),
        limits: None,
    };
    let comparison = compare.run(&mut |_| {}).unwrap();
    assert!(comparison.is_clean(), "{comparison}");
    assert_eq!(comparison.reports.len(), 6);
    let rate = &comparison.figures["get per s"];
    assert_eq!((rate.a.len(), rate.b.len()), (3, 3));
    assert!(rate.a.iter().zip(&rate.b).all(|(quick, slow)| slow < quick), "{comparison}");
    let sides: Vec<_> = comparison.reports.iter().map(|outcome| outcome.side.as_str()).collect();
    assert_eq!(sides, ["quick", "slow", "quick", "slow", "quick", "slow"]);
}

/// Where this process is to be a server, if another test has started it for that.
const SERVES_AT: &str = "LOADGEN_FAKE_SERVER";

#[test]
fn this_process_serves_if_told_to() {
    let Ok(address) = env::var(SERVES_AT) else { return };
    let listener = TcpListener::bind(address).unwrap();
    serve_all(&listener, &Arc::default(), &Arc::new(|_| Does::Answers));
}

/// Servers to start, and what each start found in its data directory.
struct Starts {
    directory: PathBuf,
}

impl Starts {
    fn new(name: &str) -> Starts {
        let directory = env::temp_dir().join(format!("loadgen-{name}-{}", process::id()));
        fs::create_dir(&directory).unwrap();
        Starts { directory }
    }

    /// A server that takes what ringkeeper takes, notes how many files there are in its data
    /// directory, and adds one.
    fn side(&self, name: &str) -> Side {
        let program = self.directory.join(format!("{name}.sh"));
        let script = format!(
            "#!/bin/sh\n\
             data=$(sed -n 's/^dataDir=//p' \"$2\")\n\
             ls \"$data\" | wc -l >>'{}'\n\
             touch \"$data/$$\"\n\
             {SERVES_AT}=127.0.0.1:$(sed -n 's/^clientPort=//p' \"$2\") \\\n\
             exec '{}' this_process_serves_if_told_to --exact\n",
            self.found_by(name).display(),
            env::current_exe().unwrap().display(),
        );
        fs::write(&program, script).unwrap();
        let made = process::Command::new("chmod").arg("+x").arg(&program).status();
        assert!(made.unwrap().success());
        Side {
            name: name.to_owned(),
            server: None,
            way: Way::Ringkeeper { program },
            cpus: Vec::new(),
            config: Vec::new(),
        }
    }

    fn found_by(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.found"))
    }

    fn found(&self, name: &str) -> Vec<u32> {
        let found = fs::read_to_string(self.found_by(name)).unwrap();
        found.split_ascii_whitespace().map(|count| count.parse().unwrap()).collect()
    }

    fn compare(&self, runs: usize) -> Compare {
        let within = Duration::from_secs(60);
        let start_time = StartTime { server: "any:1".to_owned(), runs, within, command: vec![] };
        Compare {
            subject: Subject::Start(start_time),
            prepare: None,
            a: self.side("a"),
            b: self.side("b"),
            pairs: 2,
            rehearsal: Duration::ZERO,
            restart: false,
            directory: self.directory.clone(),
            limits: None,
        }
    }

    /// Nothing is left of any data.
    fn end(self) {
        let left = fs::read_dir(&self.directory).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(left.filter(|path| path.is_dir()).count(), 0);
        fs::remove_dir_all(&self.directory).unwrap();
    }
}

#[test]
fn starts_are_compared_each_with_an_empty_directory() {
    let starts = Starts::new("empty");
    let compare = Compare { rehearsal: Duration::from_secs(1), ..starts.compare(2) };
    let comparison = compare.run(&mut |_| {}).unwrap();
    assert!(comparison.is_clean(), "{comparison}");
    let first_reply = &comparison.figures["first reply ms"];
    assert_eq!((first_reply.a.len(), first_reply.b.len()), (2, 2), "{comparison}");
    assert_eq!(comparison.reports[0].report["first_reply_ms"].as_array().unwrap().len(), 2);
    // A rehearsal, and two pairs of two.
    assert_eq!((starts.found("a"), starts.found("b")), (vec![0; 5], vec![0; 5]));
    starts.end();
}

fn fill() -> Fill {
    Fill {
        servers: vec!["any:1".to_owned()],
        znodes: 10,
        value_bytes: 4.into(),
        path_length: 33,
        fan_out: 1000,
        levels: 1,
        multi: 1,
        connections: 2,
        depth: 2,
        threads: 1,
        root: "/fill".to_owned(),
        seed: 1,
    }
}

#[test]
fn starts_are_compared_with_data_that_was_prepared_once() {
    let starts = Starts::new("prepared");
    let rehearsal = Duration::from_secs(1);
    let compare = Compare { prepare: Some(Box::new(fill())), rehearsal, ..starts.compare(1) };
    let comparison = compare.run(&mut |_| {}).unwrap();
    assert!(comparison.is_clean(), "{comparison}");
    assert!(comparison.to_string().contains("after: loadgen fill"), "{comparison}");
    // Filled, rehearsed, and started in two pairs.
    assert_eq!((starts.found("a"), starts.found("b")), (vec![0, 1, 2, 3], vec![0, 1, 2, 3]));
    starts.end();
}

#[test]
fn each_pair_has_data_of_its_own_if_asked_for() {
    let starts = Starts::new("restart");
    let compare = Compare { prepare: Some(Box::new(fill())), restart: true, ..starts.compare(1) };
    compare.run(&mut |_| {}).unwrap();
    assert_eq!((starts.found("a"), starts.found("b")), (vec![0, 1, 0, 1], vec![0, 1, 0, 1]));
    starts.end();
}

#[test]
fn a_preparation_that_fails_is_told() {
    let starts = Starts::new("unprepared");
    let compare =
        Compare { prepare: Some(Box::new(Fill { znodes: 0, ..fill() })), ..starts.compare(1) };
    let error = compare.run(&mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("one znode at least"), "{error}");
    starts.end();
}

#[test]
fn starts_that_cannot_be_compared_are_refused() {
    let starts = Starts::new("refused");
    let runs = Side { way: Way::Runs { pid: None }, ..starts.side("b") };
    for (compare, reason) in [
        (Compare { b: runs, ..starts.compare(1) }, "only where loadgen starts it"),
        (starts.compare(0), "one run at least"),
        (Compare { pairs: 0, ..starts.compare(1) }, "one pair at least"),
    ] {
        let error = compare.run(&mut |_| {}).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    starts.end();
}
