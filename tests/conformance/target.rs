//! The servers that the table is run against, started on a generated `zoo.cfg`.

use std::env;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::PATIENCE;
use crate::ports;
use crate::trial::Stop;

/// (major, minor, patch).
pub(crate) type Version = (u32, u32, u32);

/// The release whose behaviour ringkeeper has: the one the specification was taken from.
const BASELINE: Version = (3, 10, 0);

/// Where Debian puts ZooKeeper; the manifest of its jar names the rest.
const DEBIAN_CLASSPATH: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/slf4j-simple.jar";

const START_PATIENCE: Duration = Duration::from_secs(40);

/// Whom the table judges.
pub(crate) enum Target {
    Ringkeeper,
    ZooKeeper { class_path: String, version: Version },
}

impl Target {
    /// The target that the environment names, see the crate's comment.
    pub(crate) fn from_environment() -> Result<Target, Stop> {
        match env::var("CONFORMANCE_TARGET").as_deref() {
            Err(_) | Ok("" | "ringkeeper") => return Ok(Target::Ringkeeper),
            Ok("zookeeper") => {}
            Ok(other) => return Err(Stop::new(format!("CONFORMANCE_TARGET={other}"))),
        }
        let class_path = env::var("ZOOKEEPER_CLASSPATH").unwrap_or(DEBIAN_CLASSPATH.into());
        if let Ok(text) = env::var("ZOOKEEPER_VERSION") {
            let version = parse_version(&text)
                .ok_or_else(|| Stop::new(format!("ZOOKEEPER_VERSION={text}")))?;
            return Ok(Target::ZooKeeper { class_path, version });
        }
        let unknown = Target::ZooKeeper { class_path, version: (0, 0, 0) };
        let server = Server::start(&unknown, &OPEN, Seed::Empty)?;
        let report = server.word("srvr")?;
        let version = report
            .strip_prefix("Zookeeper version: ")
            .and_then(parse_version)
            .ok_or_else(|| Stop::new(format!("no version in the answer to srvr: {report:?}")))?;
        match unknown {
            Target::ZooKeeper { class_path, .. } => Ok(Target::ZooKeeper { class_path, version }),
            Target::Ringkeeper => unreachable!("ZooKeeper was asked"),
        }
    }

    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Target::Ringkeeper)
    }

    pub(crate) fn version(&self) -> Version {
        match self {
            Target::Ringkeeper => BASELINE,
            Target::ZooKeeper { version, .. } => *version,
        }
    }

    pub(crate) fn name(&self) -> String {
        let (major, minor, patch) = self.version();
        match self {
            Target::Ringkeeper => format!("ringkeeper (as ZooKeeper {major}.{minor}.{patch})"),
            Target::ZooKeeper { .. } => format!("Apache ZooKeeper {major}.{minor}.{patch}"),
        }
    }
}

/// The leading `3.8.0` of a text like `3.8.0-SNAPSHOT--1, built on …`.
fn parse_version(text: &str) -> Option<Version> {
    let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    let mut numbers = numbers.split('.').map(|n| n.parse::<u32>().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().unwrap_or(Some(0))?))
}

/// What a server is started with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) name: &'static str,
    tick_ms: i32,
    /// Keys of `zoo.cfg`.
    keys: &'static [(&'static str, &'static str)],
    /// Settings whose property lacks the `zookeeper.` prefix: ZooKeeper takes them on the command
    /// line only, ringkeeper in the file too.
    bare: &'static [(&'static str, &'static str)],
}

/// `super:test`.
const SUPER_DIGEST: (&str, &str) =
    ("DigestAuthenticationProvider.superDigest", "super:D/InIHSb7yEEbrWz8b9l71RjZJU=");

/// Everything that a client can use is on; most cases run here.
pub(crate) const OPEN: Settings = Settings {
    name: "open",
    tick_ms: 1000,
    keys: &[
        ("4lw.commands.whitelist", "*"),
        ("extendedTypesEnabled", "true"),
        ("enforceQuota", "true"),
        SUPER_DIGEST,
    ],
    bare: &[],
};

/// Everything as it is by default, with short intervals for what happens by itself.
pub(crate) const PLAIN: Settings = Settings {
    name: "plain",
    tick_ms: 200,
    keys: &[SUPER_DIGEST],
    bare: &[
        ("znode.container.checkIntervalMs", "200"),
        ("znode.container.maxNeverUsedIntervalMs", "600"),
    ],
};

/// What happens by itself happens soon.
pub(crate) const SHORT: Settings = Settings {
    name: "short",
    tick_ms: 200,
    keys: &[("extendedTypesEnabled", "true"), ("reconfigEnabled", "true")],
    bare: &[("znode.container.checkIntervalMs", "200")],
};

/// Nothing is answered before a digest authentication.
pub(crate) const ENFORCED: Settings = Settings {
    name: "enforced",
    tick_ms: 1000,
    keys: &[("enforce.auth.enabled", "true"), ("enforce.auth.schemes", "digest")],
    bare: &[],
};

/// Other limits than the default ones.
pub(crate) const LIMITED: Settings = Settings {
    name: "limited",
    tick_ms: 1000,
    keys: &[
        ("minSessionTimeout", "700"),
        ("maxSessionTimeout", "5000"),
        ("nio.sessionlessCnxnTimeout", "500"),
        ("skipACL", "yes"),
    ],
    bare: &[("jute.maxbuffer", "2000")],
};

