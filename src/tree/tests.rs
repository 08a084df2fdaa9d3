//! The tree against a plain model of it, under many readers, and with every view that there was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use proptest::prelude::*;

use super::change::Unwatched;
use super::*;
use crate::record::code::Code;
use crate::record::data::AclBytes;
use crate::record::txn::{CreateKind, Txn, TxnHeader};

fn header(zxid: i64) -> TxnHeader {
    TxnHeader { client_id: 7, cxid: 0, zxid, time: 1_000 + zxid, kind: 0 }
}

fn create<'a>(path: &'a str, data: &'a [u8]) -> Txn<'a> {
    Txn::Create {
        kind: CreateKind::Node { create2: false, ephemeral: path.ends_with('e') },
        path: path.into(),
        data: Some(data),
        acl: AclBytes::OPEN,
        parent_cversion: -1,
    }
}

fn set<'a>(path: &'a str, data: &'a [u8]) -> Txn<'a> {
    Txn::SetData { path: path.into(), data: Some(data), version: 1 }
}

fn delete(path: &str) -> Txn<'_> {
    Txn::Delete { path: path.into() }
}

fn commit(tree: &mut TreeWriter, zxid: i64, txn: &Txn<'_>) -> Code {
    let code = tree.apply(&header(zxid), txn, &mut Unwatched);
    tree.settle();
    tree.publish(Zxid(zxid));
    code
}

/// What a reader sees, whole.
fn seen(reader: &TreeReader) -> BTreeMap<String, (Vec<u8>, i64, Vec<String>)> {
    let seen: BTreeMap<_, _> = reader
        .walk()
        .map(|znode| {
            let mut children: Vec<String> = znode.children().map(str::to_owned).collect();
            assert_eq!(children.len(), znode.child_count());
            children.sort();
            let data = znode.data().unwrap_or_default().to_vec();
            (znode.path().to_owned(), (data, znode.stat().mzxid, children))
        })
        .collect();
    for path in seen.keys() {
        let below = seen.keys().filter(|other| crate::path::is_below(path, other)).count();
        let counted = reader.get(path).unwrap().descendant_count();
        assert_eq!(counted, below as u64, "below {path:?} at {}", reader.view());
    }
    seen
}

/// The digest, computed afresh.
fn digest_of(tree: &mut TreeWriter) -> u64 {
    let reader = tree.reader();
    reader
        .walk()
        .filter(|znode| digest::counts(znode.path()))
        .map(|znode| {
            let prefix = digest::prefix(znode.path(), znode.data());
            u64::from(digest::znode(prefix, &znode.stat_persisted()))
        })
        .fold(0, u64::wrapping_add)
}

#[test]
fn a_view_shows_its_zxid_and_nothing_later() {
    let mut tree = TreeWriter::new(Settings::default());
    commit(&mut tree, 1, &create("/a", b"1"));
    let mut reader = tree.reader();
    commit(&mut tree, 2, &set("/a", b"2"));
    commit(&mut tree, 3, &create("/a/b", b""));
    commit(&mut tree, 4, &delete("/a/b"));
    commit(&mut tree, 5, &delete("/a"));
    let data = |reader: &TreeReader| reader.get("/a").map(|znode| znode.data().unwrap().to_vec());
    assert_eq!(data(&reader), Some(b"1".to_vec()));
    reader.advance(Zxid(2));
    assert_eq!(data(&reader), Some(b"2".to_vec()));
    assert_eq!(reader.get("/a").unwrap().child_count(), 0);
    reader.advance(Zxid(3));
    assert_eq!(reader.get("/a").unwrap().children().collect::<Vec<_>>(), ["b"]);
    reader.advance(Zxid(5));
    assert_eq!(data(&reader), None);
    tree.reclaim(usize::MAX);
    commit(&mut tree, 6, &create("/a", b"6"));
    reader.advance(Zxid(6));
    assert_eq!(data(&reader), Some(b"6".to_vec()));
    tree.reclaim(usize::MAX);
    assert!(tree.waiting_to_be_freed() <= 4, "what was superseded is freed");
}

