//! The servers of an ensemble on this machine, each a process of its own: their directories,
//! configurations and ports, what they say of themselves, and their end.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use crate::process::{Start, Started, Usage};
use crate::side::full_class_path;
use crate::{Fault, hold, sys};

/// What a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ringkeeper,
    /// Apache ZooKeeper.
    Java,
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Kind, String> {
        match text {
            "ringkeeper" => Ok(Kind::Ringkeeper),
            "java" => Ok(Kind::Java),
            _ => Err(format!("'{text}' is no kind of server: ringkeeper or java")),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Ringkeeper => "ringkeeper",
            Kind::Java => "java",
        })
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What a server does, as its `srvr` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Also of a server that is alone.
    Leader,
    Follower,
    Observer,
}

impl Mode {
    /// What an answer to `srvr` says. None: the server does not serve.
    fn of_answer(answer: &str) -> Option<Mode> {
        match answer.lines().find_map(|line| line.strip_prefix("Mode: "))?.trim() {
            "leader" | "standalone" => Some(Mode::Leader),
            "follower" => Some(Mode::Follower),
            "observer" => Some(Mode::Observer),
            _ => None,
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Leader => "leader",
            Mode::Follower => "follower",
            Mode::Observer => "observer",
        })
    }
}

/// Which servers, and how they are started.
#[derive(Clone, Debug, Serialize)]
pub struct Makeup {
    pub voters: Vec<Kind>,
    /// They have the highest ids.
    pub observers: Vec<Kind>,
    /// The program that is ringkeeper.
    pub ringkeeper: PathBuf,
    /// Where Apache ZooKeeper is: its distribution's directory, one of jars, or a class path.
    pub jars: Option<String>,
    pub java_flags: String,
    /// Lines for each configuration file, `key=value`.
    pub config: Vec<String>,
    /// Where all data goes, and stays; none: to a directory that goes with the ensemble.
    pub folder: Option<PathBuf>,
    /// The first of the ports, three for each server; none: ports that are free.
    pub first_port: Option<u16>,
}

pub const SERVERS_MAX: usize = 7;

const CONFIG_NAME: &str = "zoo.cfg";
const LOG_NAME: &str = "server.log";
/// How long servers may take to serve after they were started.
pub const SERVE_WITHIN: Duration = Duration::from_secs(120);
/// How often servers are asked what they do while that is waited for.
const ASK_EVERY: Duration = Duration::from_millis(2);
/// How long an answer to `srvr` may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Where ports are looked for if the kernel does not say which it gives to outgoing connections.
const EPHEMERAL_FIRST: u32 = 32_768;
const PORTS: u32 = 12_000;

