//! Servers of an ensemble tell operators what they are.

use std::fs;
use std::net::SocketAddr;
use std::process::{Command, Output};

use crate::PATIENCE;
use crate::client::{Client, now, word};
use crate::ports;
use crate::server::{Folder, Server, Setup, until};

const NOT_SERVING: &str = "This ZooKeeper instance is not currently serving requests\n";

/// Three voters, and a fourth server that observes.
struct Ensemble {
    lines: Vec<String>,
}

struct Member {
    folder: Folder,
    server: Server,
}

impl Ensemble {
    fn new() -> Ensemble {
        // Held until all are found, so that they differ.
        let held: Vec<_> = (0..8).map(|_| ports::listen()).collect();
        let port = |place: usize| held[place].local_addr().unwrap().port();
        let lines = (1..=4).map(|id| {
            let role = if id == 4 { "observer" } else { "participant" };
            let (quorum, election) = (port(2 * id - 2), port(2 * id - 1));
            format!("server.{id}=127.0.0.1:{quorum}:{election}:{role}")
        });
        Ensemble { lines: lines.collect() }
    }

    fn start(&self, id: i64) -> Member {
        let folder = Folder::new(&format!("member-{id}"));
        fs::create_dir(folder.path().join("data")).unwrap();
        fs::write(folder.path().join("data/myid"), format!("{id}\n")).unwrap();
        let mut settings =
            vec!["tickTime=500", "initLimit=20", "syncLimit=10", "4lw.commands.whitelist=*"];
        settings.extend(self.lines.iter().map(String::as_str));
        let server = Setup::new(&settings).start(&folder);
        Member { folder, server }
    }
}

impl Member {
    fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Empty while it does not listen.
    fn says(&self, asked: &[u8; 4]) -> String {
        word(self.address(), asked).unwrap_or_default()
    }

    fn wait_for(&self, asked: &[u8; 4], part: &str) -> String {
        let mut answer = String::new();
        let complaint = || format!("never said {part:?}: see {}", self.folder.path().display());
        until(PATIENCE, complaint, || {
            answer = self.says(asked);
            answer.contains(part)
        });
        answer
    }

    fn mode(&self) -> String {
        let answer = self.wait_for(b"srvr", "Mode: ");
        let mode = answer.lines().find_map(|line| line.strip_prefix("Mode: "));
        mode.unwrap().to_owned()
    }

    fn status(&self) -> Output {
        let mut names =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let is_config = |path: &std::path::PathBuf| path.extension().is_some_and(|of| of == "cfg");
        let config = names.find(is_config).unwrap();
        let binary = env!("CARGO_BIN_EXE_ringkeeper");
        Command::new(binary).arg("status").arg(config).output().unwrap()
    }

    fn shows_status(&self, last: &str, code: i32) {
        let Output { status, stdout, .. } = self.status();
        let stdout = String::from_utf8(stdout).unwrap();
        assert_eq!((stdout.lines().last(), status.code()), (Some(last), Some(code)));
    }
}