/// The next child that a listing shows.
fn next_name(listing: &mut Listing) -> Option<String> {
    loop {
        match listing.look() {
            Look::Child(name) => return Some(name.to_owned()),
            Look::Passed => {}
            Look::End => return None,
        }
    }
}

/// What is gone is linked for as long as somebody's view shows it, and nobody looks through it for
/// nothing.
#[test]
fn children_that_are_gone_are_counted_while_they_are_linked() {
    let mut tree = TreeWriter::new(Settings::default());
    commit(&mut tree, 1, &create("/a", b""));
    commit(&mut tree, 2, &create("/a/first", b""));
    let pinned = tree.reader();
    let gone = fewer(1_000, 50) as i64;
    for number in 0..gone {
        let path = format!("/a/{number:04}");
        commit(&mut tree, 3 + 2 * number, &create(&path, b""));
        commit(&mut tree, 4 + 2 * number, &delete(&path));
        tree.reclaim(usize::MAX);
    }
    commit(&mut tree, 5000, &create("/a/last", b""));
    let linked = |reader: &TreeReader| {
        let linked = reader.get("/a").unwrap().linked_children();
        (linked.count, linked.name_bytes)
    };
    let mut reader = tree.reader();
    let all = (2 + gone as usize, "first".len() + "last".len() + 4 * gone as usize);
    assert_eq!((linked(&reader), linked(&pinned)), (all, all));
    let looks = |reader: &TreeReader| {
        let mut listing = reader.listing("/a").unwrap();
        std::iter::from_fn(|| Some(listing.look() != Look::End).filter(|more| *more)).count()
    };
    assert_eq!((looks(&reader), looks(&pinned)), (all.0, all.0));
    // Behind the last that it shows it does not look, however many there are.
    commit(&mut tree, 5001, &delete("/a/first"));
    reader.advance(Zxid(5001));
    assert_eq!((looks(&reader), linked(&reader)), (1, all));
    commit(&mut tree, 5002, &delete("/a/last"));
    reader.advance(Zxid(5002));
    assert_eq!((looks(&reader), linked(&reader)), (0, (0, 0)));
    commit(&mut tree, 5003, &create("/a/new", b""));
    reader.advance(Zxid(5003));
    drop(pinned);
    tree.reclaim(usize::MAX);
    assert_eq!((looks(&reader), linked(&reader)), (1, (1, "new".len())));
    // The root has a path of its own kind.
    let root = reader.get("").unwrap().linked_children();
    assert_eq!((root.count, root.name_bytes), (2, "a".len() + "zookeeper".len()));
}

#[test]
fn a_listing_shows_its_view_while_the_tree_and_its_reader_go_on() {
    let mut tree = TreeWriter::new(Settings::default());
    commit(&mut tree, 1, &create("/a", b""));
    for number in 0..100 {
        commit(&mut tree, 2 + number, &create(&format!("/a/{number}"), b""));
    }
    let mut reader = tree.reader();
    let mut expected: Vec<String> =
        reader.get("/a").unwrap().children().map(str::to_owned).collect();
    let mut listing = reader.listing("/a").unwrap();
    let mut names = Vec::new();
    for round in 0..100 {
        names.push(next_name(&mut listing).unwrap());
        let zxid = 102 + 2 * round;
        commit(&mut tree, zxid, &delete(&format!("/a/{}", 99 - (round * 7) % 100)));
        commit(&mut tree, zxid + 1, &create(&format!("/a/new-{round}"), b""));
        reader.advance(tree.published());
        tree.reclaim(usize::MAX);
    }
    assert_eq!(listing.look(), Look::End);
    assert_eq!(listing.view(), Zxid(101));
    names.sort();
    expected.sort();
    assert_eq!(names, expected);
    assert!(200 <= tree.waiting_to_be_freed(), "what the listing shows is kept");
    drop(listing);
    for zxid in 302..305 {
        commit(&mut tree, zxid, &set("/a", b""));
        reader.advance(Zxid(zxid));
        tree.reclaim(usize::MAX);
    }
    assert!(tree.waiting_to_be_freed() <= 4, "and goes with it");
    let mut root = reader.listing("/").unwrap();
    let mut names = Vec::new();
    while let Some(name) = next_name(&mut root) {
        names.push(name);
    }
    names.sort();
    assert_eq!(names, ["a", "zookeeper"]);
    assert!(reader.listing("/nope").is_none());
}

