//! Disks that go bad while nobody serves them. Each is served whole, or refused and not changed.
//!
//! Everything on them was acknowledged. The watermark may lag, as a power cut leaves it.

use std::collections::BTreeMap;

use ringkeeper::record::data::{AclBytes, StatPersisted};
use ringkeeper::record::txn::{CreateKind, Txn, TxnHeader};
use ringkeeper::storage::replay::APART_BYTES;
use ringkeeper::storage::snapshot::{OPEN_ACL_ID, SnapshotWriter, Trailer};
use ringkeeper::storage::watermark::{WATERMARK_FILE_BYTES, Watermark};
use ringkeeper::storage::{Compression, log_name, snapshot_name, txnlog};
use ringkeeper::tree;
use ringkeeper::types::Zxid;

use crate::check::Marks;
use crate::disk::Disk;
use crate::log::{DIRECTORY, DiskMutant, WATERMARK};
use crate::recovery::{Failure, path_of, recover};
use crate::rng::Rng;

const SEEDS: u64 = 100;

/// What goes bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// A record behind the watermark, with whole ones so far behind it that it cannot be torn.
    RecordBehindTheWatermark,
    RecordBelowTheWatermark,
    NewestLogGone,
    NewestLogEmptied,
    NewestSnapshot,
    /// An older snapshot under the name of a newer one.
    SnapshotMisnamed,
}

const DAMAGES: [Damage; 6] = [
    Damage::RecordBehindTheWatermark,
    Damage::RecordBelowTheWatermark,
    Damage::NewestLogGone,
    Damage::NewestLogEmptied,
    Damage::NewestSnapshot,
    Damage::SnapshotMisnamed,
];

struct Log {
    start: i64,
    bytes: Vec<u8>,
    /// Where each record begins, and the last one ends.
    starts: Vec<usize>,
}

/// One znode, whose data is the zxid of the last transaction.
fn append(log: &mut Log, zxid: i64, data_bytes: usize) {
    let mut data = vec![0xab; data_bytes];
    data[..8].copy_from_slice(&zxid.to_be_bytes());
    let (path, data) = ("/a".into(), Some(&data[..]));
    let kind = CreateKind::Node { create2: false, ephemeral: false };
    let txn = match zxid {
        1 => Txn::Create { kind, path, data, acl: AclBytes::OPEN, parent_cversion: 1 },
        _ => Txn::SetData { path, data, version: zxid as i32 - 1 },
    };
    let header = TxnHeader { client_id: 1, cxid: 1, zxid, time: 1, kind: txn.kind() };
    txnlog::append_txn(&mut log.bytes, &header, &txn, None);
    log.starts.push(log.bytes.len());
}

fn log(start: i64, count: i64, data_bytes: usize) -> Log {
    let mut bytes = Vec::new();
    txnlog::append_header(&mut bytes);
    let mut log = Log { start, starts: vec![bytes.len()], bytes };
    (start..start + count).for_each(|zxid| append(&mut log, zxid, data_bytes));
    log
}

fn snapshot(zxid: i64, trailer: Trailer) -> Vec<u8> {
    let mut writer = SnapshotWriter::new(Vec::new());
    writer.sessions([].into_iter()).unwrap();
    writer.acls([].into_iter()).unwrap();
    writer.node("", Some(b""), OPEN_ACL_ID, &StatPersisted::default()).unwrap();
    if 0 < zxid {
        let stat = StatPersisted { czxid: 1, mzxid: zxid, ..StatPersisted::default() };
        writer.node("/a", Some(&zxid.to_be_bytes()), OPEN_ACL_ID, &stat).unwrap();
    }
    writer.finish(trailer).unwrap()
}

fn put(disk: &mut Disk, name: &str, bytes: &[u8]) {
    let file = disk.create(name).unwrap();
    disk.write(file, 0, bytes).unwrap();
    disk.sync(file).unwrap();
    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
    disk.sync_directory(directory).unwrap();
}

fn content(disk: &Disk) -> BTreeMap<String, Vec<u8>> {
    let mut content = BTreeMap::new();
    for directory in [DIRECTORY, "ringkeeper.torn"] {
        for (name, _) in disk.list(directory) {
            let path = format!("{directory}/{name}");
            content.insert(path.clone(), disk.read_name(&path).unwrap().to_vec());
        }
    }
    content
}