impl Makeup {
    /// What is wrong with it, if anything.
    pub fn check(&self) -> Result<(), Fault> {
        let count = self.voters.len() + self.observers.len();
        hold(&[
            (!self.voters.is_empty(), "a server that votes at least"),
            (count <= SERVERS_MAX, "7 servers at most"),
        ])?;
        let has = |kind| self.voters.iter().chain(&self.observers).any(|&it| it == kind);
        if has(Kind::Ringkeeper) && !self.ringkeeper.is_file() {
            let what = format!(
                "{}: there is no such program; --ringkeeper says where it is",
                self.ringkeeper.display()
            );
            return Err(Fault::Load(what));
        }
        if has(Kind::Java) {
            self.class_path()?;
        }
        if let Some(folder) = &self.folder
            && fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some())
        {
            let what = format!("{}: not empty, and each ensemble is new", folder.display());
            return Err(Fault::Load(what));
        }
        Ok(())
    }

    /// The class path of Apache ZooKeeper.
    fn class_path(&self) -> Result<String, Fault> {
        let Some(jars) = &self.jars else {
            let what = "a java server needs --jars: where Apache ZooKeeper's jars are";
            return Err(Fault::Load(what.to_owned()));
        };
        let path = Path::new(jars);
        if !path.is_dir() {
            // A class path of jars, each of which java looks for itself.
            return match jars.contains(".jar") || jars.contains('*') {
                true => Ok(jars.clone()),
                false => Err(Fault::Load(format!("--jars {jars}: there is no such directory"))),
            };
        }
        let is_zookeeper = |entry: &fs::DirEntry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("zookeeper") && name.ends_with(".jar")
        };
        let has_jar = [path.to_owned(), path.join("lib")].iter().any(|directory| {
            fs::read_dir(directory)
                .is_ok_and(|entries| entries.flatten().any(|it| is_zookeeper(&it)))
        });
        if !has_jar {
            return Err(Fault::Load(format!("--jars {jars}: no zookeeper*.jar is there")));
        }
        // Where several loggers are, as in /usr/share/java, the first one named is taken; others
        // might log each packet, which costs more than all else.
        let logger = path.join("slf4j-simple.jar");
        let logger = logger.exists().then(|| format!("{}:", logger.display()));
        Ok(format!("{}{}", logger.unwrap_or_default(), full_class_path(jars)))
    }

    /// The lines that are the same for all servers, and those that say who they are.
    fn configuration(&self, places: &[Place], place: &Place, data: &Path) -> String {
        let mut lines = vec![
            "tickTime=2000".to_owned(),
            "initLimit=10".to_owned(),
            "syncLimit=5".to_owned(),
            format!("dataDir={}", data.display()),
            format!("clientPort={}", place.client.port()),
            format!("clientPortAddress={}", place.client.ip()),
            "maxClientCnxns=0".to_owned(),
            "admin.enableServer=false".to_owned(),
        ];
        if place.is_observer {
            lines.push("peerType=observer".to_owned());
        }
        if self.voters.len() == 1 && !self.observers.is_empty() {
            // Whoever votes alone has observers only as a quorum of one.
            lines.push("standaloneEnabled=false".to_owned());
        }
        for Place { id, is_observer, client, quorum, election, .. } in places {
            let role = if *is_observer { ":observer" } else { "" };
            lines.push(format!("server.{id}={}:{quorum}:{election}{role}", client.ip()));
        }
        // Later lines win with both kinds.
        lines.extend(self.config.iter().cloned());
        lines.join("\n") + "\n"
    }

    /// As an option takes it.
    #[must_use]
    pub fn names(kinds: &[Kind]) -> String {
        kinds.iter().map(Kind::to_string).collect::<Vec<_>>().join(",")
    }
}

/// Where a server of an ensemble is.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub id: usize,
    pub kind: Kind,
    pub is_observer: bool,
    pub client: SocketAddr,
    quorum: u16,
    election: u16,
}

/// One server, whether it runs or not.
pub struct Server {
    pub place: Place,
    directory: PathBuf,
    started: Option<Started>,
    is_paused: bool,
    /// The CPU time of its processes that have ended.
    cpu_before: f64,
}

/// What a server has used up over all its processes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub cpu_seconds: f64,
    /// Of the process that runs; 0 if none does.
    pub resident_bytes: u64,
    pub resident_peak_bytes: u64,
}

/// An ensemble. Its servers end with this, those that follow before the one that leads.
pub struct Servers {
    makeup: Makeup,
    list: Vec<Server>,
    folder: PathBuf,
    is_folder_ours: bool,
}

fn fault_at(path: &Path) -> impl FnOnce(io::Error) -> Fault {
    let what = path.display().to_string();
    move |source| Fault::Process { what, source }
}