#[test]
#[should_panic(expected = "no view shows what may still be undone")]
fn a_view_does_not_run_ahead_of_what_is_published() {
    let mut tree = TreeWriter::new(Settings::default());
    let mut reader = tree.reader();
    tree.apply(&header(1), &create("/a", b"1"), &mut Unwatched);
    reader.advance(Zxid(1));
}

/// A log says what it will: no path of it is more than an answer.
#[test]
fn paths_that_nothing_has_change_nothing() {
    let mut tree = TreeWriter::new(Settings::default());
    for (zxid, path) in (1..).zip(["", "a", "\u{e9}", "a/b", "/nope/b", "/"]) {
        assert_ne!(commit(&mut tree, zxid, &create(path, b"")), Code::Ok, "create {path:?}");
        assert_ne!(commit(&mut tree, zxid, &delete(path)), Code::Ok, "delete {path:?}");
    }
    assert_eq!(tree.znode_count(), 4);
    assert_eq!(seen(&tree.reader()).len(), 4);
}

/// What a damaged order of deletes leaves below goes with it, however deep.
#[test]
fn a_delete_takes_all_that_is_below() {
    let mut tree = TreeWriter::new(Settings::default());
    let depth = fewer(2_000, 20);
    let mut path = String::new();
    for zxid in 1..=depth as i64 {
        path.push_str("/x");
        assert_eq!(commit(&mut tree, zxid, &create(&path, b"")), Code::Ok);
    }
    assert_eq!(commit(&mut tree, depth as i64 + 1, &delete("/x")), Code::Ok);
    assert_eq!((tree.znode_count(), digest_of(&mut tree)), (4, tree.digest()));
    tree.reclaim(usize::MAX);
    assert_eq!(tree.waiting_to_be_freed(), 0);
}

#[test]
fn what_was_undone_was_never_there() {
    let mut tree = TreeWriter::new(Settings::default());
    commit(&mut tree, 1, &create("/a", b"1"));
    commit(&mut tree, 2, &create("/a/e", b"1"));
    let (before, digest) = (seen(&tree.reader()), tree.digest());
    let counts = |tree: &TreeWriter| {
        (tree.znode_count(), tree.ephemeral_count(), tree.data_bytes(), tree.mark())
    };
    let counted = counts(&tree);
    let reader = tree.reader();
    let header = header(3);
    for txn in [set("/a", b"2"), create("/a/f", b"x"), delete("/a/e"), create("/a/e", b"2")] {
        assert_eq!(tree.apply(&header, &txn, &mut Unwatched), Code::Ok);
    }
    tree.undo_to(0);
    assert_eq!((seen(&reader), tree.digest(), counts(&tree)), (before.clone(), digest, counted));
    drop(reader);
    tree.reclaim(usize::MAX);
    assert_eq!(seen(&tree.reader()), before);
}

/// Transactions that are published together share their counts; the views before keep theirs.
#[test]
fn znodes_below_are_counted_by_the_batch() {
    let mut tree = TreeWriter::new(Settings::default());
    commit(&mut tree, 1, &create("/a", b""));
    let mut reader = tree.reader();
    let below = |reader: &TreeReader, path: &str| reader.get(path).unwrap().descendant_count();
    let batch = |tree: &mut TreeWriter, zxids: std::ops::RangeInclusive<i64>| {
        for zxid in zxids.clone() {
            let path = format!("/a/{zxid}");
            assert_eq!(tree.apply(&header(zxid), &create(&path, b""), &mut Unwatched), Code::Ok);
            tree.settle();
        }
        tree.seal(Zxid(*zxids.end()));
    };
    batch(&mut tree, 2..=4);
    // Another, before the first is published; and one that is taken back.
    batch(&mut tree, 5..=9);
    tree.apply(&header(10), &delete("/a/3"), &mut Unwatched);
    tree.apply(&header(10), &create("/a/10", b""), &mut Unwatched);
    tree.apply(&header(10), &create("/a/10/x", b""), &mut Unwatched);
    tree.undo_to(0);
    tree.settle();
    assert_eq!((below(&reader, "/a"), below(&reader, "")), (0, 4));
    tree.publish(Zxid(4));
    let second = tree.reader();
    reader.advance(Zxid(4));
    for reader in [&reader, &second] {
        assert_eq!((below(reader, "/a"), below(reader, "")), (3, 7));
    }
    tree.seal(Zxid(10));
    tree.publish(Zxid(10));
    reader.advance(Zxid(10));
    assert_eq!((below(&reader, "/a"), below(&reader, "")), (8, 12));
    assert_eq!((below(&second, "/a"), below(&second, "")), (3, 7));
    drop(second);
    tree.reclaim(usize::MAX);
    assert_eq!(tree.waiting_to_be_freed(), 0);
    assert_eq!((below(&reader, "/a"), below(&reader, "/a/5")), (8, 0));
    seen(&reader);
}

