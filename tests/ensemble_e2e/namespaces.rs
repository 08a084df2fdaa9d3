//! Servers in network namespaces of their own, on one bridge: what is cut there is lost, and nobody is
//! told. A proxy holds back what it has taken over, and answers calls; a cable that is pulled does not.

#![expect(unsafe_code, reason = "unshare has no safe form that is not deprecated")]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};

use crate::PATIENCE;
use crate::ensemble::{Ensemble, Id, Plan};
use crate::load::Load;
use crate::random::Random;
use crate::server::{not_run, succeeds, until};

/// The bridge's own address is the one above all servers'.
const BRIDGE_ADDRESS: &str = "10.77.0.254/24";

/// A process in a network namespace of its own, which lasts as long as the process.
struct Holder(Child);

impl Holder {
    fn start() -> Option<Holder> {
        // It ends with its input: with this process, whatever becomes of it.
        let mut command = Command::new("unshare");
        let command = command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::null());
        let holder = Holder(command.stderr(Stdio::null()).spawn().ok()?);
        let own = std::fs::read_link("/proc/thread-self/ns/net").ok()?;
        let mut is_apart = || {
            let of_holder = std::fs::read_link(holder.path());
            of_holder.is_ok_and(|of_holder| of_holder != own)
        };
        until(PATIENCE, || "unshare does not come to its namespace".to_owned(), &mut is_apart);
        Some(holder)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    /// What a command needs before it so that it runs in this namespace.
    fn entrance(&self) -> [String; 2] {
        ["nsenter".to_owned(), format!("--net={}", self.path())]
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A namespace for each server, and a cable from each to the bridge, where the clients are.
pub(crate) struct Network {
    holders: Vec<Holder>,
}

fn run(line: &str) -> bool {
    succeeds(&line.split_whitespace().collect::<Vec<_>>())
}

impl Network {
    /// Moves this thread, and all that it starts, into a namespace with a bridge. `None`: it cannot be
    /// done here, and the output says so.
    fn new(servers: usize) -> Option<Network> {
        let made = Network::make(servers);
        if made.is_none() {
            not_run(
                "servers in network namespaces",
                "unshare, ip, bridge or nsenter does not work",
            );
        }
        made
    }

    fn make(servers: usize) -> Option<Network> {
        // SAFETY: the call has no arguments in memory, and changes this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return None;
        }
        let lines = [
            "ip link set lo up",
            "ip link add hub type bridge",
            "ip link set hub up",
            &format!("ip address add {BRIDGE_ADDRESS} dev hub"),
        ];
        if !lines.into_iter().all(run) {
            return None;
        }
        let mut network = Network { holders: Vec::new() };
        for id in 1..=servers {
            let holder = Holder::start()?;
            let (port, pid) = (port(id), holder.0.id());
            let enter = holder.entrance().join(" ");
            let lines = [
                &format!("ip link add {port} type veth peer name eth0 netns {pid}"),
                &format!("ip link set {port} master hub up"),
                &format!("{enter} ip address add {}/24 dev eth0", address(id)),
                &format!("{enter} ip link set lo up"),
                &format!("{enter} ip link set eth0 up"),
            ];
            network.holders.push(holder);
            if !lines.into_iter().all(|line| run(line)) {
                return None;
            }
        }
        Some(network)
    }

    /// What starts a server in its namespace.
    pub(crate) fn entrance(&self, id: Id) -> [String; 2] {
        self.holders[id - 1].entrance()
    }

    /// Pulls a server's cable, or plugs it in: nobody else can reach it.
    fn plug(&self, id: Id, is_in: bool) {
        let state = if is_in { "up" } else { "down" };
        assert!(run(&format!("ip link set {} {state}", port(id))));
    }

    /// Whether these reach each other; all others, and clients, reach them.
    fn isolate(&self, ids: &[Id], is_isolated: bool) {
        let state = if is_isolated { "on" } else { "off" };
        for &id in ids {
            assert!(run(&format!("bridge link set dev {} isolated {state}", port(id))));
        }
    }

    /// Whether a server hears anything. What it sends arrives.
    fn deafen(&self, id: Id, is_deaf: bool) {
        let (port, state) = (port(id), if is_deaf { "off" } else { "on" });
        let learns = format!("learning {state} flood {state} bcast_flood {state}");
        assert!(run(&format!("bridge link set dev {port} {learns} mcast_flood {state}")));
        if is_deaf {
            let enter = self.entrance(id);
            let mut show = Command::new(&enter[0]);
            let show = show.args([&enter[1], "ip", "-brief", "link", "show", "eth0"]).output();
            let show = String::from_utf8(show.expect("ip was there").stdout).unwrap();
            let mac = show.split_whitespace().nth(2).expect("it has an address");
            assert!(run(&format!("bridge fdb del {mac} dev {port} master")));
        }
    }
}

fn address(id: Id) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(id).expect("there are few servers"))
}