impl Servers {
    /// Makes directories and configurations. Nobody is started.
    pub fn new(makeup: &Makeup) -> Result<Servers, Fault> {
        makeup.check()?;
        let (folder, is_folder_ours) = match &makeup.folder {
            Some(folder) => (folder.clone(), false),
            None => (fresh_folder(), true),
        };
        fs::create_dir_all(&folder).map_err(fault_at(&folder))?;
        // Java is started elsewhere than we are.
        let folder = fs::canonicalize(&folder).map_err(fault_at(&folder))?;
        let mut servers =
            Servers { makeup: makeup.clone(), list: Vec::new(), folder, is_folder_ours };
        let kinds = makeup.voters.iter().chain(&makeup.observers);
        let mut ports = Ports::new(makeup.first_port);
        let mut places = Vec::new();
        for (id, &kind) in (1..).zip(kinds) {
            let client = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.next()?));
            let is_observer = makeup.voters.len() < id;
            let (quorum, election) = (ports.next()?, ports.next()?);
            places.push(Place { id, kind, is_observer, client, quorum, election });
        }
        for place in &places {
            let directory = servers.folder.join(place.id.to_string());
            let data = directory.join("data");
            fs::create_dir_all(&data).map_err(fault_at(&data))?;
            let myid = data.join("myid");
            fs::write(&myid, format!("{}\n", place.id)).map_err(fault_at(&myid))?;
            let config = directory.join(CONFIG_NAME);
            let lines = makeup.configuration(&places, place, &data);
            fs::write(&config, lines).map_err(fault_at(&config))?;
            servers.list.push(Server {
                place: *place,
                directory,
                started: None,
                is_paused: false,
                cpu_before: 0.0,
            });
        }
        Ok(servers)
    }

    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn iter(&self) -> impl Iterator<Item = &Server> {
        self.list.iter()
    }

    /// Those that run, whether paused or not, in the order of their ids.
    pub fn running(&self) -> impl Iterator<Item = &Server> {
        self.list.iter().filter(|server| server.started.is_some())
    }

    fn server(&mut self, id: usize) -> &mut Server {
        &mut self.list[id - 1]
    }

    pub fn start(&mut self, id: usize) -> Result<(), Fault> {
        let makeup = self.makeup.clone();
        let server = self.server(id);
        let (program, mut arguments) = match server.place.kind {
            Kind::Ringkeeper => (makeup.ringkeeper.clone(), vec!["start-foreground".to_owned()]),
            Kind::Java => {
                let flags = makeup.java_flags.split_ascii_whitespace().map(str::to_owned);
                let mut arguments: Vec<String> = flags.collect();
                arguments.push("-cp".to_owned());
                arguments.push(makeup.class_path()?);
                arguments.push("org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned());
                ("java".into(), arguments)
            }
        };
        arguments.push(server.directory.join(CONFIG_NAME).display().to_string());
        let log = server.log();
        let opened = File::options().create(true).append(true).open(&log);
        let start = Start {
            program,
            arguments,
            cpus: Vec::new(),
            log: Some(opened.map_err(fault_at(&log))?),
            is_killed_with_us: true,
        };
        server.started = Some(Started::start(server.place.client, start)?);
        Ok(())
    }

    /// Starts all that do not run and are wanted, and waits until they serve.
    pub fn start_all(&mut self, with_observers: bool) -> Result<(), Fault> {
        let wanted = |server: &&Server| server.started.is_none();
        let ids: Vec<_> = self
            .list
            .iter()
            .filter(wanted)
            .filter(|server| with_observers || !server.place.is_observer)
            .map(|server| server.place.id)
            .collect();
        for id in ids {
            self.start(id)?;
        }
        self.wait_all(SERVE_WITHIN)
    }

    /// Ends a server at once.
    pub fn kill(&mut self, id: usize) {
        let server = self.server(id);
        server.note_cpu();
        if let Some(started) = server.started.take() {
            started.kill();
        }
    }

    /// Asks a server to end, and waits until it has.
    pub fn stop(&mut self, id: usize) -> Duration {
        let server = self.server(id);
        server.note_cpu();
        server.started.take().map(Started::end).unwrap_or_default()
    }

    pub fn pause(&mut self, id: usize) -> Result<(), Fault> {
        let server = self.server(id);
        server.is_paused = true;
        server.started.as_ref().map_or(Ok(()), Started::pause)
    }

    pub fn go_on(&mut self, id: usize) -> Result<(), Fault> {
        let server = self.server(id);
        server.is_paused = false;
        server.started.as_ref().map_or(Ok(()), Started::go_on)
    }

    /// What a server does. None: it does not run, is paused, or does not serve.
    #[must_use]
    pub fn mode(&self, id: usize) -> Option<Mode> {
        self.list[id - 1].mode()
    }

    /// Who leads, if one does and only one.
    #[must_use]
    pub fn leader(&self) -> Option<usize> {
        let ids = self.list.iter().map(|server| server.place.id);
        let leaders: Vec<_> = ids.filter(|&id| self.mode(id) == Some(Mode::Leader)).collect();
        if let [leader] = leaders[..] { Some(leader) } else { None }
    }

    /// Whether one leads and all others that run follow or observe.
    #[must_use]
    pub fn all_serve(&self) -> bool {
        self.leader().is_some() && self.running().all(|server| server.mode().is_some())
    }

    /// Waits until one leads and all others that run follow or observe.
    pub fn wait_all(&mut self, within: Duration) -> Result<(), Fault> {
        let since = Instant::now();
        while !self.all_serve() {
            self.none_has_ended()?;
            if within <= since.elapsed() {
                let idle: Vec<_> = self
                    .running()
                    .filter(|server| server.mode().is_none())
                    .map(|server| server.log().display().to_string())
                    .collect();
                let what =
                    format!("not all servers serve within {within:?}; see {}", idle.join(", "));
                return Err(self.leave(Fault::SetUp { what }));
            }
            pause()?;
        }
        Ok(())
    }

    /// Waits until all that run have the same last zxid.
    pub fn wait_equal(&mut self, within: Duration) -> Result<(), Fault> {
        let since = Instant::now();
        loop {
            let zxids: Vec<_> = self.running().map(Server::zxid).collect();
            if zxids.windows(2).all(|pair| pair[0] == pair[1] && pair[0].is_some()) {
                return Ok(());
            }
            self.none_has_ended()?;
            if within <= since.elapsed() {
                let what = format!("the servers are not at one zxid within {within:?}: {zxids:x?}");
                return Err(self.leave(Fault::SetUp { what }));
            }
            pause()?;
        }
    }

    /// An error if a server that is to run does not.
    pub fn none_has_ended(&mut self) -> Result<(), Fault> {
        let ended = self.list.iter_mut().find_map(|server| {
            let status = server.started.as_mut()?.has_ended()?;
            let (id, log) = (server.place.id, server.log());
            Some(format!("server {id} has ended: {status}; see {}", log.display()))
        });
        match ended {
            Some(what) => Err(self.leave(Fault::Load(what))),
            None => Ok(()),
        }
    }

    /// Leaves the data for whoever wants to know the reason of a fault.
    fn leave(&mut self, fault: Fault) -> Fault {
        self.is_folder_ours = false;
        fault
    }

    pub fn used(&self) -> Vec<Used> {
        self.list.iter().map(Server::used).collect()
    }

    /// Ends all, the leader last, so that nobody else has to take over.
    pub fn end(mut self) {
        self.end_all();
    }

    fn end_all(&mut self) {
        let leader = self.leader();
        let mut ids: Vec<_> = (1..=self.list.len()).rev().collect();
        ids.sort_by_key(|&id| Some(id) == leader);
        for id in ids {
            let server = self.server(id);
            if let Some(started) = server.started.take() {
                started.end();
            }
        }
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        self.end_all();
        if self.is_folder_ours {
            // What cannot be removed does no harm to the next, whose folder is another.
            let _ = fs::remove_dir_all(&self.folder);
        }
    }
}

