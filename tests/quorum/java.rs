//! Servers of Apache ZooKeeper, each a process of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Where the jars are: Debian's, unless another place is given.
pub(crate) fn classpath() -> Option<String> {
    let place = std::env::var("ZOOKEEPER_JARS").unwrap_or("/usr/share/java".to_owned());
    let has_jar = fs::read_dir(&place).is_ok_and(|entries| {
        entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("zookeeper"))
    });
    has_jar.then(|| format!("{place}/*"))
}

pub(crate) struct Java {
    process: Child,
    pub(crate) client_port: u16,
    log: PathBuf,
}

impl Java {
    /// Starts server `id` of an ensemble whose lines these are; its data stays in `folder`.
    pub(crate) fn start(
        classpath: &str,
        folder: &Path,
        id: i64,
        client_port: u16,
        lines: &str,
    ) -> Java {
        let data = folder.join(format!("java{id}"));
        fs::create_dir_all(&data).unwrap();
        fs::write(data.join("myid"), format!("{id}\n")).unwrap();
        let config = folder.join(format!("java{id}.cfg"));
        let text = format!(
            "dataDir={}\nclientPort={client_port}\ntickTime=500\ninitLimit=20\nsyncLimit=10\n\
             admin.enableServer=false\n4lw.commands.whitelist=*\n{lines}",
            data.display()
        );
        fs::write(&config, text).unwrap();
        let log = folder.join(format!("java{id}.log"));
        let output = fs::File::options().create(true).append(true).open(&log).unwrap();
        let process = Command::new("java")
            .args(["-Xmx128m", "-cp", classpath])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(&config)
            .stdout(Stdio::from(output.try_clone().unwrap()))
            .stderr(Stdio::from(output))
            .spawn()
            .unwrap();
        Java { process, client_port, log }
    }

    /// The answer to a four-letter word; nothing while there is nobody to give one.
    pub(crate) fn word(&self, word: &str) -> String {
        let mut answer = String::new();
        if let Ok(mut socket) = TcpStream::connect((Ipv4Addr::LOCALHOST, self.client_port)) {
            let _ = socket.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = socket.write_all(word.as_bytes());
            let _ = socket.read_to_string(&mut answer);
        }
        answer
    }

    /// Waits until `srvr` says this mode.
    pub(crate) fn wait_for_mode(&self, mode: &str) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !self.word("srvr").contains(&format!("Mode: {mode}")) {
            assert!(
                Instant::now() < deadline,
                "never {mode}: {}\n{}",
                self.word("srvr"),
                fs::read_to_string(&self.log).unwrap_or_default()
            );
            thread::yield_now();
            thread::park_timeout(Duration::from_millis(50));
        }
    }
}

impl Drop for Java {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