#[test]
fn servers_of_an_ensemble_tell_their_roles() {
    let ensemble = Ensemble::new();
    let first = ensemble.start(1);
    first.wait_for(b"ruok", "imok");
    for asked in [b"srvr", b"stat", b"mntr", b"conf", b"dump"] {
        assert_eq!(first.says(asked), NOT_SERVING);
    }
    assert_eq!(first.says(b"isro"), "null");
    first.shows_status("Error contacting service. It is probably not running.", 1);

    let mut voters = vec![first, ensemble.start(2), ensemble.start(3)];
    let observer = ensemble.start(4);
    let leads = |member: &Member| member.mode() == "leader";
    let place = voters.iter().position(leads).expect("one of them leads");
    let leader_id = place + 1;
    let leader = voters.remove(place);
    for (member, mode) in [
        (&leader, "leader"),
        (&voters[0], "follower"),
        (&voters[1], "follower"),
        (&observer, "observer"),
    ] {
        assert_eq!(member.mode(), mode);
        assert_eq!(member.says(b"isro"), "rw");
        let mntr = member.says(b"mntr");
        assert!(mntr.contains(&format!("zk_server_state\t{mode}\n")), "{mntr}");
        assert!(mntr.contains("zk_quorum_size\t3\n"), "{mntr}");
        member.shows_status(&format!("Mode: {mode}"), 0);
    }

    let mut client = Client::connect(voters[0].address(), now() + PATIENCE).unwrap();
    for number in 0..10 {
        client.create(&format!("/n{number}"), b"x");
        client.answer();
    }
    leader.wait_for(b"mntr", "zk_synced_observers\t1\n");
    leader.wait_for(b"mntr", "zk_4_learner_lag_txns\t0\n");
    // The session and its ten writes.
    leader.wait_for(b"mntr", "zk_proposal_count\t11\n");
    let mntr = leader.wait_for(b"mntr", "zk_cnt_quorum_ack_latency\t11\n");
    for line in [
        "zk_peer_state\tleading - broadcast",
        "zk_learners\t3",
        "zk_synced_followers\t2",
        "zk_synced_non_voting_followers\t0",
        "zk_pending_syncs\t0",
        "zk_commit_count\t11",
        "zk_cnt_election_time\t1",
        "zk_cnt_leader_unavailable_time\t1",
        "zk_4_learner_lag_ms\t0",
    ] {
        assert!(mntr.lines().any(|shown| shown == line), "no {line} in {mntr}");
    }
    let sizes = leader.says(b"srvr");
    assert!(sizes.contains("\nProposal sizes last/min/max: "), "{sizes}");
    assert!(!sizes.contains("-1/-1/-1"), "{sizes}");
    assert_eq!(leader.says(b"srst"), "Server stats reset.\n");
    leader.wait_for(b"srvr", "Proposal sizes last/min/max: -1/-1/-1\n");

    voters[0].wait_for(b"mntr", "zk_learner_commit_received_count\t11\n");
    let mntr = voters[0].wait_for(b"mntr", "zk_cnt_follower_sync_time\t1\n");
    assert!(mntr.contains("zk_peer_state\tfollowing - broadcast\n"), "{mntr}");
    assert!(mntr.contains("zk_learner_proposal_received_count\t11\n"), "{mntr}");
    assert!(!mntr.contains("zk_synced_followers"), "{mntr}");
    let master = format!("zk_observer_master_id\t{leader_id}\n");
    assert!(observer.says(b"mntr").contains(&master));

    let session = format!("{:#x}", client.session.session);
    assert!(leader.says(b"dump").contains("Session Sets (1)/(1):\n"));
    for learner in [&voters[0], &voters[1], &observer] {
        let dump = learner.wait_for(b"dump", "Global Sessions(1):\n");
        assert!(
            dump.contains(&format!("\n{session}\t{}ms\n", client.session.timeout_ms)),
            "{dump}"
        );
    }
    let conf = observer.says(b"conf");
    assert!(conf.contains("serverId=4\ninitLimit=20\nsyncLimit=10\nelectionAlg=3\n"), "{conf}");
    assert!(conf.contains(&format!("peerType=1\nmembership: \n{}\n", ensemble.lines[0])), "{conf}");
    // Its own client port is known to it, and those of others are not.
    let own = format!("{};{}\nversion=0", ensemble.lines[3], observer.address());
    assert!(conf.ends_with(&own), "{conf}");
    assert!(leader.says(b"conf").contains("peerType=0\n"));

    for (member, line) in [
        (&leader, "LEADING - LEADER ELECTION TOOK - "),
        (&leader, "Peer state changed: leading - broadcast"),
        (&voters[0], "FOLLOWING - LEADER ELECTION TOOK - "),
        (&voters[0], "Peer state changed: following - broadcast"),
        (&observer, "Peer state changed: observing - broadcast"),
    ] {
        assert!(member.server.said().contains(line), "{line}");
    }

    // Without them, nobody is served.
    voters.drain(..).for_each(|voter| voter.server.kill());
    leader.wait_for(b"srvr", NOT_SERVING);
    assert_eq!(leader.says(b"isro"), "null");
    leader.shows_status("Error contacting service. It is probably not running.", 1);
}