#[derive(Clone, Debug)]
enum Step {
    Create(usize, u8),
    Set(usize, u8),
    Delete(usize),
    /// Several at once, taken back or not.
    Try(Vec<(usize, u8)>, bool),
    Reader,
    Advance(usize),
    Drop(usize),
    Reclaim(usize),
}

const PATHS: [&str; 9] =
    ["/a", "/a/b", "/a/c", "/a/b/e", "/d", "/d/e", "/d/e2", "/zookeeper/x", "/f"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = 0..PATHS.len();
    let step = prop_oneof![
        4 => (path.clone(), any::<u8>()).prop_map(|(path, byte)| Step::Create(path, byte)),
        3 => (path.clone(), any::<u8>()).prop_map(|(path, byte)| Step::Set(path, byte)),
        3 => path.clone().prop_map(Step::Delete),
        1 => (proptest::collection::vec((path, any::<u8>()), 1..4), any::<bool>())
            .prop_map(|(parts, stays)| Step::Try(parts, stays)),
        1 => Just(Step::Reader),
        2 => any::<usize>().prop_map(Step::Advance),
        1 => any::<usize>().prop_map(Step::Drop),
        2 => (0_usize..20).prop_map(Step::Reclaim),
    ];
    proptest::collection::vec(step, 1..120)
}

/// The model: every state that ever was, by zxid.
type States = BTreeMap<i64, BTreeMap<String, (Vec<u8>, i64, Vec<String>)>>;

/// Less is done where an interpreter looks for undefined behaviour (`MIRIFLAGS=
/// -Zmiri-permissive-provenance cargo +nightly miri test --lib tree::tests`).
const fn fewer(count: usize, interpreted: usize) -> usize {
    if cfg!(miri) { interpreted } else { count }
}

