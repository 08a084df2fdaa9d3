//! The binary as a process of its own, in a folder of its own.

use std::ffi::OsString;
use std::fs;
use std::io::{PipeWriter, Write as _};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::now;
use crate::ports;

/// A folder that is gone afterwards, unless its test failed.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        Folder::under(Path::new(env!("CARGO_TARGET_TMPDIR")), name)
    }

    /// One that any user can reach and write to.
    pub(crate) fn for_anyone(name: &str) -> Folder {
        let folder = Folder::under(&std::env::temp_dir(), name);
        fs::set_permissions(&folder.0, fs::Permissions::from_mode(0o777)).expect("it is ours");
        folder
    }

    fn under(parent: &Path, name: &str) -> Folder {
        let count = next_number();
        let path = parent.join(format!("ringkeeper-e2e-{name}-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).expect("a folder can be made");
        Folder(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// Where a server's snapshots and logs are, if it was not told otherwise.
    pub(crate) fn version(&self) -> PathBuf {
        self.0.join("data/version-2")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left as it was: {}", self.0.display());
        } else {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// How a server is started.
pub(crate) struct Setup {
    wrapper: Vec<OsString>,
    binary: PathBuf,
    flags: Vec<String>,
    data: Option<PathBuf>,
    /// Where clients are served, if not on a free port.
    pub(crate) address: Option<SocketAddr>,
    settings: Vec<String>,
}

impl Setup {
    pub(crate) fn new(settings: &[&str]) -> Setup {
        Setup {
            wrapper: Vec::new(),
            binary: env!("CARGO_BIN_EXE_ringkeeper").into(),
            flags: Vec::new(),
            data: None,
            address: None,
            settings: settings.iter().map(|&setting| setting.to_owned()).collect(),
        }
    }

    /// Has a command start the server; it must become the server, so that it keeps its pid.
    pub(crate) fn under(mut self, words: &[&str]) -> Setup {
        self.wrapper.extend(words.iter().map(OsString::from));
        self
    }

    pub(crate) fn binary(mut self, path: PathBuf) -> Setup {
        self.binary = path;
        self
    }

    pub(crate) fn flag(mut self, flag: &str) -> Setup {
        self.flags.push(flag.to_owned());
        self
    }

    /// Has the data elsewhere than in the folder.
    pub(crate) fn data(mut self, path: &Path) -> Setup {
        self.data = Some(path.to_path_buf());
        self
    }

    /// Starts it, on a free port where none is given. It may not listen yet.
    pub(crate) fn start(&self, folder: &Folder) -> Server {
        let log = folder.0.join(format!("log-{}.txt", next_number()));
        let output = fs::File::create(&log).expect("the folder can be written");
        self.start_writing(folder, output.into(), log)
    }

    /// The same, with all that it says into a pipe.
    pub(crate) fn start_into(&self, folder: &Folder, pipe: PipeWriter) -> Server {
        // There is nothing to be read.
        self.start_writing(folder, pipe.into(), "/dev/null".into())
    }

    fn start_writing(&self, folder: &Folder, output: OwnedFd, log: PathBuf) -> Server {
        let address = self.address.unwrap_or_else(|| {
            ports::listen().local_addr().expect("a bound socket has an address")
        });
        let count = next_number();
        let config = folder.0.join(format!("zoo-{count}.cfg"));
        let data = self.data.clone().unwrap_or_else(|| folder.0.join("data"));
        let mut text = format!(
            "dataDir={}\nclientPort={}\nclientPortAddress={}\n",
            data.display(),
            address.port(),
            address.ip()
        );
        if !self.settings.iter().any(|setting| setting.starts_with("maxClientCnxns=")) {
            text.push_str("maxClientCnxns=0\n");
        }
        for setting in &self.settings {
            text.push_str(setting);
            text.push('\n');
        }
        fs::write(&config, text).expect("the folder can be written");
        let mut words = self.wrapper.clone();
        words.push(self.binary.clone().into_os_string());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(&self.flags)
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor can be cloned"))
            .stderr(output)
            .spawn()
            .expect("the binary starts");
        Server { child, address, log }
    }
}

/// Different each time, for names.
fn next_number() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}

pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts one as usual, with its data in the folder.
    pub(crate) fn start(folder: &Folder, settings: &[&str]) -> Server {
        Setup::new(settings).start(folder)
    }

    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGKILL after `delay`, from a thread of its own.
    pub(crate) fn kill_after(self, delay: Duration) -> JoinHandle<()> {
        let mut server = self;
        std::thread::spawn(move || {
            // A timeout on a channel that nobody sends to: the delay is the test's input.
            let (_keep, never) = mpsc::channel::<()>();
            let _ = never.recv_timeout(delay);
            server.end();
        })
    }

    /// Sends SIGTERM.
    pub(crate) fn ask_to_stop(&self) {
        self.signal("-TERM");
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(mut self, patience: Duration) -> ExitStatus {
        self.ask_to_stop();
        self.exit(patience)
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(mut self, patience: Duration) -> (ExitStatus, String) {
        let status = self.exit(patience);
        (status, self.said())
    }

    fn exit(&mut self, patience: Duration) -> ExitStatus {
        let mut status = None;
        until(
            patience,
            || format!("the server did not end: see {}", self.log.display()),
            || {
                status = self.child.try_wait().expect("a child can be waited for");
                status.is_some()
            },
        );
        status.expect("it has ended")
    }

    /// All that it has written so far.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).expect("its output can be read")).into_owned()
    }

    /// SIGSTOP, and it has stopped.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
        let is_stopped = || {
            let stat = fs::read_to_string(self.proc("stat")).expect("the server is there");
            stat[stat.rfind(')').unwrap()..].starts_with(") T")
        };
        until(Duration::from_secs(10), || "it does not stop".to_owned(), is_stopped);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status();
        // Until it is waited for, a process that has ended can still be signalled.
        assert!(sent.expect("kill(1) is there").success());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// A value in KiB of `/proc/<pid>/status`.
    pub(crate) fn memory_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(self.proc("status")).expect("the server runs");
        let line = status.lines().find(|line| line.starts_with(name)).expect("the kernel says it");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// The CPU time that it has used, in milliseconds.
    pub(crate) fn cpu_ms(&self) -> u64 {
        let stat = fs::read_to_string(self.proc("stat")).expect("the server runs");
        let after_name = &stat[stat.rfind(')').unwrap()..];
        let ticks = after_name.split_whitespace().skip(12).take(2);
        // Linux counts a hundred to the second for user space, whatever its own clock does.
        ticks.map(|ticks| ticks.parse::<u64>().unwrap() * 10).sum()
    }

    pub(crate) fn open_files(&self) -> usize {
        fs::read_dir(self.proc("fd")).expect("the server runs").count()
    }

    /// How many times its cores have read from a file; `None` where the kernel does not count that.
    pub(crate) fn reads_of_cores(&self) -> Option<u64> {
        let mut reads = 0;
        for thread in fs::read_dir(self.proc("task")).expect("the server runs") {
            let thread = thread.expect("a thread is listed").path();
            let name = fs::read_to_string(thread.join("comm")).unwrap_or_default();
            if name.trim() == "core" || name.trim() == "pipeline" || name.starts_with("shard") {
                let io = fs::read_to_string(thread.join("io")).ok()?;
                let count = io.lines().find_map(|line| line.strip_prefix("syscr: "))?;
                reads += count.parse::<u64>().ok()?;
            }
        }
        Some(reads)
    }

    fn proc(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.child.id())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for something to become true.
pub(crate) fn until(
    patience: Duration,
    complaint: impl Fn() -> String,
    mut is_true: impl FnMut() -> bool,
) {
    let deadline = now() + patience;
    while !is_true() {
        assert!(now() < deadline, "{}", complaint());
        // Between two looks the CPU is the server's: there may be only one.
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Says on the test's own output that something was not tried here. The harness would swallow it
/// from `println!`.
pub(crate) fn not_run(what: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "NOT RUN: {what}: {why}");
}

/// Whether a command can be run and ends well.
pub(crate) fn succeeds(words: &[&str]) -> bool {
    let mut command = Command::new(words[0]);
    let command = command.args(&words[1..]).stdin(Stdio::null());
    let status = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

/// A line of `/proc/self/status`.
pub(crate) fn own_status(name: &str) -> String {
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says it");
    line.trim_start_matches(':').trim().to_owned()
}

pub(crate) fn is_root() -> bool {
    own_status("Uid").split_whitespace().nth(1) == Some("0")
}
