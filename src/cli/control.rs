//! start, stop, restart, status: what `zkServer.sh` does, with its messages and exit codes.
//!
//! Where the script sleeps a second and hopes, these wait for what they report: `start` until the
//! new process answers on its client port, or has ended; `stop` until the process is gone.
//! Settings are read one by one, so that a server can be stopped beside a file that is wrong.
//!
//! After `bin/zkServer.sh` and `bin/zkEnv.sh`.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream, ToSocketAddrs as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::{Invocation, Told, World, complain, create_directory, say, serve};
use crate::config::properties::Properties;
use crate::config::{Control, EMBEDDED, Surroundings as _};
use crate::ensemble::{Ensemble, HostPort};
use crate::shell::process::{Outcome, Process};
use crate::types::ServerId;

/// The server a command is about.
struct Target<'a> {
    invocation: &'a Invocation,
    /// `None`: the embedded default.
    file: Option<PathBuf>,
    settings: Properties,
    waits: Control,
}

pub(super) fn start(invocation: &Invocation) -> u8 {
    let target = Target::of(invocation);
    if !target.has_directories() {
        return 1;
    }
    target.start()
}

pub(super) fn start_foreground(invocation: &Invocation) -> u8 {
    let target = Target::of(invocation);
    if !target.has_directories() {
        return 1;
    }
    serve(invocation, target.file.map_or(Told::Nothing, Told::File))
}

pub(super) fn stop(invocation: &Invocation) -> u8 {
    Target::of(invocation).stop()
}

pub(super) fn restart(invocation: &Invocation) -> u8 {
    let target = Target::of(invocation);
    match target.stop() {
        0 => target.start(),
        code => code,
    }
}

pub(super) fn status(invocation: &Invocation) -> u8 {
    Target::of(invocation).status()
}

/// The number of the ZooKeeper line we claim parity with stands where scripts look for it.
pub(super) fn version(_invocation: &Invocation) -> u8 {
    let own = env!("CARGO_PKG_VERSION");
    let parity = crate::admin::PARITY;
    say(&format!("ringkeeper {own}, compatible with Apache ZooKeeper, version {parity}\n"));
    0
}

pub(super) fn print_cmd(invocation: &Invocation) -> u8 {
    let target = Target::of(invocation);
    let mut line = String::new();
    match std::env::current_exe() {
        Ok(program) => line.push_str(&format!("\"{}\"", program.display())),
        Err(error) => {
            complain(&format!("the name of this program is not known: {error}"));
            return 1;
        }
    }
    for argument in target.server_arguments() {
        line.push_str(&format!(" \"{argument}\""));
    }
    let output = target.output_file();
    say(&format!("{line} >\"{}\" 2>&1 </dev/null\n", output.display()));
    0
}

/// What `zkServer.sh` says to a word it does not know; it ends with 0 all the same.
pub(super) fn usage() -> u8 {
    complain(
        "Usage: ringkeeper [--config <conf-dir>] \
         {start|start-foreground|stop|version|restart|status|print-cmd}",
    );
    0
}

