//! The control commands, with the outputs and exit codes of `zkServer.sh`.

use std::fs;

use ringkeeper::shell::process::Process;

use super::world::{Ended, Leftover, World};

#[track_caller]
fn check(ended: &Ended, code: i32, stdout: &str) {
    let Ended { code: actual, stdout: said, stderr } = ended;
    assert_eq!((*actual, said.as_str()), (Some(code), stdout), "standard error: {stderr}");
}

fn with_settings(settings: &str) -> World {
    let world = World::new();
    world.write("zoo.cfg", &world.localized(settings));
    world
}

const SETTINGS: &str =
    "dataDir=/var/zk/bad/data\nclientPort=21850\nclientPortAddress=127.0.0.1\ntickTime=2000\n";

#[test]
fn a_server_is_started_seen_restarted_and_stopped() {
    let world = with_settings(SETTINGS);
    let pid_file = world.path("data/zookeeper_server.pid");
    let _leftover = Leftover(&pid_file);
    check(&world.run(&["start", "zoo.cfg"]), 0, "Starting zookeeper ... STARTED\n");
    let pid: u32 = fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    let first = Process::open(pid).unwrap().unwrap();
    assert!(first.is_running().unwrap());
    let output = world.path("data/logs");
    let output = fs::read_dir(output).unwrap().next().unwrap().unwrap();
    let log = fs::read_to_string(output.path()).unwrap();
    assert!(log.contains("Reading configuration from: "), "{log}");

    let again = format!("Starting zookeeper ... already running as process {pid}.\n");
    check(&world.run(&["start", "zoo.cfg"]), 1, &again);
    let port = world.port(21850);
    let found =
        format!("Client port found: {port}. Client address: 127.0.0.1. Client SSL: false.\n");
    check(&world.run(&["status", "zoo.cfg"]), 0, &format!("{found}Mode: standalone\n"));

    let both = "Stopping zookeeper ... STOPPED\nStarting zookeeper ... STARTED\n";
    check(&world.run(&["restart", "zoo.cfg"]), 0, both);
    assert!(!first.is_running().unwrap());
    check(&world.run(&["stop", "zoo.cfg"]), 0, "Stopping zookeeper ... STOPPED\n");
    assert!(!pid_file.exists());
    let not_running = "Error contacting service. It is probably not running.\n";
    check(&world.run(&["status", "zoo.cfg"]), 1, &format!("{found}{not_running}"));
}

#[test]
fn directories_are_made_ready_and_emptied_only_by_force_and_under_no_server() {
    let world = with_settings(&format!("{SETTINGS}dataLogDir=/var/zk/bad/logs\n"));
    let data = world.path("data").display().to_string();
    let none =
        format!("No myid provided, be sure to specify it in {data}/myid if using non-standalone\n");
    let forced = "Force enabled, data/txnlog directories will be re-initialized\n";
    let with_id = ["initialize", "--configfile=zoo.cfg", "--myid=3"];
    check(&world.run(&with_id), 0, "Using myid of 3\n");
    assert_eq!(fs::read_to_string(world.path("data/myid")).unwrap(), "3\n");
    for made in ["data/version-2", "logs/version-2", "data/initialize"] {
        assert!(world.path(made).exists(), "{made}");
    }
    let refused = format!(
        "ZooKeeper data directory already exists at {data} (or use --force to force \
         re-initialization)\n"
    );
    check(&world.run(&["initialize"]), 1, &refused);
    let server = world.start(&["start-foreground", "zoo.cfg"]);
    server.answers_on(world.port(21850));
    let under_way = world.run(&["initialize", "--force"]);
    assert_eq!(under_way.code, Some(1));
    assert!(under_way.stdout.contains("another server is running"), "{}", under_way.stdout);
    assert!(world.path("data/version-2/snapshot.0").exists());
    assert_eq!(server.ended_by_request().code, Some(0));
    assert!(world.path("logs/ringkeeper.watermark").exists());
    check(&world.run(&["initialize", "--force"]), 0, &format!("{forced}{none}"));
    assert_eq!(fs::read_dir(world.path("data/version-2")).unwrap().count(), 0);
    for gone in ["data/myid", "logs/ringkeeper.watermark"] {
        assert!(!world.path(gone).exists(), "{gone}");
    }
    let server = world.start(&["start-foreground", "zoo.cfg"]);
    server.answers_on(world.port(21850));
    assert_eq!(server.ended_by_request().code, Some(0));
    let missing = world.run(&["initialize", "--configfile", "/nowhere/zoo.cfg"]);
    check(&missing, 1, "Unable to find config file at /nowhere/zoo.cfg\n");
    let wrong = world.run(&["initialize", "--bogus"]);
    assert_eq!(wrong.code, Some(1));
    assert!(wrong.stdout.starts_with("Unknown option: --bogus\nusage: "), "{}", wrong.stdout);
}

