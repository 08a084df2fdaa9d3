//! Roll backs against a model: after each, the tree is the one that is made of what is left of the
//! history alone, and every reader still sees what it saw.
//!
//! `SEEDS=5000` runs as many seeds, `SEED=17` one.

use std::collections::BTreeMap;

use super::change::Unwatched;
use super::*;
use crate::jute::Write as _;
use crate::jute::record::Record as _;
use crate::record::data::AclBytes;
use crate::record::txn::{CreateKind, Txn, TxnHeader};

const SEEDS_DEFAULT: u64 = if cfg!(miri) { 3 } else { 600 };
const STEPS: usize = 120;

/// Parents come before their children. The last ones make a quota on `/a`.
const PATHS: [&str; 15] = [
    "/a",
    "/a/b",
    "/a/b/c",
    "/a/b/c/d",
    "/a/e",
    "/f",
    "/f/g",
    "/f/h",
    "/i",
    "/i/j",
    "/k",
    "/zookeeper/x",
    "/zookeeper/quota/a",
    "/zookeeper/quota/a/zookeeper_limits",
    "/zookeeper/quota/a/zookeeper_stats",
];
const SESSIONS: [i64; 2] = [7, 8];
const SETTINGS: Settings =
    Settings { types: Types { extended: true, emulate_353: false }, digest: true };

/// The same seed, the same numbers. SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn index(&mut self, count: usize) -> usize {
        self.below(count as u64) as usize
    }

    fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }
}

/// An operation of a transaction, by itself.
#[derive(Clone, Debug)]
enum Op {
    Create { path: usize, kind: u64, data: Vec<u8>, acl: Vec<u8> },
    Set { path: usize, data: Vec<u8> },
    SetAcl { path: usize, acl: Vec<u8> },
    Delete { path: usize },
    Close,
}

impl Op {
    fn txn<'o>(&'o self, tree: &TreeWriter) -> Txn<'o> {
        let stat = |path: usize| tree.newest(PATHS[path]).map(|znode| znode.stat_persisted());
        match self {
            Op::Create { path, kind, data, acl } => Txn::Create {
                kind: match kind {
                    0..=3 => CreateKind::Node { create2: false, ephemeral: false },
                    4 | 5 => CreateKind::Node { create2: false, ephemeral: true },
                    6 => CreateKind::Container,
                    _ => CreateKind::Ttl(1_000),
                },
                path: PATHS[*path].into(),
                data: Some(data),
                acl: AclBytes::from_bytes(acl).unwrap(),
                parent_cversion: -1,
            },
            Op::Set { path, data } => Txn::SetData {
                path: PATHS[*path].into(),
                data: Some(data),
                version: stat(*path).map_or(0, |stat| stat.version + 1),
            },
            Op::SetAcl { path, acl } => Txn::SetAcl {
                path: PATHS[*path].into(),
                acl: AclBytes::from_bytes(acl).unwrap(),
                version: stat(*path).map_or(0, |stat| stat.aversion + 1),
            },
            Op::Delete { path } => Txn::Delete { path: PATHS[*path].into() },
            Op::Close => Txn::CloseSession { paths: None },
        }
    }

    /// Whether a server would have made it of this tree.
    fn is_regular(&self, tree: &TreeWriter) -> bool {
        match self {
            Op::Create { path, .. } => {
                let path = PATHS[*path];
                let parent = tree.newest(&path[..path.rfind('/').unwrap()]);
                let parent = parent.filter(|parent| !matches!(parent.owner(), Owner::Session(_)));
                parent.is_some() && tree.newest(path).is_none()
            }
            Op::Set { path, .. } | Op::SetAcl { path, .. } => tree.newest(PATHS[*path]).is_some(),
            Op::Delete { path } => tree.newest(PATHS[*path]).is_some_and(|z| z.child_count() == 0),
            Op::Close => true,
        }
    }

    fn random(random: &mut Random) -> Op {
        let path = random.index(PATHS.len());
        let data = match PATHS[path] {
            path if path.ends_with("limits") => b"count=5,bytes=50".to_vec(),
            _ => vec![b'x'; random.index(4)],
        };
        let acl = |random: &mut Random| {
            let mut bytes = Vec::new();
            bytes.put_count(Some(1));
            let permissions = [perms::ALL, perms::ALL, perms::READ, perms::WRITE];
            Acl::new(permissions[random.index(4)], "world", "anyone").write(&mut bytes);
            bytes
        };
        match random.below(16) {
            0..=6 => Op::Create { path, kind: random.below(8), data, acl: acl(random) },
            7..=9 => Op::Set { path, data },
            10 => Op::SetAcl { path, acl: acl(random) },
            11..=14 => Op::Delete { path },
            _ => Op::Close,
        }
    }
}