impl Target<'_> {
    /// Finds the file, and says which it is.
    fn of(invocation: &Invocation) -> Target<'_> {
        let file = config_file(invocation);
        let settings = match &file {
            Some(path) => {
                complain(&format!("Using config: {}", path.display()));
                World.read(path).ok().flatten().and_then(|text| Properties::parse(&text).ok())
            }
            None => {
                complain("Using config: the embedded default (there is no zoo.cfg)");
                Some(EMBEDDED.into_iter().collect())
            }
        };
        let settings = settings.unwrap_or_default();
        let waits = Control::of(&settings, &invocation.system);
        Target { invocation, file, settings, waits }
    }

    fn data_dir(&self) -> PathBuf {
        self.settings.value("dataDir").unwrap_or_default().into()
    }

    fn pid_file(&self) -> PathBuf {
        match std::env::var_os("ZOOPIDFILE") {
            Some(path) => path.into(),
            None => self.data_dir().join("zookeeper_server.pid"),
        }
    }

    /// Where what the server prints goes. The data directory is the one place that a server can
    /// always write to.
    fn output_file(&self) -> PathBuf {
        let directory = match std::env::var_os("ZOO_LOG_DIR") {
            Some(path) => path.into(),
            None => self.data_dir().join("logs"),
        };
        let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
        let user = user.unwrap_or_else(|_| "zookeeper".to_owned());
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        directory.join(format!("zookeeper-{user}-server-{}.out", host.trim()))
    }

    fn server_arguments(&self) -> Vec<String> {
        let mut arguments = self.invocation.flags.clone();
        if is_set("ZOO_DATADIR_AUTOCREATE_DISABLE") {
            arguments.push("-Dzookeeper.datadir.autocreate=false".to_owned());
        }
        arguments.extend(self.file.as_ref().map(|path| path.display().to_string()));
        arguments
    }

    /// With `ZOO_DATADIR_AUTOCREATE_DISABLE`, a server that would make new directories is a
    /// mistake: most likely a disk is not mounted.
    fn has_directories(&self) -> bool {
        if !is_set("ZOO_DATADIR_AUTOCREATE_DISABLE") {
            return true;
        }
        let data = self.data_dir();
        let log = self.settings.value("dataLogDir").map_or_else(|| data.clone(), PathBuf::from);
        for (what, directory) in [("data", data), ("txnlog", log)] {
            if !directory.join("version-2").is_dir() {
                let directory = directory.display();
                say(&format!(
                    "ZooKeeper {what} directory is missing at {directory} fix the path or run \
                     initialize\n"
                ));
                return false;
            }
        }
        true
    }

    fn start(&self) -> u8 {
        say("Starting zookeeper ... ");
        if let Some(pid) = self.running_pid() {
            say(&format!("already running as process {pid}.\n"));
            return 1;
        }
        match self.spawn() {
            Ok(()) => {
                say("STARTED\n");
                0
            }
            Err(Failure { said, why }) => {
                say(&format!("{said}\n"));
                complain(&why);
                1
            }
        }
    }

    fn spawn(&self) -> Result<(), Failure> {
        let (output, pid_file) = (self.output_file(), self.pid_file());
        let not_started = |why: String| Failure { said: "FAILED TO START", why };
        let open = || -> io::Result<(File, File)> {
            create_directory(output.parent().unwrap_or(Path::new(".")))?;
            let file = File::create(&output)?;
            Ok((file.try_clone()?, file))
        };
        let opened = open().map_err(|error| not_started(format!("{}: {error}", output.display())));
        let (out, err) = opened?;
        // Whoever answers before ours is there is another, and says nothing about ours.
        let patience = Duration::from_millis(self.waits.status_ms);
        let answers = |endpoint: &HostPort| connect(endpoint, patience).is_ok();
        let endpoint = self.plain_endpoint().filter(|endpoint| !answers(endpoint));
        let spawned = std::env::current_exe().and_then(|program| {
            Command::new(program)
                .args(self.server_arguments())
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(err)
                // What ends this terminal's programs does not end the server.
                .process_group(0)
                .spawn()
        });
        let child = spawned.map_err(|error| not_started(error.to_string()))?;
        let pid = child.id();
        let opened = Process::open(pid).map_err(|error| not_started(error.to_string()))?;
        let process = opened.expect("a child is there until its parent has asked for its end");
        let written = create_directory(pid_file.parent().unwrap_or(Path::new(".")))
            .and_then(|()| fs::write(&pid_file, pid.to_string()));
        if let Err(error) = written {
            // It could not be stopped again.
            let _ = process.terminate();
            let why = format!("{}: {error}", pid_file.display());
            return Err(Failure { said: "FAILED TO WRITE PID", why });
        }
        let limit = Duration::from_millis(self.waits.start_ms);
        match process.wait(limit, || endpoint.as_ref().is_some_and(answers)) {
            Ok(Outcome::Met) => Ok(()),
            Ok(Outcome::TimedOut) => {
                complain(&format!("process {pid} runs, yet does not answer after {limit:?}"));
                Ok(())
            }
            Ok(Outcome::Exited) => {
                let _ = fs::remove_file(&pid_file);
                Err(not_started(format!("the cause is in {}", output.display())))
            }
            Err(error) => Err(not_started(error.to_string())),
        }
    }

    fn stop(&self) -> u8 {
        say("Stopping zookeeper ... ");
        let pid_file = self.pid_file();
        let shown = pid_file.display();
        if !pid_file.exists() {
            say(&format!("no zookeeper to stop (could not find file {shown})\n"));
            return 0;
        }
        match self.end() {
            Ok(()) => {
                say("STOPPED\n");
                0
            }
            Err(why) => {
                say("FAILED TO STOP\n");
                complain(&why);
                1
            }
        }
    }

    /// Ends the process of the pid file, if it is there, and removes the file.
    fn end(&self) -> Result<(), String> {
        let pid_file = self.pid_file();
        let failed = |error: io::Error| format!("{}: {error}", pid_file.display());
        if let Some(pid) = self.running_pid()
            && let Some(process) = Process::open(pid).map_err(failed)?
        {
            process.terminate().map_err(|error| format!("process {pid}: {error}"))?;
            let limit = Duration::from_millis(self.waits.stop_ms);
            if process.wait(limit, || false).map_err(failed)? == Outcome::TimedOut {
                return Err(format!("process {pid} still runs after {limit:?}"));
            }
        }
        fs::remove_file(&pid_file).or_else(|error| match error.kind() {
            // The server may remove it itself.
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(failed(error)),
        })
    }

    /// The process of the pid file, if it runs and is a server: after a restart of the machine
    /// the number may be anybody's, and that is not to be ended.
    fn running_pid(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.pid_file()).ok()?.trim().parse().ok()?;
        let runs = Process::open(pid).ok()??.is_running().ok()?;
        (runs && is_server(pid)).then_some(pid)
    }

    /// The plain client port: of the file, or of the server's own line.
    fn plain_endpoint(&self) -> Option<HostPort> {
        self.static_endpoint("clientPort", "clientPortAddress")
            .or_else(|| self.own_line(&self.settings))
            .or_else(|| self.own_line(&self.dynamic_settings()?))
    }

    fn static_endpoint(&self, port: &str, address: &str) -> Option<HostPort> {
        let port = self.settings.value(port)?.parse().ok().filter(|&port| port != 0)?;
        let host = self.settings.value(address).filter(|host| !host.is_empty());
        Some(HostPort { host: host.unwrap_or("localhost").to_owned(), port })
    }

    fn dynamic_settings(&self) -> Option<Properties> {
        let path = self.settings.value("dynamicConfigFile")?;
        Properties::parse(&fs::read(path).ok()?).ok()
    }

    fn my_id(&self) -> Option<ServerId> {
        let text = fs::read_to_string(self.data_dir().join("myid")).ok()?;
        text.lines().next()?.trim().parse().ok().map(ServerId)
    }

    fn own_line(&self, settings: &Properties) -> Option<HostPort> {
        let lines = settings.iter().map(|(key, setting)| (key, setting.value.as_str()));
        let members = Ensemble::parse(lines, true).ok()?.members;
        members.get(&self.my_id()?)?.client.clone()
    }

    fn status(&self) -> u8 {
        let Some(endpoint) = self.announced_endpoint() else {
            return 1;
        };
        let timeout = Duration::from_millis(self.waits.status_ms);
        let answer = ask_srvr(&endpoint, timeout).unwrap_or_default();
        match answer.lines().find(|line| line.contains("Mode")) {
            Some(line) => {
                say(&format!("{line}\n"));
                0
            }
            None => {
                say("Error contacting service. It is probably not running.\n");
                1
            }
        }
    }

    /// Looks for the port as the script does, and says what it finds.
    fn announced_endpoint(&self) -> Option<HostPort> {
        let found = |HostPort { host, port }: &HostPort, is_tls: bool| {
            say(&format!(
                "Client port found: {port}. Client address: {host}. Client SSL: {is_tls}.\n"
            ));
        };
        let mut plain = self.static_endpoint("clientPort", "clientPortAddress");
        if plain.is_none() {
            if self.my_id().is_none() {
                say("myid could not be determined, will not able to locate clientPort in the \
                     server configs.\n");
            } else {
                plain = self.own_line(&self.settings);
                if plain.is_none() {
                    say("Client port not found in static config file. Looking in dynamic config \
                         file.\n");
                    plain = self.dynamic_settings().and_then(|lines| self.own_line(&lines));
                }
            }
        }
        if let Some(endpoint) = plain {
            found(&endpoint, false);
            return Some(endpoint);
        }
        say("Client port not found. Looking for secureClientPort in the static config.\n");
        match self.static_endpoint("secureClientPort", "secureClientPortAddress") {
            Some(endpoint) => {
                found(&endpoint, true);
                complain("a secure port cannot be asked: TLS is not supported by this version");
                say("Error contacting service. It is probably not running.\n");
            }
            None => say("Unable to find either secure or unsecure client port in any configs. \
                         Terminating.\n"),
        }
        None
    }
}

