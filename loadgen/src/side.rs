//! The servers of a comparison: found running, or started here, each time anew if wished.

use std::fs::{self, File};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use crate::process::{Start, Started};
use crate::{Fault, resolve, sys};

/// One of the two servers.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    pub name: String,
    /// Where it listens; none: on a free port of this machine, if it is ours to start.
    pub server: Option<String>,
    pub way: Way,
    /// The CPUs it is kept on; none: wherever.
    pub cpus: Vec<usize>,
    /// Lines for its configuration file, `key=value`, if we write one.
    pub config: Vec<String>,
}

/// How a server comes to run.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// It runs already; its costs are wanted if its process is known.
    Runs { pid: Option<u32> },
    /// A line of shell starts it. Its address and its data directory are up to that.
    Line(String),
    /// This program, which takes what ringkeeper takes.
    Ringkeeper { program: PathBuf },
    /// Apache ZooKeeper, from its distribution's directory or a class path.
    ZooKeeper { class_path: String, java_flags: String },
}

/// In its home.
const CONFIG_NAME: &str = "zoo.cfg";
const LOG_NAME: &str = "server.log";
/// How long a server may take to start.
const START_WITHIN: Duration = Duration::from_secs(120);

/// Where the servers that we start keep their data: a directory below this for each start.
pub struct Directories {
    below: PathBuf,
    starts: u32,
}

impl Directories {
    /// A fresh directory below another.
    pub fn below(directory: &Path) -> Directories {
        let below = directory.join(format!("loadgen-{}", std::process::id()));
        Directories { below, starts: 0 }
    }

    fn fresh(&mut self, name: &str) -> Result<PathBuf, Fault> {
        self.starts += 1;
        let directory = self.below.join(format!("{:03}-{name}", self.starts));
        let made = fs::create_dir_all(directory.join("data"));
        made.map_err(|source| Fault::Process { what: directory.display().to_string(), source })?;
        Ok(directory)
    }
}

impl Drop for Directories {
    fn drop(&mut self) {
        // Only if it is empty: what a failed server has left is of use.
        let _ = fs::remove_dir(&self.below);
    }
}

/// Where a side that we start listens and keeps its data, over as many starts as wished. The data
/// goes with it.
pub struct Home {
    server: SocketAddr,
    /// None: its data is up to the line that starts it.
    directory: Option<PathBuf>,
}

impl Home {
    /// Leaves what is there: a failed server's log is of use.
    fn leave(&mut self) -> Option<PathBuf> {
        self.directory.take()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(directory) = self.directory.take() {
            // Left-over data does no harm to a run, and the next has a directory of its own.
            let _ = fs::remove_dir_all(directory);
        }
    }
}

/// A side while it runs. What we have started ends with this, and its data goes.
pub struct Running {
    /// `HOST:PORT`.
    pub server: String,
    pub pid: Option<u32>,
    // In this order: the server ends before its data goes.
    started: Option<Started>,
    home: Option<Home>,
}

impl Running {
    /// Whether we started it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.started.is_some()
    }

    /// Ends the server, if we started it, and keeps its data.
    pub fn end(self) -> Option<Home> {
        drop(self.started);
        self.home
    }
}

impl Side {
    /// Has it run, and waits until it answers.
    pub fn run(
        &self,
        directories: &mut Directories,
        said: &mut dyn FnMut(&str),
    ) -> Result<Running, Fault> {
        if let Way::Runs { pid } = &self.way {
            let server = self.server.clone().ok_or_else(|| self.has_no_address())?;
            return Ok(Running { server, pid: *pid, started: None, home: None });
        }
        let mut home = self.home(directories)?;
        let (started, took) = self.start(&mut home, START_WITHIN)?;
        let (name, server, ms) = (&self.name, home.server, took.as_secs_f64() * 1e3);
        said(&format!("{name}: started at {server} in {ms:.0} ms"));
        let pid = Some(started.pid());
        Ok(Running { server: server.to_string(), pid, started: Some(started), home: Some(home) })
    }

    pub fn is_ours_to_start(&self) -> Result<(), Fault> {
        match self.way {
            Way::Runs { .. } => Err(self.runs_already()),
            Way::Line(_) | Way::Ringkeeper { .. } | Way::ZooKeeper { .. } => Ok(()),
        }
    }

    /// A home without data, as far as that is ours to say.
    pub fn home(&self, directories: &mut Directories) -> Result<Home, Fault> {
        match self.way {
            Way::Runs { .. } => Err(self.runs_already()),
            Way::Line(_) => {
                let text = self.server.clone().ok_or_else(|| self.has_no_address())?;
                let server = resolve(std::slice::from_ref(&text))?[0];
                Ok(Home { server, directory: None })
            }
            Way::Ringkeeper { .. } | Way::ZooKeeper { .. } => {
                let directory = directories.fresh(&self.name)?;
                let what = || directory.display().to_string();
                let fault = |source| Fault::Process { what: what(), source };
                let server = match &self.server {
                    Some(server) => resolve(std::slice::from_ref(server))?[0],
                    None => free_address().map_err(fault)?,
                };
                let configuration = self.configuration(&directory, server);
                fs::write(directory.join(CONFIG_NAME), configuration).map_err(fault)?;
                Ok(Home { server, directory: Some(directory) })
            }
        }
    }