/// Waits a little before somebody is asked again.
pub fn pause() -> Result<(), Fault> {
    if sys::is_interrupted() {
        return Err(Fault::Interrupted);
    }
    thread::sleep(ASK_EVERY);
    Ok(())
}

impl Server {
    fn log(&self) -> PathBuf {
        self.directory.join(LOG_NAME)
    }

    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.started.as_ref().map(Started::pid)
    }

    /// When the process that runs was started.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.started.as_ref().map(|started| started.since)
    }

    fn srvr(&self) -> Option<String> {
        (self.started.is_some() && !self.is_paused).then_some(())?;
        srvr(self.place.client).ok()
    }

    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        Mode::of_answer(&self.srvr()?)
    }

    /// The last zxid of a server that serves.
    fn zxid(&self) -> Option<i64> {
        zxid_of(&self.srvr()?)
    }

    fn used(&self) -> Used {
        let usage = self.pid().and_then(|pid| Usage::of(pid).ok()).unwrap_or_default();
        Used {
            cpu_seconds: self.cpu_before + usage.cpu_seconds,
            resident_bytes: usage.resident_bytes,
            resident_peak_bytes: usage.resident_peak_bytes,
        }
    }

    /// Remembers the CPU time of a process that is about to end.
    fn note_cpu(&mut self) {
        self.cpu_before = self.used().cpu_seconds;
    }
}