#[test]
fn stop_without_a_server_succeeds() {
    let world = with_settings(SETTINGS);
    let ended = world.run(&["stop", "zoo.cfg"]);
    let expected = "Stopping zookeeper ... no zookeeper to stop (could not find file \
                    /var/zk/bad/data/zookeeper_server.pid)\n";
    check(&ended, 0, &world.localized(expected));
    assert_eq!(ended.stderr, "Using config: ./zoo.cfg\n");
}

#[test]
fn the_process_of_a_stale_pid_file_is_left_alone() {
    let world = with_settings(SETTINGS);
    // Somebody's program, which got the number after the server was gone.
    let mut other = std::process::Command::new("sleep").arg("600").spawn().unwrap();
    world.write("data/zookeeper_server.pid", &other.id().to_string());
    check(&world.run(&["stop", "zoo.cfg"]), 0, "Stopping zookeeper ... STOPPED\n");
    assert!(Process::open(other.id()).unwrap().unwrap().is_running().unwrap());
    assert!(!world.path("data/zookeeper_server.pid").exists());
    other.kill().unwrap();
    other.wait().unwrap();
}

#[test]
fn a_server_that_ends_at_once_failed_to_start() {
    let world = with_settings("clientPort=21850\ndataDir=/var/zk/bad/data\ntickTime=0\n");
    let ended = world.run(&["start", "zoo.cfg"]);
    check(&ended, 1, "Starting zookeeper ... FAILED TO START\n");
    assert!(ended.stderr.contains("the cause is in "), "{}", ended.stderr);
    assert!(!world.path("data/zookeeper_server.pid").exists());
}

#[test]
fn a_server_whose_port_another_answers_on_failed_to_start() {
    let world = with_settings(SETTINGS);
    let _other = world.take(21850).unwrap();
    let ended = world.run(&["start", "zoo.cfg"]);
    check(&ended, 1, "Starting zookeeper ... FAILED TO START\n");
}

#[test]
fn a_file_that_is_missing_fails_to_start() {
    let world = World::new();
    let missing = world.localized("/var/zk/bad/nonexistent.cfg");
    let ended = world.run(&["start", &missing]);
    check(&ended, 1, "Starting zookeeper ... FAILED TO START\n");
    assert!(ended.stderr.starts_with(&format!("Using config: {missing}\n")), "{}", ended.stderr);
}