fn cases() -> ProptestConfig {
    // Miri's world has no files to keep failures in.
    let failure_persistence = ProptestConfig::default().failure_persistence;
    ProptestConfig {
        cases: fewer(200, 4) as u32,
        failure_persistence: if cfg!(miri) { None } else { failure_persistence },
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    /// Whatever is written, undone, freed and read: a reader sees the state of its view, and the
    /// running digest is the one computed afresh.
    #[test]
    fn every_view_shows_the_state_that_was(steps in steps()) {
        let mut tree = TreeWriter::new(Settings::default());
        let mut states = States::new();
        states.insert(0, seen(&tree.reader()));
        let mut readers: Vec<TreeReader> = Vec::new();
        let mut zxid = 0;
        for step in steps {
            let txns: Vec<(usize, u8, u8)> = match &step {
                Step::Create(path, byte) => vec![(*path, *byte, 0)],
                Step::Set(path, byte) => vec![(*path, *byte, 1)],
                Step::Delete(path) => vec![(*path, 0, 2)],
                Step::Try(parts, _) => parts.iter().map(|(p, b)| (*p, *b, *b % 3)).collect(),
                _ => Vec::new(),
            };
            if !txns.is_empty() {
                zxid += 1;
                for (path, byte, kind) in txns {
                    let data = [byte];
                    let txn = match kind {
                        0 => create(PATHS[path], &data),
                        1 => set(PATHS[path], &data),
                        _ => delete(PATHS[path]),
                    };
                    // ZooKeeper checks before it makes a transaction; so does this.
                    let has_children = tree.newest(PATHS[path]).is_some_and(|z| z.child_count() > 0);
                    let exists = tree.newest(PATHS[path]).is_some();
                    if (kind == 2 && has_children) || (kind == 0) == exists {
                        continue;
                    }
                    tree.apply(&header(zxid), &txn, &mut Unwatched);
                }
                if let Step::Try(_, false) = step {
                    tree.undo_to(0);
                }
                tree.settle();
                tree.publish(Zxid(zxid));
                states.insert(zxid, seen(&tree.reader()));
                prop_assert_eq!(digest_of(&mut tree), tree.digest());
                prop_assert_eq!(states[&zxid].len(), tree.znode_count());
            }
            match step {
                Step::Reader => readers.push(tree.reader()),
                Step::Advance(which) if !readers.is_empty() => {
                    let count = readers.len();
                    let reader = &mut readers[which % count];
                    let next = reader.view().0 + 1;
                    if next <= zxid {
                        reader.advance(Zxid(next));
                    }
                }
                Step::Drop(which) if !readers.is_empty() => {
                    let count = readers.len();
                    readers.swap_remove(which % count);
                }
                Step::Reclaim(budget) => tree.reclaim(budget),
                _ => {}
            }
            for reader in &readers {
                prop_assert_eq!(&seen(reader), &states[&reader.view().0]);
            }
        }
        drop(tree);
        for reader in &readers {
            prop_assert_eq!(&seen(reader), &states[&reader.view().0]);
        }
    }
}

/// How many pieces `reclaim` looks at for a znode that was set `sets` times below a view that
/// stood still, when that view has gone and another stands at the middle of the chain.
fn looked_at_for(sets: i64) -> usize {
    let mut tree = TreeWriter::new(Settings::default());
    commit(&mut tree, 1, &create("/a", b"1"));
    tree.reclaim(usize::MAX);
    let first = tree.reader();
    for zxid in 2..=sets {
        commit(&mut tree, zxid, &set("/a", b"2"));
    }
    let second = tree.reader();
    for zxid in sets + 1..=2 * sets {
        commit(&mut tree, zxid, &set("/a", b"3"));
    }
    drop(first);
    let before = tree.store.looked_at();
    tree.reclaim(usize::MAX);
    assert_eq!(second.get("/a").unwrap().data(), Some(&b"2"[..]));
    assert_eq!(tree.waiting_to_be_freed(), sets as usize, "what the second view holds back");
    tree.store.looked_at() - before
}

#[test]
fn freeing_looks_at_each_version_once_however_many_are_newer() {
    for sets in [10, fewer(10_000, 100) as i64] {
        let looked_at = looked_at_for(sets);
        assert!(looked_at <= 2 * sets as usize, "{looked_at} for {sets} sets");
    }
}

/// A transaction may give one znode many versions: they go by the budget like any others.
#[test]
fn the_versions_of_one_transaction_are_freed_piece_by_piece() {
    let mut tree = TreeWriter::new(Settings::default());
    commit(&mut tree, 1, &create("/a", b"1"));
    tree.reclaim(usize::MAX);
    tree.take_replaced();
    let sets = fewer(10_000, 100);
    commit(&mut tree, 2, &Txn::Multi(vec![set("/a", b"2"); sets]));
    assert_eq!(tree.take_replaced(), sets + 1, "each version, and the entry that frees them");
    for step in 0.. {
        let before = tree.store.looked_at();
        tree.reclaim(10);
        assert!(tree.store.looked_at() - before <= 10);
        if tree.waiting_to_be_freed() == 0 {
            assert!(sets / 10 <= step, "all was freed within {step} steps");
            break;
        }
    }
}

/// Memory follows the znodes that live, not those that have come and gone.
#[test]
fn the_index_of_a_churning_tree_stays_small() {
    let mut tree = TreeWriter::new(Settings::default());
    let (living, rounds) = (fewer(100, 20), fewer(2_000, 10));
    let mut zxid = 0;
    let mut largest = 0;
    for n in 0..living * rounds {
        zxid += 1;
        commit(&mut tree, zxid, &create(&format!("/n{n}"), b""));
        if living <= n {
            zxid += 1;
            commit(&mut tree, zxid, &delete(&format!("/n{}", n - living)));
        }
        tree.reclaim(usize::MAX);
        largest = largest.max(tree.store.index_slots());
    }
    assert_eq!(tree.znode_count(), 4 + living);
    assert!(largest <= 512, "{largest} slots for {living} znodes");
    // And it shrinks when far fewer are left.
    let many = fewer(5_000, 150);
    for n in 0..many {
        zxid += 1;
        commit(&mut tree, zxid, &create(&format!("/many{n}"), b""));
    }
    let full = tree.store.index_slots();
    for n in 0..many {
        zxid += 1;
        commit(&mut tree, zxid, &delete(&format!("/many{n}")));
        zxid += 1;
        commit(&mut tree, zxid, &create(&format!("/one{n}"), b""));
        zxid += 1;
        commit(&mut tree, zxid, &delete(&format!("/one{n}")));
        tree.reclaim(usize::MAX);
    }
    for n in 0..20 * many {
        zxid += 1;
        commit(&mut tree, zxid, &create(&format!("/two{n}"), b""));
        zxid += 1;
        commit(&mut tree, zxid, &delete(&format!("/two{n}")));
        tree.reclaim(usize::MAX);
    }
    assert!(tree.store.index_slots() <= full / 8, "{} of {full}", tree.store.index_slots());
}

#[test]
fn the_index_grows_and_shrinks_under_readers() {
    let mut tree = TreeWriter::new(Settings::default());
    let mut zxid = 0;
    let znodes = fewer(3_000, 150);
    for round in 0..fewer(3, 2) {
        for n in 0..znodes {
            zxid += 1;
            commit(&mut tree, zxid, &create(&format!("/n{n}"), b"x"));
        }
        let reader = tree.reader();
        for n in 0..znodes {
            zxid += 1;
            commit(&mut tree, zxid, &delete(&format!("/n{n}")));
            tree.reclaim(10);
        }
        assert_eq!(reader.get("/").unwrap().child_count(), znodes + 1, "round {round}");
        let paths: Vec<String> = (0..znodes).map(|n| format!("/n{n}")).collect();
        reader.prefetch(paths.iter().map(String::as_bytes));
        assert!(paths.iter().all(|path| reader.get(path).is_some()));
        drop(reader);
        tree.reclaim(usize::MAX);
        assert_eq!(tree.znode_count(), 4);
    }
}

/// Two readers and a writer on threads of their own. Each transaction sets two znodes to the same
/// number and renews a third: no view may show them apart.
#[test]
fn readers_on_other_cores_see_whole_transactions() {
    let mut tree = TreeWriter::new(Settings::default());
    for (zxid, path) in [(1, "/l"), (2, "/r"), (3, "/x")] {
        commit(&mut tree, zxid, &create(path, b"0"));
    }
    let published = Arc::new(AtomicI64::new(3));
    let done = Arc::new(AtomicBool::new(false));
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let mut reader = tree.reader();
            let (published, done) = (Arc::clone(&published), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut reads = 0_u64;
                while !done.load(Ordering::Acquire) {
                    reader.advance(Zxid(published.load(Ordering::Acquire)));
                    for _ in 0..20 {
                        reader.prefetch(["/l", "/x", "/nowhere"].map(str::as_bytes).into_iter());
                        let left = reader.get("/l").unwrap();
                        let right = reader.get("/r").unwrap();
                        assert_eq!(left.data(), right.data());
                        let renewed = reader.get("/x").unwrap();
                        assert!(renewed.stat().czxid <= reader.view().0);
                        assert_eq!(reader.get("/").unwrap().children().count(), 4);
                        reads += 1;
                    }
                }
                reads
            })
        })
        .collect();
    for zxid in 4..fewer(20_000, 60) as i64 {
        let data = zxid.to_string();
        let parts = vec![
            set("/l", data.as_bytes()),
            delete("/x"),
            set("/r", data.as_bytes()),
            create("/x", data.as_bytes()),
        ];
        commit(&mut tree, zxid, &Txn::Multi(parts));
        published.store(zxid, Ordering::Release);
        tree.reclaim(100);
        if cfg!(miri) {
            std::thread::yield_now();
        }
    }
    done.store(true, Ordering::Release);
    for thread in threads {
        assert!(thread.join().expect("a reader saw a torn transaction") > 0);
    }
}