fn srvr(server: SocketAddr) -> io::Result<String> {
    let mut socket = TcpStream::connect_timeout(&server, ANSWER_WITHIN)?;
    socket.set_read_timeout(Some(ANSWER_WITHIN))?;
    socket.write_all(b"srvr")?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

fn zxid_of(answer: &str) -> Option<i64> {
    let zxid = answer.lines().find_map(|line| line.strip_prefix("Zxid: 0x"))?;
    i64::from_str_radix(zxid.trim(), 16).ok()
}

fn fresh_folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("loadgen-ensemble-{}-{number}", std::process::id()))
}

/// Ports for the servers: those asked for, or free ones below those that the kernel gives to outgoing
/// connections, one of which might have it while a server is down.
struct Ports {
    next: u32,
    end: u32,
    is_given: bool,
}

impl Ports {
    fn new(first: Option<u16>) -> Ports {
        if let Some(first) = first {
            return Ports { next: first.into(), end: 65_536, is_given: true };
        }
        static USED: AtomicU32 = AtomicU32::new(0);
        let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
        let first = range.ok().and_then(|text| text.split_whitespace().next()?.parse().ok());
        let end: u32 = first.unwrap_or(EPHEMERAL_FIRST).max(PORTS + 1024);
        // Another process, and another ensemble of this one, begin elsewhere.
        let offset = std::process::id()
            .wrapping_mul(101)
            .wrapping_add(USED.fetch_add(97, Ordering::Relaxed));
        Ports { next: end - PORTS + offset % (PORTS - 1000), end, is_given: false }
    }

