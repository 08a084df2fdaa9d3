//! The binary as a process of its own, in a folder of its own.

use std::fs;
use std::io::Read as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::client::now;

/// A folder that is gone afterwards, unless its test failed.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Folder {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ringkeeper-e2e-{name}-{}-{count}", std::process::id());
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("a folder can be made");
        Folder(path)
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

pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    log: PathBuf,
}

impl Server {
    /// Starts one on a free port, with its data in the folder. It may not listen yet.
    pub(crate) fn start(folder: &Folder, settings: &[&str]) -> Server {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let address = free_address();
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let config = folder.0.join(format!("zoo-{count}.cfg"));
        let data = folder.0.join("data");
        let mut text = format!(
            "dataDir={}\nclientPort={}\nclientPortAddress=127.0.0.1\nmaxClientCnxns=0\n",
            data.display(),
            address.port()
        );
        for setting in settings {
            text.push_str(setting);
            text.push('\n');
        }
        fs::write(&config, text).expect("the folder can be written");
        let log = folder.0.join(format!("log-{count}.txt"));
        let output = fs::File::create(&log).expect("the folder can be written");
        let child = Command::new(env!("CARGO_BIN_EXE_ringkeeper"))
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a descriptor can be cloned"))
            .stderr(output)
            .spawn()
            .expect("the binary starts");
        Server { child, address, log }
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

    /// SIGTERM, and how it ended.
    pub(crate) fn terminate(mut self, patience: Duration) -> ExitStatus {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(sent.expect("kill(1) is there").success());
        self.exit(patience)
    }

    /// Waits for it to end by itself.
    pub(crate) fn wait(mut self, patience: Duration) -> (ExitStatus, String) {
        let status = self.exit(patience);
        let mut output = String::new();
        let log = fs::File::open(&self.log).and_then(|mut log| log.read_to_string(&mut output));
        log.expect("what it said can be read");
        (status, output)
    }

    fn exit(&mut self, patience: Duration) -> ExitStatus {
        let deadline = now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(now() < deadline, "the server did not end: see {}", self.log.display());
            std::thread::yield_now();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// An address that nobody listens on.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback is there");
    listener.local_addr().expect("a bound socket has an address")
}
