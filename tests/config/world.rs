//! A directory and ports of its own for one run of the binary.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use ringkeeper::shell::process::{Outcome, Process};

use crate::ports;

/// Long enough for a machine that does much else; a run that takes it has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The directory is what `/var/zk/bad` stands for; the ports are what 21850 to 21852 stand for.
pub(crate) struct World {
    pub(crate) directory: PathBuf,
    ports: BTreeMap<u16, u16>,
    /// Held until a server starts, so that nobody else is given them.
    reserved: RefCell<BTreeMap<u16, TcpListener>>,
}

pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl World {
    pub(crate) fn new() -> World {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringkeeper-config-{}-{count}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(directory.join("data")).unwrap();
        let reserved: BTreeMap<u16, TcpListener> =
            (21850..=21852).map(|port| (port, ports::listen())).collect();
        let port_of = |listener: &TcpListener| listener.local_addr().unwrap().port();
        let ports = reserved.iter().map(|(&port, listener)| (port, port_of(listener))).collect();
        World { directory, ports, reserved: RefCell::new(reserved) }
    }

    pub(crate) fn port(&self, stands_for: u16) -> u16 {
        self.ports.get(&stands_for).copied().unwrap_or(stands_for)
    }

    /// Text with this world's directory and ports in it.
    pub(crate) fn localized(&self, text: &str) -> String {
        // Only whole words, and before the directory: its name holds a process's number.
        let mut localized = String::new();
        for word in text.split_inclusive(|c: char| !c.is_ascii_alphanumeric()) {
            let digits = word.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
            match digits.parse().ok().and_then(|port: u16| self.ports.get(&port)) {
                Some(port) => {
                    localized.push_str(&port.to_string());
                    localized.push_str(&word[digits.len()..]);
                }
                None => localized.push_str(word),
            }
        }
        localized.replace("/var/zk/bad", self.directory.to_str().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Listens on a port, so that nobody else can. `None` if somebody does already, on one that is
    /// not this world's own.
    pub(crate) fn take(&self, port: u16) -> Option<TcpListener> {
        if self.ports.contains_key(&port) {
            let taken = self.reserved.borrow_mut().remove(&port);
            return Some(taken.expect("a port is taken once, before any server starts"));
        }
        for _ in 0..10_000 {
            match TcpListener::bind(("127.0.0.1", port)) {
                Ok(listener) => return Some(listener),
                Err(error) => assert_eq!(error.kind(), ErrorKind::AddrInUse, "{port}: {error}"),
            }
            // Who has it may be about to let go of it.
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return None;
            }
            std::thread::park_timeout(Duration::from_millis(1));
        }
        panic!("{port} is taken, and nobody answers there");
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringkeeper"));
        for name in ["JVMFLAGS", "SERVER_JVMFLAGS", "ZOOCFGDIR", "ZOOCFG", "ZOOPIDFILE"] {
            command.env_remove(name);
        }
        for name in ["ZOO_LOG_DIR", "ZOO_DATADIR_AUTOCREATE_DISABLE"] {
            command.env_remove(name);
        }
        command.current_dir(&self.directory).env("USER", "zk").stdin(Stdio::null());
        command
    }

    pub(crate) fn start<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Server {
        self.reserved.borrow_mut().clear();
        let mut command = self.command();
        command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let process = Process::open(child.id()).unwrap().unwrap();
        Server { child: Some(child), process }
    }

    /// Runs it to its end.
    pub(crate) fn run<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Ended {
        self.start(words).ended()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A process of the binary, which does not outlive the test.
pub(crate) struct Server {
    child: Option<Child>,
    process: Process,
}

impl Server {
    pub(crate) fn answers_on(&self, port: u16) {
        let answers = || TcpStream::connect(("127.0.0.1", port)).is_ok();
        let outcome = self.process.wait(PATIENCE, answers).unwrap();
        assert_eq!(outcome, Outcome::Met, "the server does not listen on its port");
    }

    pub(crate) fn ended_by_request(self) -> Ended {
        self.process.terminate().unwrap();
        self.ended()
    }

    pub(crate) fn ended(mut self) -> Ended {
        let outcome = self.process.wait(PATIENCE, || false).unwrap();
        assert_eq!(outcome, Outcome::Exited, "it still runs");
        let output = self.child.take().unwrap().wait_with_output().unwrap();
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Ends the process of a pid file when a test ends, however it ends.
pub(crate) struct Leftover<'a>(pub(crate) &'a Path);

impl Drop for Leftover<'_> {
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.0).ok().and_then(|text| text.parse().ok());
        if let Some(Ok(Some(process))) = pid.map(Process::open) {
            let _ = process.terminate();
        }
    }
}