#[test]
fn the_file_is_looked_for_where_zookeeper_looks() {
    let world = World::new();
    fs::create_dir(world.path("conf")).unwrap();
    for name in ["zoo.cfg", "other.cfg", "conf/zoo.cfg"] {
        world.write(name, &world.localized(SETTINGS));
    }
    let shown = |variables: &[(&str, &str)], words: &[&str]| {
        let output = world.command().envs(variables.iter().copied()).args(words).output().unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    for (variables, words, path) in [
        (&[][..], &["stop"][..], "./zoo.cfg"),
        (&[], &["stop", "other.cfg"], "./other.cfg"),
        (&[], &["stop", "./conf/zoo.cfg"], "./conf/zoo.cfg"),
        (&[], &["--config", "conf", "stop"], "conf/zoo.cfg"),
        (&[], &["--config", "conf", "stop", "x.cfg"], "conf/x.cfg"),
        (&[("ZOOCFGDIR", "/nowhere")], &["stop"], "/nowhere/zoo.cfg"),
        (&[("ZOOCFG", "other.cfg")], &["stop"], "./other.cfg"),
    ] {
        assert_eq!(shown(variables, words), format!("Using config: {path}\n"), "{words:?}");
    }
}

#[test]
fn the_pid_file_and_the_output_go_where_the_environment_says() {
    let world = with_settings(SETTINGS);
    let run = |word: &str| {
        let mut command = world.command();
        command.env("ZOOPIDFILE", world.path("own.pid")).env("ZOO_LOG_DIR", world.path("own-logs"));
        String::from_utf8(command.args([word, "zoo.cfg"]).output().unwrap().stdout).unwrap()
    };
    let stopped = run("stop");
    assert!(stopped.contains(&world.localized("/var/zk/bad/own.pid")), "{stopped}");
    let line = run("print-cmd");
    assert!(
        line.contains(&world.localized("\"/var/zk/bad/own-logs/zookeeper-zk-server-")),
        "{line}"
    );
    assert!(line.contains(" \"./zoo.cfg\" >"), "{line}");
}

#[test]
fn missing_directories_are_a_mistake_when_they_are_not_to_be_made() {
    let world = with_settings("dataDir=/var/zk/bad/d2\nclientPort=21850\n");
    for word in ["start", "start-foreground"] {
        let mut command = world.command();
        command.env("ZOO_DATADIR_AUTOCREATE_DISABLE", "1").args([word, "zoo.cfg"]);
        let output = command.output().unwrap();
        let expected = "ZooKeeper data directory is missing at /var/zk/bad/d2 fix the path or run \
                        initialize\n";
        assert_eq!(String::from_utf8(output.stdout).unwrap(), world.localized(expected));
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn status_says_where_it_looked_for_a_port() {
    let no_port = with_settings("dataDir=/var/zk/bad/data\n");
    let looked = "myid could not be determined, will not able to locate clientPort in the server \
                  configs.\nClient port not found. Looking for secureClientPort in the static \
                  config.\n";
    let unable = "Unable to find either secure or unsecure client port in any configs. \
                  Terminating.\n";
    check(&no_port.run(&["status", "zoo.cfg"]), 1, &format!("{looked}{unable}"));

    let secure = with_settings("dataDir=/var/zk/bad/data\nsecureClientPort=21850\n");
    let port = secure.port(21850);
    let found =
        format!("Client port found: {port}. Client address: localhost. Client SSL: true.\n");
    let not_running = "Error contacting service. It is probably not running.\n";
    let expected = format!("{looked}{found}{not_running}");
    check(&secure.run(&["status", "zoo.cfg"]), 1, &expected);

    let own_line = with_settings(
        "dataDir=/var/zk/bad/data\nserver.2=127.0.0.1:1:2;127.0.0.1:21850\nserver.3=b:1:2\n",
    );
    own_line.write("data/myid", "2\n");
    let port = own_line.port(21850);
    let found =
        format!("Client port found: {port}. Client address: 127.0.0.1. Client SSL: false.\n");
    check(&own_line.run(&["status", "zoo.cfg"]), 1, &format!("{found}{not_running}"));
}

#[test]
fn what_is_only_said_is_said_and_succeeds() {
    let world = World::new();
    for (words, expected) in [
        (&["version"][..], "compatible with Apache ZooKeeper, version 3."),
        (&["--version"], "ringkeeper "),
        (&["help"], "start-foreground"),
        (&["--help"], "CONFIGFILE"),
        (&["knobs"], "jute.maxbuffer"),
    ] {
        let Ended { code, stdout, stderr } = world.run(words);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{words:?}");
        assert!(stdout.contains(expected), "{words:?}: {stdout}");
    }
    let ended = world.run(&["--config", "conf", "bogus"]);
    check(&ended, 0, "");
    assert!(ended.stderr.starts_with("Usage: "), "{}", ended.stderr);
}

#[test]
fn the_log_is_json_when_the_environment_says_so() {
    let world = with_settings("clientPort=21850\n");
    let mut command = world.command();
    command.env("RINGKEEPER_LOG_FORMAT", "json").arg("zoo.cfg");
    let log = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(log.starts_with("{\"time\":\"") && log.contains("dataDir is not set"), "{log}");
}