/// Where a server listens, in its namespace.
pub(crate) fn place(id: Id, port: u16) -> SocketAddr {
    (address(id), port).into()
}

/// The bridge's end of a server's cable.
fn port(id: Id) -> String {
    format!("server{id}")
}

fn others(ensemble: &Ensemble, without: &[Id]) -> Vec<Id> {
    ensemble.ids().into_iter().filter(|id| !without.contains(id)).collect()
}

fn started(name: &str) -> Option<Ensemble> {
    let network = Network::new(3)?;
    Some(Ensemble::started_in(name, &Plan::of(3), network))
}

#[test]
fn a_server_whose_cable_is_pulled_stops_nobody_for_long() {
    let Some(ensemble) = started("cable") else { return };
    let mut random = Random::of_test("cable");
    let load = Load::start(&ensemble, &mut random, 6);
    for is_leader in [true, false, true] {
        let leader = ensemble.wait_leader();
        let id = if is_leader { leader } else { others(&ensemble, &[leader])[random.below(2)] };
        load.mark();
        ensemble.network().plug(id, false);
        let next = ensemble.wait_leader_among(&others(&ensemble, &[id]));
        assert_eq!(next == leader, !is_leader);
        ensemble.wait_state(id, "LOOKING");
        load.wait_writes(100);
        println!("cable: server {id}, leader: {is_leader}: {:?} without a write", load.gap());
        ensemble.network().plug(id, true);
        ensemble.wait_all();
    }
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

#[test]
fn a_leader_and_a_follower_that_lose_each_other_do_not_both_lead() {
    let Some(ensemble) = started("pair") else { return };
    let mut random = Random::of_test("pair");
    let load = Load::start(&ensemble, &mut random, 6);
    let leader = ensemble.wait_leader();
    let follower = others(&ensemble, &[leader])[random.below(2)];
    let pair = [leader, follower];
    load.mark();
    ensemble.network().isolate(&pair, true);
    // The third one reaches both. Either the leader stays and the follower is out, or the follower is
    // elected by the third and the leader is out; it may take turns, and writes go on.
    ensemble.wait_state(follower, "LOOKING");
    load.wait_writes(300);
    println!("pair: {pair:?}: {:?} without a write", load.gap());
    ensemble.network().isolate(&pair, false);
    ensemble.wait_all();
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}

#[test]
fn a_leader_that_hears_nothing_gives_up() {
    let Some(ensemble) = started("deaf") else { return };
    let mut random = Random::of_test("deaf");
    let load = Load::start(&ensemble, &mut random, 6);
    let leader = ensemble.wait_leader();
    let among = others(&ensemble, &[leader]);
    load.mark();
    ensemble.network().deafen(leader, true);
    let next = ensemble.wait_leader_among(&among);
    ensemble.wait_state(leader, "LOOKING");
    load.wait_writes(100);
    println!("deaf: leader {leader}: {:?} without a write; {next} leads", load.gap());
    ensemble.network().deafen(leader, false);
    ensemble.wait_all();
    let written = load.finish();
    written.check(&ensemble);
    assert_eq!(written.lost_sessions(), 0);
}