/// Room for three connections from one address.
pub(crate) const THREE_EACH: Settings = Settings {
    name: "three connections each",
    tick_ms: 1000,
    keys: &[("maxClientCnxns", "3")],
    bare: &[],
};

/// Room for three connections.
pub(crate) const THREE_IN_ALL: Settings = Settings {
    name: "three connections in all",
    tick_ms: 1000,
    keys: &[("maxCnxns", "3")],
    bare: &[],
};

/// A login by SASL is configured; the server's directory holds the file.
pub(crate) const SASL: Settings = Settings {
    name: "sasl",
    tick_ms: 1000,
    // DIGEST-MD5 is refused in FIPS mode, which newer releases default to.
    keys: &[("fips-mode", "false")],
    bare: &[("java.security.auth.login.config", "DIRECTORY/jaas.conf")],
};

const JAAS: &str = "Server {\n  org.apache.zookeeper.server.auth.DigestLoginModule required\n    \
                    user_bob=\"secret\";\n};\n";

/// What a server finds in its data directory.
pub(crate) enum Seed<'a> {
    Empty,
    /// `snapshot.0` with these bytes.
    Snapshot(&'a [u8]),
    /// What another server left, killed as it was.
    LeftBy(Server),
}

/// A server process, ended and its directory removed when this is dropped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) tick_ms: i32,
    process: Child,
    directory: PathBuf,
}

impl Server {
    /// Starts a server and waits until it serves.
    pub(crate) fn start(
        target: &Target,
        settings: &Settings,
        seed: Seed<'_>,
    ) -> Result<Server, Stop> {
        let directory = match seed {
            Seed::Empty => fresh_directory()?,
            Seed::Snapshot(bytes) => {
                let directory = fresh_directory()?;
                let version2 = directory.join("data/version-2");
                fs::create_dir_all(&version2)?;
                fs::write(version2.join("snapshot.0"), bytes)?;
                directory
            }
            Seed::LeftBy(server) => server.leave_directory()?,
        };
        let port = ports::listen().local_addr()?.port();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        fs::write(directory.join("jaas.conf"), JAAS)?;
        let process = spawn(target, settings, &directory, port)?;
        let mut server = Server { address, tick_ms: settings.tick_ms, process, directory };
        server.wait_until_serving()?;
        Ok(server)
    }

    /// The answer to a four-letter word.
    pub(crate) fn word(&self, word: &str) -> Result<String, Stop> {
        Ok(ask(self.address, word.as_bytes(), PATIENCE)?)
    }

    fn wait_until_serving(&mut self) -> Result<(), Stop> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            // `srvr` is the word that every whitelist has; it names a mode once there is one.
            // A server that is just starting may take a connection and forget it.
            match ask(self.address, b"srvr", Duration::from_millis(500)) {
                Ok(answer) if answer.contains("Mode: ") => return Ok(()),
                Ok(_) | Err(_) => {}
            }
            if let Some(status) = self.process.try_wait()? {
                return Err(Stop::new(format!("the server ended, {status}:\n{}", self.log_tail())));
            }
            if deadline < Instant::now() {
                return Err(Stop::new(format!("the server does not serve:\n{}", self.log_tail())));
            }
            thread::park_timeout(Duration::from_millis(15));
        }
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn kill(&mut self) {
        // An error means that it has ended, which is what is wanted.
        drop(self.process.kill());
        drop(self.process.wait());
    }

    /// Kills the server and keeps what it has written.
    fn leave_directory(mut self) -> Result<PathBuf, Stop> {
        self.kill();
        let left = fresh_directory()?;
        fs::rename(self.directory.join("data"), left.join("data"))?;
        Ok(left)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        drop(fs::remove_dir_all(&self.directory));
    }
}

fn spawn(target: &Target, settings: &Settings, directory: &Path, port: u16) -> Result<Child, Stop> {
    let value = |v: &str| v.replace("DIRECTORY", &directory.display().to_string());
    let mut lines = vec![
        format!("tickTime={}", settings.tick_ms),
        format!("dataDir={}", directory.join("data").display()),
        format!("clientPort={port}"),
        "clientPortAddress=127.0.0.1".into(),
        "maxClientCnxns=0".into(),
        "admin.enableServer=false".into(),
    ];
    lines.extend(settings.keys.iter().map(|(key, v)| format!("{key}={}", value(v))));
    let mut command = match target {
        Target::Ringkeeper => {
            lines.extend(settings.bare.iter().map(|(key, v)| format!("{key}={}", value(v))));
            Command::new(env!("CARGO_BIN_EXE_ringkeeper"))
        }
        Target::ZooKeeper { class_path, .. } => {
            let mut command = Command::new("java");
            command.args(["-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
            command.args(settings.bare.iter().map(|(key, v)| format!("-D{key}={}", value(v))));
            command.args(["-cp", class_path]);
            command.arg("org.apache.zookeeper.server.quorum.QuorumPeerMain");
            command
        }
    };
    let config = directory.join("zoo.cfg");
    fs::write(&config, lines.join("\n") + "\n")?;
    let log = File::create(directory.join("log"))?;
    command.arg(&config).current_dir(directory);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    command.spawn().map_err(|e| Stop::new(format!("{command:?}: {e}")))
}

/// Sends four bytes and reads to the end.
fn ask(address: SocketAddr, word: &[u8], patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(word)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn fresh_directory() -> Result<PathBuf, Stop> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("ringkeeper-conformance-{}-{count}", std::process::id());
    let directory = env::temp_dir().join(name);
    fs::create_dir_all(&directory)?;
    Ok(directory)
}
