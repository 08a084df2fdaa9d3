//! What a process costs, and servers that we start ourselves.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ringkeeper::jute::Write as _;
use ringkeeper::record::op::code;

use crate::Fault;
use crate::client::{Arrival, Connection, Lost};
use crate::sys::{self, Interest, Poll};

/// What a process had used up at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub cpu_seconds: f64,
    pub resident_bytes: u64,
    pub resident_peak_bytes: u64,
}

impl Usage {
    pub fn of(pid: u32) -> Result<Usage, Fault> {
        Usage::read(pid, &pid.to_string())
            .map_err(|source| Fault::Process { what: format!("process {pid}"), source })
    }

    pub fn of_self() -> Result<Usage, Fault> {
        Usage::read(0, "self")
            .map_err(|source| Fault::Process { what: "this process".to_owned(), source })
    }

    /// `name` is its folder in `/proc`.
    fn read(pid: u32, name: &str) -> io::Result<Usage> {
        let status = fs::read_to_string(format!("/proc/{name}/status"))?;
        let odd = || io::Error::other(format!("/proc/{name}/status is not as expected"));
        Ok(Usage {
            // Its clock counts nanoseconds; `/proc/PID/stat` would count in hundredths.
            cpu_seconds: sys::process_cpu(pid)?.as_secs_f64(),
            resident_bytes: kib_of(&status, "VmRSS").ok_or_else(odd)? * 1024,
            resident_peak_bytes: kib_of(&status, "VmHWM").ok_or_else(odd)? * 1024,
        })
    }
}

/// A line such as `VmRSS:      1234 kB` of `/proc/PID/status`.
fn kib_of(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

/// How long a server may take to end when asked to, before it is made to.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How often a port is tried at which nothing listens yet, and a process that is to end looked at.
const TRY_EVERY: Duration = Duration::from_micros(200);
/// How many attempts at a server that listens and does not answer are left open.
const ATTEMPTS_MAX: usize = 64;
/// The sessions of attempts that came too early are gone soon.
const ATTEMPT_SESSION_TIMEOUT_MS: i32 = 4000;

/// A program to start.
pub struct Start {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    /// The CPUs it is kept on; none: where we run.
    pub cpus: Vec<usize>,
    /// Where its words go; none: what it says of errors to ours.
    pub log: Option<File>,
    /// Whether it is killed, not asked to end, should we end without a word. One that is stopped by a
    /// signal would not hear what it is asked.
    pub is_killed_with_us: bool,
}

impl Start {
    #[must_use]
    pub fn plain(program: &str, arguments: &[String]) -> Start {
        let arguments = arguments.to_vec();
        Start {
            program: program.into(),
            arguments,
            cpus: Vec::new(),
            log: None,
            is_killed_with_us: false,
        }
    }
}

/// A server that we started. It ends when this is dropped.
pub struct Started {
    child: Child,
    command: String,
    server: SocketAddr,
    pub since: Instant,
}

impl Started {
    /// Starts a program that will listen at `server`, where nothing may listen yet. The process
    /// must become the server (a script ends in `exec`), for its costs are read by its pid.
    pub fn start(server: SocketAddr, start: Start) -> Result<Started, Fault> {
        if TcpStream::connect(server).is_ok() {
            return Err(Fault::InUse { server });
        }
        let Start { program, arguments, cpus, log, is_killed_with_us } = start;
        let text = [&[program.display().to_string()], &arguments[..]].concat().join(" ");
        let fault = |source| Fault::Process { what: text.clone(), source };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(log) = log {
            command.stdout(log.try_clone().map_err(fault)?).stderr(log);
        }
        sys::belongs_to_us(&mut command, &cpus, is_killed_with_us);
        let since = Instant::now();
        match command.spawn() {
            Ok(child) => Ok(Started { child, command: text, server, since }),
            Err(source) => Err(fault(source)),
        }
    }

    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server answers a read; the time since the start of the process.
    pub fn first_reply(&mut self, within: Duration) -> Result<Duration, Fault> {
        let mut attempts = Attempts::new(self.server)?;
        loop {
            if attempts.turn(self.since.elapsed())? {
                let elapsed = self.since.elapsed();
                attempts.close();
                return Ok(elapsed);
            }
            if let Some(status) = self.child.try_wait().ok().flatten() {
                return Err(Fault::EndedEarly { command: self.command.clone(), status });
            }
            if within <= self.since.elapsed() {
                return Err(Fault::NoAnswer { server: self.server, within });
            }
        }
    }

    /// How it ended, if it has ended.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    #[must_use]
    pub fn command(&self) -> &str {
        &self.command
    }

    /// Ends the server at once.
    pub fn kill(mut self) {
        self.kill_now();
    }

    fn kill_now(&mut self) {
        // It may have ended by itself; then there is nothing left to do.
        let _ = sys::kill_group(self.pid());
        let _ = self.child.wait();
    }

    /// Stops the server until `go_on`: it keeps its connections, and answers nothing.
    pub fn pause(&self) -> Result<(), Fault> {
        sys::stop_group(self.pid()).map_err(|source| self.fault(source))
    }

    pub fn go_on(&self) -> Result<(), Fault> {
        sys::continue_group(self.pid()).map_err(|source| self.fault(source))
    }

    fn fault(&self, source: io::Error) -> Fault {
        Fault::Process { what: self.command.clone(), source }
    }

    /// Asks the server to end, waits for that, and says how long it took.
    pub fn end(mut self) -> Duration {
        self.end_now()
    }

    fn end_now(&mut self) -> Duration {
        let since = Instant::now();
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return Duration::ZERO;
        }
        // It may have ended by itself in between; then there is nothing left to do.
        let _ = sys::terminate_group(self.pid());
        let _ = sys::continue_group(self.pid());
        while since.elapsed() < END_WITHIN {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return since.elapsed();
            }
            thread::sleep(TRY_EVERY);
        }
        self.kill_now();
        since.elapsed()
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        self.end_now();
    }
}