    /// Starts it and waits for its first answer; the time that took.
    pub fn start(&self, home: &mut Home, within: Duration) -> Result<(Started, Duration), Fault> {
        let (program, arguments) = match &self.way {
            Way::Runs { .. } => return Err(self.runs_already()),
            Way::Line(line) => ("sh".into(), vec!["-c".to_owned(), format!("exec {line}")]),
            Way::Ringkeeper { program } => (program.clone(), vec!["start-foreground".to_owned()]),
            Way::ZooKeeper { class_path, java_flags } => {
                let mut arguments: Vec<String> =
                    java_flags.split_ascii_whitespace().map(str::to_owned).collect();
                arguments.push("-cp".to_owned());
                arguments.push(full_class_path(class_path));
                arguments.push("org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned());
                ("java".into(), arguments)
            }
        };
        let mut start = Start {
            program,
            arguments,
            cpus: self.cpus.clone(),
            log: None,
            is_killed_with_us: false,
        };
        if let Some(directory) = &home.directory {
            start.arguments.push(directory.join(CONFIG_NAME).display().to_string());
            let log = directory.join(LOG_NAME);
            let opened = File::create(&log);
            let what = || log.display().to_string();
            start.log = Some(opened.map_err(|source| Fault::Process { what: what(), source })?);
        }
        let mut started = Started::start(home.server, start)?;
        match started.first_reply(within) {
            Ok(took) => Ok((started, took)),
            Err(fault) => Err(match home.leave() {
                Some(directory) => {
                    let log = directory.join(LOG_NAME);
                    Fault::Load(format!("{fault}; see {}", log.display()))
                }
                None => fault,
            }),
        }
    }

    fn configuration(&self, directory: &Path, server: SocketAddr) -> String {
        let mut lines = vec![
            "tickTime=2000".to_owned(),
            format!("dataDir={}", directory.join("data").display()),
            format!("clientPort={}", server.port()),
            format!("clientPortAddress={}", server.ip()),
            "maxClientCnxns=0".to_owned(),
            "admin.enableServer=false".to_owned(),
        ];
        // Later lines win with both servers.
        lines.extend(self.config.iter().cloned());
        lines.join("\n") + "\n"
    }

    fn has_no_address(&self) -> Fault {
        Fault::Load(format!("{}: HOST:PORT is needed where it is not ours to choose", self.name))
    }

    fn runs_already(&self) -> Fault {
        let what = "its start can be measured only where loadgen starts it";
        Fault::Load(format!("{}: {what}", self.name))
    }
}

/// A port that is free now. Another may take it before the server does, which then says so.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// A distribution's directory has its jars in `lib`; anything else is a class path already.
pub(crate) fn full_class_path(given: &str) -> String {
    if Path::new(given).is_dir() {
        format!("{given}/lib/*:{given}/*:{given}/conf")
    } else {
        given.to_owned()
    }
}

/// Every CPU, for a server that is to run wherever although we are kept on some.
#[must_use]
pub fn all_cpus() -> Vec<usize> {
    (0..sys::cpus()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn side(server: Option<&str>, way: Way) -> Side {
        let server = server.map(str::to_owned);
        let config = vec!["snapCount=7".to_owned()];
        Side { name: "one".to_owned(), server, way, cpus: Vec::new(), config }
    }

    #[test]
    fn a_server_that_fails_to_start_leaves_its_log_and_says_where() {
        let base = std::env::temp_dir().join(format!("loadgen-side-{}", std::process::id()));
        let mut directories = Directories::below(&base);
        let side = side(None, Way::Ringkeeper { program: "false".into() });
        let error = side.run(&mut directories, &mut |_| {}).err().unwrap().to_string();
        let (_, log) = error.rsplit_once("see ").unwrap();
        assert!(Path::new(log).exists(), "{error}");
        let config = fs::read_to_string(Path::new(log).with_file_name("zoo.cfg")).unwrap();
        assert!(config.contains("clientPortAddress=127.0.0.1\n"), "{config}");
        assert!(config.ends_with("snapCount=7\n"), "{config}");
        fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_server_that_we_do_not_start_needs_its_address() {
        let mut directories = Directories::below(&std::env::temp_dir());
        for way in [Way::Runs { pid: None }, Way::Line("true".to_owned())] {
            let error = side(None, way).run(&mut directories, &mut |_| {}).err().unwrap();
            assert!(error.to_string().contains("HOST:PORT"), "{error}");
        }
        let runs = side(Some("a:1"), Way::Runs { pid: Some(7) });
        let running = runs.run(&mut directories, &mut |_| {}).unwrap();
        assert_eq!((running.server.as_str(), running.pid), ("a:1", Some(7)));
        assert!(!running.is_ours());
    }
}
