//! What a leader has had cut from the log (TRUNC) is taken back, in memory if it can be.
//!
//! The disk was cut first, and that is durable. What is published is not taken back: if the log ends
//! before, the state is loaded from the disk anew (`Output::reload`), which takes time by the size of
//! the tree. That is rare: a start leaves the last transactions unpublished, and later nothing is
//! published before it is committed, but for what a leader sends in a snapshot before it serves.
//!
//! | of the pipeline | when transactions are taken back |
//! |---|---|
//! | `tree` | goes back version by version (`tree/roll_back.rs`) |
//! | `tracker` | has the sessions of what is left; ids that were given out are not given out again |
//! | `gathered` | forgets their changes, answers and sessions |
//! | `audit` | forgets their lines |
//! | `roll` | the log goes on in a file of its own, as after every cut; its sizes go on |
//! | `zab` | `proposed` is where the log ends; `Peer` is told by `on_stored`. `certainty` stays: it may ask for more than is needed, never for less |
//! | `sessions` | is as of what has gone out to shards, which is not taken back |
//! | `forward`, `syncs`, `heard`, `listings` | are empty: whoever waited has lost this server when it lost its role |
//! | `reaper` | looks again at what it has found before it deletes it |
//! | `has_paths_beyond_ascii` | stays set: a digest that differs proves less than it could |
//! | `counts`, `stats` | count what has happened |
//! | `settings`, `scratch` | have nothing of it |

use super::Pipeline;
use super::member::Agreement;
use crate::types::{Now, Zxid};

impl Pipeline {
    /// Whether the log can end at `zxid` without a look at the disk.
    pub(super) fn can_roll_back_to(&self, zxid: Zxid) -> bool {
        self.tree.published() <= zxid && zxid <= self.zab.proposed()
    }

    /// Takes back all after `zxid`. Says how many transactions that was.
    pub(super) fn roll_back_to(&mut self, now: Now, zxid: Zxid) -> u64 {
        assert!(!self.zab.serves(), "nobody waits for what is taken back");
        assert!(self.listings.is_empty(), "nobody waits for what is taken back");
        self.seal_open();
        self.tree.roll_back_to(zxid);
        let count = self.gathered.forget_after(zxid, self.tree.digest());
        self.restore_sessions(now, zxid);
        if let Some(audit) = &mut self.audit {
            audit.forget_after(zxid);
        }
        self.roll.begin_file();
        if let Agreement::Member(member) = &mut self.zab {
            member.rolled_back_to(zxid);
        }
        count
    }