/// Attempts at a server that is starting. One that came too early may never be answered, nor
/// closed: Apache ZooKeeper forgets whoever connects before its tree is read. So a new one is
/// made every so often, and the first that is answered counts.
struct Attempts {
    server: SocketAddr,
    poll: Poll,
    /// By token; the last `ATTEMPTS_MAX` are open at most.
    open: Vec<Option<Connection<()>>>,
    /// When to try again, since the start of the process.
    next: Duration,
    chunk: Vec<u8>,
}

impl Attempts {
    fn new(server: SocketAddr) -> Result<Attempts, Fault> {
        let poll = Poll::new().map_err(Fault::Poll)?;
        let next = Duration::ZERO;
        Ok(Attempts { server, poll, open: Vec::new(), next, chunk: Vec::new() })
    }

    /// Tries again if it is time, and waits a little. Whether there was an answer.
    fn turn(&mut self, elapsed: Duration) -> Result<bool, Fault> {
        if self.next <= elapsed {
            // Within one percent of the right time, without a flood of attempts.
            let patience = (elapsed / 100).max(Duration::from_millis(1));
            self.next = elapsed + if self.attempt().is_ok() { patience } else { TRY_EVERY };
        }
        self.poll.wait(self.next.saturating_sub(elapsed)).map_err(Fault::Poll)?;
        let mut position = 0;
        while let Some(ready) = self.poll.ready(position) {
            position += 1;
            match self.hear(ready.token) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(_) => {
                    self.open[ready.token] = None;
                    self.next = elapsed + TRY_EVERY;
                }
            }
        }
        Ok(false)
    }

    fn attempt(&mut self) -> Result<(), Lost> {
        let patience = Duration::from_secs(1);
        let mut connection = Connection::open(self.server, ATTEMPT_SESSION_TIMEOUT_MS, patience)?;
        connection.set_nonblocking()?;
        connection.ask((), code::EXISTS, |out| {
            out.put_text("/");
            out.put_bool(false);
        });
        connection.flush()?;
        self.poll.add(&connection, self.open.len(), Interest::Read)?;
        self.open.push(Some(connection));
        if let Some(oldest) = self.open.len().checked_sub(ATTEMPTS_MAX + 1) {
            self.open[oldest] = None;
        }
        Ok(())
    }

    fn hear(&mut self, token: usize) -> Result<bool, Lost> {
        let Some(connection) = &mut self.open[token] else { return Ok(false) };
        let mut input = connection.receive(&mut self.chunk)?;
        while let Some(arrival) = connection.take(&mut input)? {
            if let Arrival::Reply { err: 0, .. } = arrival {
                return Ok(true);
            }
        }
        connection.keep(input);
        Ok(false)
    }

    /// Ends the sessions. Best effort: those that cannot be told so expire.
    fn close(self) {
        for mut connection in self.open.into_iter().flatten() {
            connection.close();
            let _ = connection.flush();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn memory_is_read_in_kib() {
        let status = "Name:\tjava\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n";
        assert_eq!(kib_of(status, "VmRSS"), Some(1024));
        assert_eq!(kib_of(status, "VmHWM"), Some(2048));
        assert_eq!(kib_of(status, "Vm"), None);
    }

    #[test]
    fn our_own_usage_can_be_read() {
        let usage = Usage::of_self().unwrap();
        assert!(0 < usage.resident_bytes);
        assert!(0.0 < usage.cpu_seconds && usage.cpu_seconds < 3600.0);
        let by_pid = Usage::of(std::process::id()).unwrap();
        assert!(usage.cpu_seconds <= by_pid.cpu_seconds);
        assert!(Usage::of(i32::MAX as u32).is_err());
        assert!(usage.resident_bytes <= usage.resident_peak_bytes);
    }

    #[test]
    fn a_server_that_ends_at_once_is_told_from_one_that_is_slow() {
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 1));
        let start =
            |program, arg: &str| Started::start(nowhere, Start::plain(program, &[arg.to_owned()]));
        let mut ended = start("false", "").unwrap();
        let error = ended.first_reply(Duration::from_secs(20)).unwrap_err();
        assert!(matches!(error, Fault::EndedEarly { .. }), "{error}");
        let mut slow = start("sleep", "600").unwrap();
        let error = slow.first_reply(Duration::from_millis(20)).unwrap_err();
        assert!(matches!(error, Fault::NoAnswer { .. }), "{error}");
        assert!(slow.end() < END_WITHIN);
    }

    #[test]
    fn a_server_is_not_started_where_another_would_answer_for_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let refused =
            Started::start(server, Start::plain("sleep", &["600".to_owned()])).err().unwrap();
        assert!(matches!(refused, Fault::InUse { .. }), "{refused}");
    }
}