// ---------------------------------------------------------------------------------------------
// A log over a snapshot that shows some of it already: one test per rule (`DataTree.processTxn`).

/// Stored cversion, pzxid and children: what a create or delete changes of the parent.
fn parent(tree: &TreeWriter, path: &str) -> (i32, i64, usize) {
    let znode = tree.newest(path).unwrap();
    let stat = znode.stat_persisted();
    (stat.cversion, stat.pzxid, znode.child_count())
}

fn create_kinds(path: &str, parent_cversion: i32) -> Vec<Txn<'_>> {
    let node = |create2| CreateKind::Node { create2, ephemeral: false };
    [node(false), node(true), CreateKind::Container, CreateKind::Ttl(5_000)]
        .map(|kind| Txn::Create {
            kind,
            path: path.into(),
            data: Some(b"old"),
            acl: AclBytes::OPEN,
            parent_cversion,
        })
        .into()
}

/// `/a` made at 1, `/a/b` at 2 and given data at 5; `/a` has seen another child come and go.
fn ahead() -> TreeWriter {
    let mut tree = TreeWriter::new(Settings::default());
    for (zxid, txn) in [
        (1, create("/a", b"")),
        (2, create("/a/b", b"")),
        (3, create("/a/c", b"")),
        (4, delete("/a/c")),
        (5, set("/a/b", b"new")),
    ] {
        assert_eq!(commit(&mut tree, zxid, &txn), Code::Ok);
    }
    assert_eq!(parent(&tree, "/a"), (2, 4, 1));
    tree
}