/// A transaction of the history.
#[derive(Clone, Debug)]
struct Logged {
    zxid: i64,
    session: i64,
    ops: Vec<Op>,
}

impl Logged {
    fn header(&self) -> TxnHeader {
        let Logged { zxid, session, .. } = *self;
        TxnHeader { client_id: session, cxid: 0, zxid, time: 1_000 + zxid, kind: 0 }
    }

    /// Says what of it fits the tree: the rest is left out.
    fn apply(&self, tree: &mut TreeWriter, irregular: bool) -> Vec<Op> {
        let header = self.header();
        let mut done = Vec::new();
        for op in &self.ops {
            if irregular || op.is_regular(tree) {
                let txn = op.txn(tree);
                tree.apply(&header, &txn, &mut Unwatched);
                done.push(op.clone());
            }
        }
        done
    }
}

/// A znode's path, stats, data and ACL.
type Known = (String, StatPersisted, Stat, Option<Vec<u8>>, Option<Vec<Acl>>);

/// All that the writer says of its newest state.
#[derive(Debug, PartialEq)]
struct State {
    digest: u64,
    counts: (usize, usize, i64),
    znodes: Vec<Known>,
    owned: Vec<(i64, Vec<String>)>,
    reapable: Vec<String>,
    quotas: Vec<Option<String>>,
}

impl State {
    fn of(tree: &TreeWriter) -> State {
        let znode = |path: &str| {
            let znode = tree.newest(path)?;
            let acl = znode.acl().map(|list| list.to_vec());
            let data = znode.data().map(<[u8]>::to_vec);
            Some((path.to_owned(), znode.stat_persisted(), znode.stat(), data, acl))
        };
        let texts = |paths: &mut dyn Iterator<Item = &str>| paths.map(str::to_owned).collect();
        let owned = tree
            .owning_sessions()
            .map(|session| (session.0, texts(&mut tree.ephemerals_of(session))));
        State {
            digest: tree.digest(),
            counts: (tree.znode_count(), tree.ephemeral_count(), tree.data_bytes()),
            znodes: ["", "/zookeeper", QUOTA_PATH]
                .iter()
                .chain(&PATHS)
                .flat_map(|p| znode(p))
                .collect(),
            owned: owned.collect(),
            reapable: texts(&mut tree.reapable().map(|znode| znode.path())),
            quotas: PATHS.iter().map(|path| tree.quota_of(path).map(str::to_owned)).collect(),
        }
    }
}

/// What a reader sees, whole: data, stat, children, and how many live below.
type Seen = BTreeMap<String, (Option<Vec<u8>>, Stat, Vec<String>, u64)>;

fn seen(reader: &TreeReader) -> Seen {
    let seen = reader.walk().map(|znode| {
        let mut children: Vec<String> = znode.children().map(str::to_owned).collect();
        children.sort();
        let data = znode.data().map(<[u8]>::to_vec);
        (znode.path().to_owned(), (data, znode.stat(), children, znode.descendant_count()))
    });
    let seen: Seen = seen.collect();
    for (path, (.., below)) in &seen {
        let found = seen.keys().filter(|other| crate::path::is_below(path, other)).count();
        assert_eq!(*below, found as u64, "below {path:?}");
    }
    seen
}

