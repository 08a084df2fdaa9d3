//! Disks that go bad while nobody serves them. Each is served whole, or refused and not changed.
//!
//! Everything on them was acknowledged. The watermark may lag, as a power cut leaves it.

use std::collections::BTreeMap;

use ringkeeper::record::data::{AclBytes, StatPersisted};
use ringkeeper::record::txn::{CreateKind, Txn, TxnHeader};
use ringkeeper::storage::replay::APART_BYTES;
use ringkeeper::storage::snapshot::{OPEN_ACL_ID, SnapshotWriter, Trailer};
use ringkeeper::storage::standing::Standing;
use ringkeeper::storage::watermark::{UNBOUNDED, WATERMARK_FILE_BYTES, Watermark};
use ringkeeper::storage::{Compression, log_name, snapshot_name, txnlog};
use ringkeeper::tree;
use ringkeeper::types::Zxid;

use crate::check::Marks;
use crate::disk::Disk;
use crate::log::{DiskMutant, Layout};
use crate::recovery::{Failure, recover, recover_member};
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
    /// The logs are another server's, and go further than ours.
    ForeignLogs,
}

const DAMAGES: [Damage; 7] = [
    Damage::RecordBehindTheWatermark,
    Damage::RecordBelowTheWatermark,
    Damage::NewestLogGone,
    Damage::NewestLogEmptied,
    Damage::NewestSnapshot,
    Damage::SnapshotMisnamed,
    Damage::ForeignLogs,
];

struct Log {
    start: i64,
    bytes: Vec<u8>,
    /// Where each record begins, and the last one ends.
    starts: Vec<usize>,
}

/// One znode, whose data is the zxid of the last transaction, and who wrote it.
fn append(log: &mut Log, zxid: i64, data_bytes: usize, writer: u8) {
    let data = [&zxid.to_be_bytes()[..], &vec![writer; data_bytes - 8]].concat();
    let record = record(zxid, &data);
    log.bytes.extend_from_slice(&record);
    log.starts.push(log.bytes.len());
}

/// The transaction that makes a znode, or changes it, to have these data.
pub(crate) fn record(zxid: i64, data: &[u8]) -> Vec<u8> {
    let mut record = Vec::new();
    let (path, data) = ("/a".into(), Some(data));
    let kind = CreateKind::Node { create2: false, ephemeral: false };
    let txn = match zxid {
        1 => Txn::Create { kind, path, data, acl: AclBytes::OPEN, parent_cversion: 1 },
        _ => Txn::SetData { path, data, version: zxid as i32 - 1 },
    };
    let header = TxnHeader { client_id: 1, cxid: 1, zxid, time: 1, kind: txn.kind() };
    txnlog::append_txn(&mut record, &header, &txn, None);
    record
}

const OURS: u8 = 0xab;
const THEIRS: u8 = 0xcd;

fn log(start: i64, count: i64, data_bytes: usize, writer: u8) -> Log {
    let mut bytes = Vec::new();
    txnlog::append_header(&mut bytes);
    let mut log = Log { start, starts: vec![bytes.len()], bytes };
    (start..start + count).for_each(|zxid| append(&mut log, zxid, data_bytes, writer));
    log
}