#[test]
fn a_create_of_what_exists_keeps_it_but_for_its_acl() {
    let read = [Acl::new(1, "world", "anyone")];
    let acl = b"\0\0\0\x01\0\0\0\x01\0\0\0\x05world\0\0\0\x06anyone";
    for mut txn in create_kinds("/a/b", 1) {
        if let Txn::Create { acl: given, .. } = &mut txn {
            *given = AclBytes::from_bytes(acl).unwrap();
        }
        let mut tree = ahead();
        let before = tree.newest("/a/b").unwrap().stat_persisted();
        assert_eq!(commit(&mut tree, 6, &txn), Code::NodeExists);
        let znode = tree.newest("/a/b").unwrap();
        assert_eq!((znode.data(), znode.stat_persisted()), (Some(&b"new"[..]), before));
        assert_eq!(**znode.acl().unwrap(), read);
        assert_eq!(parent(&tree, "/a"), (2, 4, 1), "the parent's count does not go back");
    }
}

#[test]
fn a_create_of_what_exists_brings_its_parent_up_to_date() {
    for txn in create_kinds("/a/b", 3) {
        let mut tree = ahead();
        assert_eq!(commit(&mut tree, 6, &txn), Code::NodeExists);
        assert_eq!(parent(&tree, "/a"), (3, 6, 1));
    }
    // A record from before 3.4 does not know the count: one more.
    for txn in create_kinds("/a/b", -1) {
        let mut tree = ahead();
        assert_eq!(commit(&mut tree, 6, &txn), Code::NodeExists);
        assert_eq!(parent(&tree, "/a"), (3, 6, 1));
    }
}

#[test]
fn a_create_of_what_is_not_there_leaves_a_parent_that_is_further() {
    for (parent_cversion, after) in [(1, (2, 4, 2)), (2, (2, 4, 2)), (3, (3, 6, 2))] {
        for txn in create_kinds("/a/d", parent_cversion) {
            let mut tree = ahead();
            assert_eq!(commit(&mut tree, 6, &txn), Code::Ok);
            assert_eq!(parent(&tree, "/a"), after);
        }
    }
}

#[test]
fn without_the_parent_nothing_is_created_or_deleted() {
    let mut tree = ahead();
    let before = (seen(&tree.reader()), tree.digest());
    for txn in create_kinds("/nope/d", 1) {
        assert_eq!(commit(&mut tree, 6, &txn), Code::NoNode);
    }
    assert_eq!(commit(&mut tree, 6, &delete("/nope/d")), Code::NoNode);
    assert_eq!((seen(&tree.reader()), tree.digest()), before);
}