/// One that shards begin to read.
fn new_tree() -> TreeWriter {
    let mut tree = TreeWriter::new(SETTINGS);
    tree.seal(Zxid::ZERO);
    tree
}

/// The tree of a history, without anything that was taken back.
fn made_of(history: &[Logged]) -> TreeWriter {
    let mut tree = new_tree();
    for logged in history {
        logged.apply(&mut tree, true);
        tree.settle();
        tree.seal(Zxid(logged.zxid));
        tree.publish(Zxid(logged.zxid));
        tree.reclaim(usize::MAX);
    }
    tree
}

struct Run {
    random: Random,
    tree: TreeWriter,
    history: Vec<Logged>,
    zxid: i64,
    /// Up to here all was applied together.
    sealed: Vec<i64>,
    readers: Vec<(TreeReader, Seen)>,
    roll_backs: usize,
    taken_back: usize,
}

impl Run {
    fn new(seed: u64) -> Run {
        Run {
            random: Random(seed),
            tree: new_tree(),
            history: Vec::new(),
            zxid: 0,
            sealed: Vec::new(),
            readers: Vec::new(),
            roll_backs: 0,
            taken_back: 0,
        }
    }

    fn go_through(&mut self) {
        for _ in 0..STEPS {
            match self.random.below(16) {
                0..=7 => self.write(),
                8 => self.fail(),
                9 | 10 => self.publish(),
                11 => self.read(),
                12 => {
                    let budget = self.random.index(40);
                    self.tree.reclaim(budget);
                }
                13 if !self.readers.is_empty() => {
                    let reader = self.random.index(self.readers.len());
                    self.readers.swap_remove(reader);
                }
                _ => self.roll_back(),
            }
            for (reader, saw) in &self.readers {
                assert_eq!(&seen(reader), saw, "a view has changed");
            }
        }
        self.end();
    }

    /// One to three transactions that are published together.
    fn write(&mut self) {
        for _ in 0..=self.random.index(3) {
            self.zxid += 1;
            let count = if self.random.one_in(3) { 1 + self.random.index(5) } else { 1 };
            let ops = (0..count).map(|_| Op::random(&mut self.random)).collect();
            let session = SESSIONS[self.random.index(SESSIONS.len())];
            let mut logged = Logged { zxid: self.zxid, session, ops };
            // What no server makes of a tree, a learner applies all the same.
            let irregular = self.random.one_in(10);
            logged.ops = logged.apply(&mut self.tree, irregular);
            self.tree.settle();
            self.history.push(logged);
        }
        self.seal();
    }

    /// A transaction that is undone.
    fn fail(&mut self) {
        let ops = (0..3).map(|_| Op::random(&mut self.random)).collect();
        let logged = Logged { zxid: self.zxid + 1, session: SESSIONS[0], ops };
        logged.apply(&mut self.tree, false);
        self.tree.undo_to(0);
        self.tree.settle();
    }

    fn seal(&mut self) {
        self.tree.seal(Zxid(self.zxid));
        self.sealed.push(self.zxid);
    }

    fn publish(&mut self) {
        let published = self.tree.published().0;
        let ahead: Vec<i64> = self.sealed.iter().copied().filter(|z| published < *z).collect();
        if !ahead.is_empty() {
            let zxid = Zxid(ahead[self.random.index(ahead.len())]);
            self.tree.publish(zxid);
            for (reader, saw) in &mut self.readers {
                if self.random.one_in(2) {
                    reader.advance(zxid);
                    *saw = seen(reader);
                }
            }
        }
    }

    fn read(&mut self) {
        let reader = self.tree.reader();
        let saw = seen(&reader);
        self.readers.push((reader, saw));
    }