/// Why a server did not start: the word for scripts, and the cause for people.
struct Failure {
    said: &'static str,
    why: String,
}

/// The file a command means: a name with a directory as it is, any other in the configuration
/// directory. `None`: nobody named one, and there is none where one would be.
fn config_file(invocation: &Invocation) -> Option<PathBuf> {
    find_config(invocation, invocation.words.first().cloned())
}

/// The file that a name means, or that is there without one, or would be.
pub(super) fn config_path(invocation: &Invocation, named: Option<String>) -> PathBuf {
    find_config(invocation, named).unwrap_or_else(|| PathBuf::from("zoo.cfg"))
}

fn find_config(invocation: &Invocation, named: Option<String>) -> Option<PathBuf> {
    let is_named = named.is_some();
    let name = named.or_else(|| std::env::var("ZOOCFG").ok());
    let name = PathBuf::from(name.unwrap_or_else(|| "zoo.cfg".to_owned()));
    if name.components().count() != 1 || name.has_root() {
        return Some(name);
    }
    let directory = invocation.config_dir.clone();
    let directory = directory.or_else(|| std::env::var_os("ZOOCFGDIR").map(PathBuf::from));
    if let Some(directory) = directory {
        return Some(directory.join(name));
    }
    let prefix = std::env::current_exe()
        .ok()
        .and_then(|program| Some(program.parent()?.parent()?.join("conf")));
    let places = [Some(PathBuf::from(".")), Some(PathBuf::from("./conf")), prefix];
    let found = places.into_iter().flatten().map(|place| place.join(&name));
    let found = found.into_iter().find(|path| path.is_file());
    found.or_else(|| is_named.then_some(name))
}

fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty())
}

/// Whether a process was started as a server, ours or ZooKeeper's own.
fn is_server(pid: u32) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).to_lowercase();
    ["ringkeeper", "zookeeper"].iter().any(|name| line.contains(name))
}

fn connect(endpoint: &HostPort, timeout: Duration) -> io::Result<TcpStream> {
    let host = if endpoint.is_wildcard() { "localhost" } else { endpoint.host.as_str() };
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for address in (host, endpoint.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, timeout) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask_srvr(endpoint: &HostPort, timeout: Duration) -> io::Result<String> {
    let mut stream = connect(endpoint, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.write_all(b"srvr")?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

/// Far more than srvr says; whoever sends more is not a server.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