    fn next(&mut self) -> Result<u16, Fault> {
        while self.next < self.end {
            let port = self.next as u16;
            self.next += 1;
            let server = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            match TcpListener::bind(server) {
                Ok(_) => return Ok(port),
                Err(error) if self.is_given && error.kind() == io::ErrorKind::AddrInUse => {
                    return Err(Fault::InUse { server });
                }
                Err(source) if self.is_given => {
                    return Err(Fault::Process { what: server.to_string(), source });
                }
                Err(_) => {}
            }
        }
        Err(Fault::Load(format!("no port is free below {}", self.end)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn makeup(voters: &[Kind], observers: &[Kind]) -> Makeup {
        Makeup {
            voters: voters.to_vec(),
            observers: observers.to_vec(),
            ringkeeper: "/bin/false".into(),
            jars: None,
            java_flags: "-Xmx2g".to_owned(),
            config: vec!["snapCount=7".to_owned()],
            folder: None,
            first_port: None,
        }
    }

    fn refusal(makeup: &Makeup) -> String {
        Servers::new(makeup).err().unwrap().to_string()
    }

    #[test]
    fn each_server_has_its_directory_and_knows_the_others() {
        use Kind::Ringkeeper;
        let servers = Servers::new(&makeup(&[Ringkeeper; 3], &[Ringkeeper])).unwrap();
        let read = |name: &str| fs::read_to_string(servers.folder().join(name)).unwrap();
        for id in 1..=4 {
            assert_eq!(read(&format!("{id}/data/myid")), format!("{id}\n"));
        }
        let config = read("2/zoo.cfg");
        let mine = servers.list[1].place.client.port();
        assert!(config.contains(&format!("clientPort={mine}\n")), "{config}");
        assert_eq!(config.matches("\nserver.").count(), 4, "{config}");
        assert_eq!(config.matches(":observer\n").count(), 1, "{config}");
        assert!(config.ends_with("snapCount=7\n") && !config.contains("peerType"), "{config}");
        assert!(read("4/zoo.cfg").contains("peerType=observer\n"));
        let mut ports: Vec<_> = servers
            .iter()
            .flat_map(|server| {
                let Place { client, quorum, election, .. } = server.place;
                [client.port(), quorum, election]
            })
            .collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 12);
        let folder = servers.folder().to_owned();
        drop(servers);
        assert!(!folder.exists());
    }

    #[test]
    fn what_cannot_be_started_is_refused_with_the_reason() {
        use Kind::{Java, Ringkeeper};
        assert!("zookeeper".parse::<Kind>().unwrap_err().contains("ringkeeper or java"));
        assert!(refusal(&makeup(&[], &[Ringkeeper])).contains("votes"));
        assert!(refusal(&makeup(&[Ringkeeper; 5], &[Ringkeeper; 3])).contains("7 servers"));
        let nowhere = Makeup { ringkeeper: "/nowhere/rk".into(), ..makeup(&[Ringkeeper], &[]) };
        assert!(refusal(&nowhere).contains("/nowhere/rk: there is no such program"));
        assert!(refusal(&makeup(&[Java], &[])).contains("--jars"));
        for (jars, reason) in
            [("/nowhere", "no such directory"), ("/proc/self", "no zookeeper*.jar is there")]
        {
            let makeup = Makeup { jars: Some(jars.to_owned()), ..makeup(&[Java], &[]) };
            assert!(refusal(&makeup).contains(reason), "{}", refusal(&makeup));
        }
        let full = Makeup { folder: Some("/proc".into()), ..makeup(&[Ringkeeper], &[]) };
        assert!(refusal(&full).contains("not empty"));
    }

    #[test]
    fn a_port_that_is_taken_is_told() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let makeup = Makeup { first_port: Some(port), ..makeup(&[Kind::Ringkeeper; 3], &[]) };
        let refused = refusal(&makeup);
        assert!(refused.contains(&format!(":{port}: something listens there")), "{refused}");
    }

    #[test]
    fn a_server_that_ends_at_once_is_told_and_leaves_its_log() {
        let mut servers = Servers::new(&makeup(&[Kind::Ringkeeper; 3], &[])).unwrap();
        let error = servers.start_all(true).unwrap_err().to_string();
        assert!(error.contains(" has ended: exit status: 1"), "{error}");
        let log = error.rsplit_once("see ").unwrap().1.to_owned();
        let folder = servers.folder().to_owned();
        drop(servers);
        assert!(Path::new(&log).exists(), "{error}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_answer_to_srvr_says_what_a_server_does() {
        let answer = "Zookeeper version: 3.9.3\nLatency min/avg/max: 0/0.0/0\nConnections: 1\n\
                      Zxid: 0x10000002a\nMode: follower\nNode count: 5\n";
        assert_eq!(Mode::of_answer(answer), Some(Mode::Follower));
        assert_eq!(zxid_of(answer), Some(0x1_0000_002a));
        assert_eq!(Mode::of_answer("Mode: standalone\n"), Some(Mode::Leader));
        let idle = "This ZooKeeper instance is not currently serving requests\n";
        assert_eq!((Mode::of_answer(idle), zxid_of(idle)), (None, None));
    }
}
