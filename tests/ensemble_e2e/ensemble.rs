//! The servers of one ensemble.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use ringkeeper::record::proto::ConnectResponse;

use crate::PATIENCE;
use crate::client::{Client, Terms, now, word};
use crate::namespaces::{self, Network};
use crate::ports;
use crate::proxy::Proxies;
use crate::server::{Folder, Server, Setup, until};

/// Ticks are short, so that what waits for one is soon over; they are long enough for a machine
/// that has other things to do.
const TICK_MS: u32 = 250;
const INIT_LIMIT_TICKS: u32 = 40;
const SYNC_LIMIT_TICKS: u32 = 8;
/// After so long without a word a leader or a follower is given up.
pub(crate) const SYNC_LIMIT: Duration =
    Duration::from_millis(TICK_MS as u64 * SYNC_LIMIT_TICKS as u64);

pub(crate) type Id = usize;

/// What an ensemble is made of.
pub(crate) struct Plan {
    pub(crate) voters: usize,
    /// They have the highest ids.
    pub(crate) observers: usize,
    /// Whether each connection between servers goes through a proxy of its own.
    pub(crate) proxies: bool,
    pub(crate) settings: Vec<&'static str>,
}

impl Plan {
    pub(crate) fn of(voters: usize) -> Plan {
        Plan { voters, observers: 0, proxies: false, settings: Vec::new() }
    }
}

pub(crate) struct Member {
    pub(crate) client: SocketAddr,
    pub(crate) quorum: SocketAddr,
    pub(crate) election: SocketAddr,
    setup: Setup,
    pub(crate) data: PathBuf,
    pub(crate) server: Option<Server>,
    is_paused: bool,
}

pub(crate) struct Ensemble {
    pub(crate) folder: Folder,
    pub(crate) members: BTreeMap<Id, Member>,
    pub(crate) proxies: Option<Proxies>,
    network: Option<Network>,
}

fn port() -> SocketAddr {
    ports::listen().local_addr().expect("a bound socket has an address")
}

impl Ensemble {
    /// Makes the directories; nobody is started.
    pub(crate) fn new(name: &str, plan: &Plan) -> Ensemble {
        Ensemble::new_in(name, plan, None)
    }

    fn new_in(name: &str, plan: &Plan, network: Option<Network>) -> Ensemble {
        let folder = Folder::new(name);
        let count = plan.voters + plan.observers;
        // Client port, quorum port, election port.
        let places: BTreeMap<Id, [SocketAddr; 3]> = (1..=count)
            .map(|id| match network {
                None => (id, [port(), port(), port()]),
                Some(_) => (id, [2181, 2888, 3888].map(|port| namespaces::place(id, port))),
            })
            .collect();
        let between = places.iter().map(|(&id, &[_, quorum, election])| (id, [quorum, election]));
        let between = between.collect();
        let proxies = plan.proxies.then(|| Proxies::start(&between));
        let mut members = BTreeMap::new();
        for id in 1..=count {
            let mut settings: Vec<String> = vec![
                format!("tickTime={TICK_MS}"),
                format!("initLimit={INIT_LIMIT_TICKS}"),
                format!("syncLimit={SYNC_LIMIT_TICKS}"),
                "maxSessionTimeout=60000".to_owned(),
            ];
            settings.extend(plan.settings.iter().map(|&setting| setting.to_owned()));
            if plan.voters < id {
                settings.push("peerType=observer".to_owned());
            }
            for (&to, &real) in &places {
                let [_, quorum, election] = real;
                let [quorum, election] = match &proxies {
                    Some(proxies) if to != id => proxies.places(id, to),
                    _ => [quorum, election],
                };
                let role = if plan.voters < to { ":observer" } else { "" };
                let line = format!(
                    "server.{to}={}:{}:{}{role}",
                    quorum.ip(),
                    quorum.port(),
                    election.port()
                );
                settings.push(line);
            }
            let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
            let data = folder.path().join(format!("data-{id}"));
            fs::create_dir_all(&data).unwrap();
            fs::write(data.join("myid"), format!("{id}\n")).unwrap();
            let [client, quorum, election] = places[&id];
            let mut setup = Setup::new(&settings).data(&data);
            if let Some(network) = &network {
                setup = setup.under(&network.entrance(id).each_ref().map(String::as_str));
            }
            setup.address = Some(client);
            let (server, is_paused) = (None, false);
            members.insert(id, Member { client, quorum, election, setup, data, server, is_paused });
        }
        Ensemble { folder, members, proxies, network }
    }

    /// Starts all, and waits until all serve.
    pub(crate) fn started(name: &str, plan: &Plan) -> Ensemble {
        Ensemble::new(name, plan).with_all_started()
    }

    /// The same, each in a network namespace of its own.
    pub(crate) fn started_in(name: &str, plan: &Plan, network: Network) -> Ensemble {
        Ensemble::new_in(name, plan, Some(network)).with_all_started()
    }

    fn with_all_started(self) -> Ensemble {
        let mut ensemble = self;
        for id in ensemble.ids() {
            ensemble.start(id);
        }
        ensemble.wait_all();
        ensemble
    }

    pub(crate) fn network(&self) -> &Network {
        self.network.as_ref().expect("the servers are in namespaces")
    }

    pub(crate) fn ids(&self) -> Vec<Id> {
        self.members.keys().copied().collect()
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.members.values().map(|member| member.client).collect()
    }