    /// Who lives is told by the log as it is.
    fn restore_sessions(&mut self, now: Now, zxid: Zxid) {
        #[cfg(feature = "mutants")]
        if self.settings.mutant == Some(super::Mutant::RollBackForgetsSessions) {
            return;
        }
        let sessions = self.sessions_at(zxid);
        self.tracker.replace(now, sessions);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{Bench, HERE, ZAB, settings, start};
    use super::super::{LocalSessions, MemberStart, Pipeline, Restore, Restored};
    use crate::ensemble::Ensemble;
    use crate::record::code::Code;
    use crate::record::op::CreateMode;
    use crate::types::{Epoch, ServerId, SessionId, Zxid};
    use crate::zab::history::{Cache, History};
    use crate::zab::voters::Voters;
    use crate::zab::{election, peer};

    const CACHE: Cache = Cache { count_max: 5, bytes_max: 1 << 20 };

    /// One of three, which has found this on its disk.
    fn member(restored: Restored) -> Pipeline {
        let lines = [("server.1", "h:1:2"), ("server.2", "h:1:2"), ("server.3", "h:1:2")];
        let ensemble = Arc::new(Ensemble::parse(lines, false).unwrap());
        let peer = peer::Start {
            me: ServerId(1),
            settings: ZAB,
            election: election::Settings::default(),
            voters: Arc::new(Voters::new(ensemble, None)),
            is_observer: false,
            accepted: Epoch(0),
            current: Epoch(0),
            history: History::new(CACHE, restored.last),
            is_vouched_for: true,
        };
        let member = MemberStart {
            peer,
            cache: CACHE,
            leader_serves: true,
            reads_alone: false,
            local_sessions: LocalSessions::Off,
            config: "version=0".into(),
            config_version: 0,
        };
        Pipeline::member(start(), settings(), restored, member)
    }

    /// A history of twelve transactions, with the ends and beginnings of sessions among the last.
    fn history() -> Bench {
        let mut bench = Bench::new(settings());
        let sessions = [bench.open(HERE), bench.open(HERE)];
        let create = |bench: &mut Bench, session, path: &str, mode| {
            assert_eq!(bench.create(session, path, b"data", mode), Code::Ok);
        };
        create(&mut bench, sessions[0], "/a", CreateMode::Persistent);
        create(&mut bench, sessions[0], "/e", CreateMode::Ephemeral);
        create(&mut bench, sessions[1], "/a/e", CreateMode::Ephemeral);
        create(&mut bench, sessions[1], "/a/b", CreateMode::Persistent);
        create(&mut bench, sessions[1], "/a/b/c", CreateMode::Container);
        bench.close(sessions[0]);
        let third = bench.open(HERE);
        create(&mut bench, third, "/e", CreateMode::Ephemeral);
        bench.close(sessions[1]);
        assert_eq!(bench.create(third, "/a", b"", CreateMode::Persistent), Code::NodeExists);
        bench
    }

    fn sessions(pipeline: &Pipeline) -> Vec<(SessionId, i32)> {
        let mut all: Vec<_> = pipeline.sessions().map(|of| (of.session, of.timeout_ms)).collect();
        all.sort();
        all
    }

    #[test]
    fn each_of_the_last_transactions_can_be_taken_back_after_a_start() {
        let bench = history();
        let empty = || Restore::empty(settings().tree);
        let until = |restore, zxid| bench.replayed_until(restore, Zxid(zxid));
        for to in 7..=12 {
            let mut pipeline = member(until(empty().unpublished(CACHE), 12));
            assert_eq!(pipeline.tree().published(), Zxid(7));
            assert!(pipeline.can_roll_back_to(Zxid(to)) && !pipeline.can_roll_back_to(Zxid(6)));
            assert_eq!(pipeline.roll_back_to(start(), Zxid(to)), 12 - to as u64);
            let mut expected = member(until(empty(), to));
            assert_eq!(pipeline.tree().digest(), expected.tree().digest(), "{to}");
            assert_eq!(pipeline.tree().data_bytes(), expected.tree().data_bytes(), "{to}");
            assert_eq!(sessions(&pipeline), sessions(&expected), "{to}");
            assert_eq!(pipeline.report().zxid, Zxid(7));

            // What is published has its own sessions and digest, whatever comes after it.
            let (job, mut shown) = (pipeline.snapshot_job(), member(until(empty(), 7)));
            let expected_job = shown.snapshot_job();
            assert_eq!(job.zxid, Zxid(7));
            assert_eq!(job.digest, expected_job.digest);
            assert_eq!(job.sessions, expected_job.sessions);

            // What is left is published once it is committed.
            let mut out = super::super::Output::default();
            pipeline.release(Zxid(to), &mut out);
            assert_eq!(pipeline.tree().published(), Zxid(to));
            assert_eq!(out.applied.len() as i64, to - 7);
            let (job, expected_job) = (pipeline.snapshot_job(), expected.snapshot_job());
            assert_eq!((job.zxid, job.digest), (Zxid(to), expected_job.digest));
            assert_eq!(job.sessions, expected_job.sessions);
            assert_eq!(pipeline.broken_invariant(), None);
        }
    }

    /// What a server by itself has logged is committed.
    #[test]
    fn a_server_alone_publishes_all_that_it_finds() {
        let bench = history();
        let restore = Restore::empty(settings().tree).unpublished(CACHE);
        let restored = bench.replayed_until(restore, Zxid(12));
        let mut pipeline = Pipeline::new(start(), settings(), restored);
        assert_eq!(pipeline.tree().published(), Zxid(12));
        assert_eq!(pipeline.snapshot_job().digest, Some(pipeline.tree().digest()));
    }

    /// A start keeps no more data in memory for it than is allowed.
    #[test]
    fn what_is_not_published_is_bounded_in_bytes() {
        let bench = history();
        let cache = Cache { count_max: 100, bytes_max: 4 };
        let restored =
            bench.replayed_until(Restore::empty(settings().tree).unpublished(cache), Zxid(12));
        // The last create but the one that failed.
        assert_eq!(restored.tree.published(), Zxid(7));
    }
}