#[test]
fn a_delete_of_what_is_gone_still_is_news_to_the_parent() {
    let mut tree = ahead();
    assert_eq!(commit(&mut tree, 6, &delete("/a/c")), Code::NoNode);
    assert_eq!(parent(&tree, "/a"), (2, 6, 1));
    // Not where the parent has heard of later.
    let mut tree = TreeWriter::new(Settings::default());
    let later = StatPersisted { pzxid: 9, ..StatPersisted::default() };
    tree.load_znode("/a", None, &LoadedAcl::OPEN, later).unwrap();
    assert_eq!(commit(&mut tree, 6, &delete("/a/c")), Code::NoNode);
    assert_eq!(parent(&tree, "/a"), (0, 9, 0));
}

#[test]
fn data_and_acls_are_overwritten_by_what_the_log_says() {
    let acl = || Txn::SetAcl { path: "/a/b".into(), acl: AclBytes::OPEN, version: 7 };
    let mut tree = ahead();
    let version_zero = Txn::SetData { path: "/a/b".into(), data: None, version: 0 };
    assert_eq!(commit(&mut tree, 6, &version_zero), Code::Ok);
    assert_eq!(commit(&mut tree, 7, &acl()), Code::Ok);
    let znode = tree.newest("/a/b").unwrap();
    let stat = znode.stat_persisted();
    assert_eq!((znode.data(), stat.version, stat.mzxid, stat.aversion), (None, 0, 6, 7));
    let before = tree.digest();
    for path in ["/nope", "/a/nope"] {
        let txn = Txn::SetData { path: path.into(), data: None, version: 0 };
        assert_eq!(commit(&mut tree, 8, &txn), Code::NoNode);
        let txn = Txn::SetAcl { path: path.into(), acl: AclBytes::OPEN, version: 0 };
        assert_eq!(commit(&mut tree, 8, &txn), Code::NoNode);
    }
    assert_eq!(tree.digest(), before);
}

#[test]
fn the_end_of_a_session_deletes_what_is_listed_and_what_it_owns() {
    let mut tree = ahead();
    for (zxid, path) in [(6, "/a/e"), (7, "/a/b/e"), (8, "/e")] {
        assert_eq!(commit(&mut tree, zxid, &create(path, b"")), Code::Ok);
    }
    let paths =
        Some(vec!["/a/e".into(), "/a/gone".into(), "/nope/gone".into(), "/zookeeper".into()]);
    assert_eq!(commit(&mut tree, 9, &Txn::CloseSession { paths }), Code::Ok);
    assert_eq!((tree.ephemeral_count(), tree.znode_count()), (0, 6));
    assert_eq!((parent(&tree, "/a"), parent(&tree, "/a/b")), ((3, 9, 1), (1, 9, 0)));
    assert!(tree.newest("/zookeeper").is_some());
}

#[test]
fn a_multi_goes_on_behind_an_error_unless_it_was_logged_as_failed() {
    let parts = || vec![create("/a/b", b""), delete("/nope/x"), create("/d", b""), set("/d", b"1")];
    let mut tree = ahead();
    assert_eq!(commit(&mut tree, 6, &Txn::Multi(parts())), Code::NodeExists);
    let stat = tree.newest("/d").unwrap().stat_persisted();
    assert_eq!((stat.czxid, stat.mzxid, stat.version), (6, 6, 1));
    let mut tree = ahead();
    let before = tree.digest();
    let mut failed = parts();
    failed.push(Txn::Error { err: -101 });
    assert_eq!(commit(&mut tree, 6, &Txn::Multi(failed)), Code::Ok);
    assert_eq!(tree.digest(), before);
}

#[test]
fn errors_checks_and_new_sessions_change_no_znode() {
    let mut tree = ahead();
    let before = (seen(&tree.reader()), tree.digest());
    for txn in [
        Txn::Error { err: -101 },
        Txn::Check { path: "/a".into(), version: 9 },
        Txn::CreateSession { timeout_ms: 1 },
    ] {
        assert_eq!(commit(&mut tree, 6, &txn), Code::Ok);
    }
    assert_eq!((seen(&tree.reader()), tree.digest()), before);
}