    pub(crate) fn address(&self, id: Id) -> SocketAddr {
        self.members[&id].client
    }

    pub(crate) fn start(&mut self, id: Id) {
        let member = self.members.get_mut(&id).unwrap();
        assert!(member.server.is_none(), "server {id} runs");
        member.server = Some(member.setup.start(&self.folder));
        member.is_paused = false;
    }

    pub(crate) fn server(&self, id: Id) -> &Server {
        self.members[&id].server.as_ref().expect("it runs")
    }

    /// SIGKILL, and it is gone.
    pub(crate) fn kill(&mut self, id: Id) {
        self.members.get_mut(&id).unwrap().server.take().expect("it runs").kill();
    }

    /// SIGTERM, and it has ended.
    pub(crate) fn terminate(&mut self, id: Id) -> ExitStatus {
        self.members.get_mut(&id).unwrap().server.take().expect("it runs").terminate(PATIENCE)
    }

    /// SIGSTOP.
    pub(crate) fn pause(&mut self, id: Id) {
        self.server(id).pause();
        self.members.get_mut(&id).unwrap().is_paused = true;
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self, id: Id) {
        self.server(id).resume();
        self.members.get_mut(&id).unwrap().is_paused = false;
    }

    /// The state that a server has told last: LOOKING, LEADING, FOLLOWING or OBSERVING.
    pub(crate) fn state(&self, id: Id) -> Option<&'static str> {
        let said = self.members[&id].server.as_ref()?.said();
        let mut lines = said.lines().rev().filter(|line| line.contains("pipeline.quorum_stats"));
        lines.find_map(|line| {
            ["LOOKING", "LEADING", "FOLLOWING", "OBSERVING"]
                .into_iter()
                .find(|state| line.ends_with(state))
        })
    }

    /// The last zxid that shows on a server, if it serves clients.
    pub(crate) fn zxid(&self, id: Id) -> Option<i64> {
        let member = &self.members[&id];
        if member.server.is_none() || member.is_paused {
            return None;
        }
        let answer = word(member.client, b"srvr").ok()?;
        let line = answer.lines().find_map(|line| line.strip_prefix("Zxid: 0x"))?;
        i64::from_str_radix(line, 16).ok()
    }

    pub(crate) fn serves(&self, id: Id) -> bool {
        self.zxid(id).is_some()
    }

    /// Whether a server is up, also if it serves nobody.
    pub(crate) fn answers(&self, id: Id) -> bool {
        word(self.address(id), b"srvr").is_ok_and(|answer| !answer.is_empty())
    }

    /// Who leads and serves. Servers that were paused or cut off may still believe that they lead:
    /// ask only of those in `among`.
    pub(crate) fn leader_among(&self, among: &[Id]) -> Option<Id> {
        among.iter().copied().find(|&id| {
            let member = &self.members[&id];
            let is_running = member.server.is_some() && !member.is_paused;
            is_running && self.state(id) == Some("LEADING") && self.serves(id)
        })
    }

    pub(crate) fn wait_leader_among(&self, among: &[Id]) -> Id {
        let mut leader = None;
        until(
            PATIENCE,
            || format!("none of {among:?} leads: {}", self.tell()),
            || {
                leader = self.leader_among(among);
                leader.is_some()
            },
        );
        leader.unwrap()
    }

    pub(crate) fn wait_leader(&self) -> Id {
        self.wait_leader_among(&self.ids())
    }

    pub(crate) fn wait_serving(&self, ids: &[Id]) {
        for &id in ids {
            until(
                PATIENCE,
                || format!("server {id} does not serve: {}", self.tell()),
                || self.serves(id),
            );
        }
    }

    pub(crate) fn wait_all(&self) {
        self.wait_serving(&self.ids());
    }

    pub(crate) fn wait_state(&self, id: Id, state: &str) {
        until(
            PATIENCE,
            || format!("server {id} is not {state}: {}", self.tell()),
            || self.state(id) == Some(state),
        );
    }

    /// A client of one server, with a session of its own.
    pub(crate) fn client(&self, id: Id) -> Client {
        let deadline = now() + PATIENCE;
        loop {
            match Client::try_connect(self.address(id), None) {
                Ok(client) if 0 < client.session.timeout_ms => return client,
                result => assert!(
                    now() < deadline,
                    "no session with server {id}: {:?}; {}",
                    result.err(),
                    self.tell()
                ),
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }

    /// The session of another connection, from now on with this server.
    pub(crate) fn moved(&self, id: Id, session: ConnectResponse, last_zxid_seen: i64) -> Client {
        let terms = Terms { last_zxid_seen, ..Terms::default() };
        let mut client = Client::begin_as(self.address(id), Some(session), terms).unwrap();
        client.finish().unwrap();
        assert_eq!(client.session.session, session.session, "the session goes on");
        assert!(0 < client.session.timeout_ms, "the session goes on");
        client
    }

    /// Each server's state and last lines, for a complaint.
    pub(crate) fn tell(&self) -> String {
        let mut told = String::new();
        for (id, member) in &self.members {
            let said = member.server.as_ref().map(Server::said).unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n  ");
            told.push_str(&format!(
                "\nserver {id}: running {}, paused {}, state {:?}, zxid {:?}\n  {last}",
                member.server.is_some(),
                member.is_paused,
                self.state(*id),
                self.zxid(*id)
            ));
        }
        told
    }
}