    fn roll_back(&mut self) {
        let published = self.tree.published().0;
        let ahead = self.history.iter().filter(|logged| published < logged.zxid).count();
        let kept = self.history.len() - self.random.index(ahead + 1);
        self.taken_back += self.history.len() - kept;
        self.history.truncate(kept);
        let to = self.history.last().map_or(published, |last| last.zxid.max(published));
        self.tree.roll_back_to(Zxid(to));
        self.roll_backs += 1;
        self.sealed.retain(|zxid| *zxid <= to);
        // A new epoch, or the same numbers anew.
        self.zxid = if self.random.one_in(3) { to } else { ((self.zxid >> 32) + 1) << 32 };
        if self.zxid == to && self.sealed.last().is_none_or(|last| *last < to) {
            self.seal();
        }
        let model = made_of(&self.history);
        assert_eq!(State::of(&self.tree), State::of(&model), "rolled back to {to:#x}");
    }

    /// All is published, nobody reads: the tree is that of the history, and nothing of what was
    /// taken back is left.
    fn end(&mut self) {
        self.zxid += 1;
        self.seal();
        self.tree.publish(Zxid(self.zxid));
        let reader = self.tree.reader();
        assert_eq!(seen(&reader), seen(&made_of(&self.history).reader()));
        self.readers.clear();
        drop(reader);
        self.tree.reclaim(usize::MAX);
        assert_eq!(self.tree.waiting_to_be_freed(), 0);
        assert_eq!(self.tree.store.linked(), self.tree.znode_count() - 1, "what is gone is linked");
    }
}

#[test]
fn what_was_taken_back_was_never_there() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().expect(name));
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS_DEFAULT),
    };
    let (mut roll_backs, mut taken_back) = (0, 0);
    for seed in seeds {
        let mut run = Run::new(seed);
        let going = std::panic::AssertUnwindSafe(|| run.go_through());
        assert!(std::panic::catch_unwind(going).is_ok(), "SEED={seed} failed");
        roll_backs += run.roll_backs;
        taken_back += run.taken_back;
    }
    // With `--nocapture`.
    eprintln!("{roll_backs} roll backs, {taken_back} transactions taken back");
    assert!(0 < taken_back, "there was something to take back");
}

/// The trap: both are gone for every view, and both were made again, unseen. What freed their first
/// lives could unlink neither.
#[test]
fn a_znode_that_was_made_again_in_vain_goes_before_its_parent() {
    let mut run = Run::new(1);
    let logged = |run: &mut Run, op: Op| {
        run.zxid += 1;
        let logged = Logged { zxid: run.zxid, session: 7, ops: vec![op] };
        assert_eq!(logged.apply(&mut run.tree, false).len(), 1);
        run.tree.settle();
        run.history.push(logged);
        run.seal();
    };
    let create = |path| {
        let acl = AclBytes::OPEN.as_bytes().to_vec();
        Op::Create { path, kind: 0, data: Vec::new(), acl }
    };
    logged(&mut run, create(0));
    logged(&mut run, create(1));
    logged(&mut run, Op::Delete { path: 1 });
    logged(&mut run, Op::Delete { path: 0 });
    run.tree.publish(Zxid(3));
    logged(&mut run, create(0));
    logged(&mut run, create(1));
    // The child's tombstone is looked at, the parent's is not yet.
    run.tree.reclaim(usize::MAX);
    run.tree.roll_back_to(Zxid(4));
    run.history.truncate(4);
    run.zxid = 4;
    run.end();
}

#[test]
#[should_panic(expected = "what was published is not taken back")]
fn what_is_published_stays() {
    let mut run = Run::new(1);
    run.zxid = 5;
    run.seal();
    run.tree.publish(Zxid(5));
    run.tree.roll_back_to(Zxid(4));
}

#[cfg(feature = "mutants")]
#[test]
fn every_mutant_is_caught() {
    for mutant in [Mutant::DigestKept, Mutant::OwnerForgotten, Mutant::TombstoneLeft] {
        let is_caught = |seed: u64| {
            let mut run = Run::new(seed);
            run.tree.set_mutant(Some(mutant));
            let going = std::panic::AssertUnwindSafe(move || run.go_through());
            std::panic::catch_unwind(going).is_err()
        };
        let caught = (0..200).find(|seed| is_caught(*seed));
        eprintln!("{mutant:?}: caught by seed {caught:?}");
        assert!(caught.is_some(), "{mutant:?}");
    }
}