pub(crate) fn snapshot(zxid: i64, trailer: Trailer) -> Vec<u8> {
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

pub(crate) fn put(disk: &mut Disk, name: &str, bytes: &[u8]) {
    let file = disk.create(name).unwrap();
    disk.write(file, 0, bytes).unwrap();
    disk.sync(file).unwrap();
    let directory = name.rsplit_once('/').map_or("", |(directory, _)| directory);
    disk.sync_directory(directory).unwrap();
}

fn content(disk: &Disk) -> BTreeMap<String, Vec<u8>> {
    let mut content = BTreeMap::new();
    for directory in ["version-2", "logs/version-2", "ringkeeper.torn", "logs/ringkeeper.torn"] {
        for (name, _) in disk.list(directory) {
            let path = format!("{directory}/{name}");
            content.insert(path.clone(), disk.read_name(&path).unwrap().to_vec());
        }
    }
    content
}

/// The watermark of a server that has synced so many records of its newest log.
fn watermark_at(newest: &Log, synced: usize) -> Watermark {
    let checksum = synced
        .checked_sub(1)
        .map(|index| txnlog::first_record_checksum(&newest.bytes[newest.starts[index]..]));
    let (offset, zxid) = (newest.starts[synced] as u64, newest.start + synced as i64 - 1);
    Watermark { offset, checksum, ..Watermark::new(Zxid(newest.start), Zxid(zxid)) }
}

fn mark(sequence: u64, watermark: Watermark) -> Vec<u8> {
    let mut file = vec![0; WATERMARK_FILE_BYTES];
    let slot = watermark.encode(sequence);
    file[..slot.len()].copy_from_slice(&slot);
    file
}

/// Makes a disk, damages it and has it recovered.
pub(crate) fn run(seed: u64, mutant: Option<DiskMutant>) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let damage = *rng.pick(&DAMAGES);
    let mut disk = Disk::default();
    let layout = if rng.coin() { Layout::Apart } else { Layout::Together };
    let path_of = |name: String| layout.path_of(&name);
    let (mut logs, mut next) = (Vec::new(), 1);
    for _ in 0..rng.below(3) {
        let count = rng.between(1, 40);
        logs.push(log(next, count, 100, OURS));
        next += count;
    }
    // Long enough for records that are far apart.
    let newest = log(next, rng.between(700, 1_000), 3_000, OURS);
    let last = next + newest.starts.len() as i64 - 2;
    logs.push(newest);
    for log in &logs {
        let padded = [&log.bytes[..], &vec![0; rng.index(20_000)]].concat();
        put(&mut disk, &path_of(log_name(Zxid(log.start))), &padded);
    }
    let newest = logs.last().unwrap();
    let synced = rng.mostly_small(0, newest.starts.len() as i64 - 1) as usize;
    // A watermark that has not moved is also that of a server that never syncs, and says nothing of
    // whose the log is.
    let synced = match damage {
        Damage::RecordBehindTheWatermark | Damage::ForeignLogs => synced.max(1),
        _ => synced,
    };
    let mut watermark = watermark_at(newest, synced);
    if synced == 0 && rng.coin() {
        watermark.offset = UNBOUNDED;
    }
    for name in layout.watermarks() {
        put(&mut disk, name, &mark(1, watermark));
    }
    // Snapshots of what came before the newest log, which say what they hold or do not.
    let says = rng.coin();
    let trailer = |zxid| Trailer { digest: None, last_processed: says.then_some(Zxid(zxid)) };
    let mut snapshots = vec![0];
    if 1 < newest.start && rng.coin() {
        snapshots.push(rng.between(1, newest.start - 1));
    }
    // A log that is gone has more than any snapshot within it.
    if [Damage::NewestLogGone, Damage::NewestLogEmptied].contains(&damage) && rng.coin() {
        snapshots.push(rng.between(newest.start, last - 1));
    }
    for &zxid in &snapshots {
        let name = path_of(snapshot_name(Zxid(zxid), Compression::None));
        put(&mut disk, &name, &snapshot(zxid, trailer(zxid)));
    }
    let newest_name = path_of(log_name(Zxid(newest.start)));
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
            let name = path_of(snapshot_name(Zxid(zxid), Compression::None));
            let at = rng.index(disk.read_name(&name).unwrap().len());
            flip(&mut disk, &name, at);
        }
        Damage::SnapshotMisnamed => {
            let (zxid, real) = match says {
                true => (rng.between(newest.start, last + 100), newest.start - 1),
                false => (last + rng.between(1, 1_000), 0),
            };
            let name = path_of(snapshot_name(Zxid(zxid), Compression::None));
            put(&mut disk, &name, &snapshot(real, trailer(real)));
        }
        Damage::ForeignLogs => {
            // As long records, or others; in logs of the same names, or all in one; with or without
            // a snapshot that makes them needless.
            let bytes = if rng.coin() { 3_000 } else { rng.between(50, 5_000) as usize };
            let theirs: Vec<Log> = if rng.coin() {
                let before = logs.iter().rev().skip(1).rev();
                let before =
                    before.map(|log_| log(log_.start, log_.starts.len() as i64 - 1, 100, THEIRS));
                let count = last - newest.start + rng.between(2, 500);
                before.chain([log(newest.start, count, bytes, THEIRS)]).collect()
            } else {
                logs.iter().for_each(|log| {
                    disk.unlink(&path_of(log_name(Zxid(log.start)))).unwrap();
                });
                vec![log(1, last + rng.between(1, 500), bytes, THEIRS)]
            };
            let end = theirs.last().map(|log| log.start + log.starts.len() as i64 - 2).unwrap();
            for log in &theirs {
                put(&mut disk, &path_of(log_name(Zxid(log.start))), &log.bytes);
            }
            if rng.coin() {
                let name = path_of(snapshot_name(Zxid(end), Compression::None));
                put(&mut disk, &name, &snapshot(end, trailer(end)));
            }
            if layout == Layout::Apart {
                // Its own watermark has come along; the copy is ours.
                let newest = theirs.last().unwrap();
                let watermark = watermark_at(newest, newest.starts.len() - 1);
                put(&mut disk, layout.watermarks()[0], &mark(900, watermark));
            }
        }
    }
    let before = content(&disk);
    let settings = tree::Settings::default();
    let as_member = member_finds(disk.clone(), layout, mutant);
    let as_member = as_member.map_err(|why| format!("{damage:?}, as a member: {why}"))?;
    // A member may have such a snapshot from a leader.
    let is_believed = damage == Damage::SnapshotMisnamed && !says;
    if as_member.is_some_and(|found| found != Zxid(last) && !is_believed) {
        return Err(format!(
            "{damage:?}: a member has {as_member:?} of {last:#x}, without a doubt"
        ));
    }
    match recover(&mut disk, layout, settings, mutant, &mut Marks::new()) {
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

/// What a member of an ensemble finds; `None`: it has lost something, or refuses logs of another
/// history.
fn member_finds(
    mut disk: Disk,
    layout: Layout,
    mutant: Option<DiskMutant>,
) -> Result<Option<Zxid>, String> {
    let before = content(&disk);
    match recover_member(&mut disk, layout, mutant) {
        Ok((recovered, Standing { doubt: None, .. })) => Ok(Some(recovered.state.last)),
        Ok(_) if content(&disk) == before => Ok(None),
        Ok((_, standing)) => Err(format!("doubted and changed: {:?}", standing.doubt)),
        Err(Failure::Refused(why)) if why.contains("of another history") => Ok(None),
        Err(failure) => Err(format!("{failure:?}")),
    }
}

#[test]
fn a_damaged_disk_is_served_whole_or_refused_as_it_is() {
    for seed in 0..SEEDS {
        run(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}