/// Makes a disk, damages it and has it recovered.
pub(crate) fn run(seed: u64, mutant: Option<DiskMutant>) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let damage = *rng.pick(&DAMAGES);
    let mut disk = Disk::default();
    let (mut logs, mut next) = (Vec::new(), 1);
    for _ in 0..rng.below(3) {
        let count = rng.between(1, 40);
        logs.push(log(next, count, 100));
        next += count;
    }
    // Long enough for records that are far apart.
    let newest = log(next, rng.between(700, 1_000), 3_000);
    let last = next + newest.starts.len() as i64 - 2;
    logs.push(newest);
    for log in &logs {
        let padded = [&log.bytes[..], &vec![0; rng.index(20_000)]].concat();
        put(&mut disk, &path_of(&log_name(Zxid(log.start))), &padded);
    }
    let newest = logs.last().unwrap();
    let synced = rng.mostly_small(0, newest.starts.len() as i64 - 1) as usize;
    // A watermark that has not moved is also that of a server that never syncs.
    let synced = if damage == Damage::RecordBehindTheWatermark { synced.max(1) } else { synced };
    let watermark = Watermark {
        offset: newest.starts[synced] as u64,
        ..Watermark::new(Zxid(newest.start), Zxid(newest.start + synced as i64 - 1))
    };
    let mut file = vec![0; WATERMARK_FILE_BYTES];
    let slot = watermark.encode(1);
    file[..slot.len()].copy_from_slice(&slot);
    put(&mut disk, WATERMARK, &file);
    // Snapshots of what came before the newest log, which say what they hold or do not.
    let says = rng.coin();
    let trailer = |zxid| Trailer { digest: None, last_processed: says.then_some(Zxid(zxid)) };
    let mut snapshots = vec![0];
    if 1 < newest.start && rng.coin() {
        snapshots.push(rng.between(1, newest.start - 1));
    }
    for &zxid in &snapshots {
        let name = path_of(&snapshot_name(Zxid(zxid), Compression::None));
        put(&mut disk, &name, &snapshot(zxid, trailer(zxid)));
    }
    let newest_name = path_of(&log_name(Zxid(newest.start)));
    let flip = |disk: &mut Disk, name: &str, at: usize| {
        let mut bytes = disk.read_name(name).unwrap().to_vec();
        bytes[at] ^= 1 << (seed % 8);
        put(disk, name, &bytes);
    };
    match damage {
        Damage::RecordBehindTheWatermark => {
            let far = newest.starts.iter().rev().nth(1).unwrap() - APART_BYTES;
            let candidates = newest.starts.iter().filter(|start| **start < far - 3_100);
            let index = synced + rng.index(candidates.count().saturating_sub(synced).max(1));
            if newest.starts[index] < far - 3_100 {
                let at = rng.index(newest.starts[index + 1] - newest.starts[index]);
                flip(&mut disk, &newest_name, newest.starts[index] + at);
            }
        }
        Damage::RecordBelowTheWatermark if 0 < synced => {
            let at = rng.index(newest.starts[synced] - newest.starts[0]);
            flip(&mut disk, &newest_name, newest.starts[0] + at);
        }
        Damage::RecordBelowTheWatermark => {}
        Damage::NewestLogGone => disk.unlink(&newest_name).unwrap(),
        Damage::NewestLogEmptied => put(&mut disk, &newest_name, &vec![0; rng.index(5_000)]),
        Damage::NewestSnapshot => {
            let zxid = *snapshots.last().unwrap();
            let name = path_of(&snapshot_name(Zxid(zxid), Compression::None));
            let at = rng.index(disk.read_name(&name).unwrap().len());
            flip(&mut disk, &name, at);
        }
        Damage::SnapshotMisnamed => {
            let (zxid, real) = match says {
                true => (rng.between(newest.start, last + 100), newest.start - 1),
                false => (last + rng.between(1, 1_000), 0),
            };
            let name = path_of(&snapshot_name(Zxid(zxid), Compression::None));
            put(&mut disk, &name, &snapshot(real, trailer(real)));
        }
    }
    let before = content(&disk);
    let settings = tree::Settings::default();
    match recover(&mut disk, settings, mutant, &mut Marks::new()) {
        Ok(mut recovered) => {
            let found = recovered.state.last;
            let data = recovered
                .state
                .tree
                .reader()
                .get("/a")
                .and_then(|znode| Some(i64::from_be_bytes(*znode.data()?.first_chunk()?)));
            if found == Zxid(last) && data == Some(last) {
                return Ok(());
            }
            Err(format!("{damage:?}: served up to {found} with {data:?} of {last:#x}"))
        }
        Err(Failure::Refused(_)) if content(&disk) == before => Ok(()),
        Err(Failure::Refused(why)) => Err(format!("{damage:?}: refused and changed: {why}")),
        Err(Failure::Setting) => Err(format!("{damage:?}: there are no TTLs")),
        Err(Failure::Disk(error)) => Err(format!("{damage:?}: {error:?}")),
    }
}

#[test]
fn a_damaged_disk_is_served_whole_or_refused_as_it_is() {
    for seed in 0..SEEDS {
        run(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}
