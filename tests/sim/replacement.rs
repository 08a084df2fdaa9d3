//! A leader's snapshot that replaces all that there was, with a crash at each step.
//!
//! Whatever the crash leaves is the old state or the new one, for us and for a server of Apache
//! ZooKeeper. What the old history has beyond the new state may be gone before the rest is; this
//! server then knows that it has lost something.

use std::time::Duration;

use ringkeeper::record::data::StatPersisted;
use ringkeeper::storage::history::find_replacement;
use ringkeeper::storage::replay::LogReader;
use ringkeeper::storage::snapshot::{Item, OPEN_ACL_ID, SnapshotReader, SnapshotWriter, Trailer};
use ringkeeper::storage::{Listing, is_quick_valid};
use ringkeeper::types::Zxid;

use crate::check::Marks;
use crate::damage::put;
use crate::disk::DiskError;
use crate::log::{DiskMutant, LogWriter, received_path};
use crate::recovery::{look, recover_member};
use crate::truncation::{Stage, append};

const SEEDS: u64 = 40;
/// More than a replacement takes.
const STEPS_MAX: u64 = 300;

/// The branch of history that the leader's snapshot is of.
const THEIRS: u8 = 2;

/// What a server has: the last transaction, and on which branch of history.
type Found = (i64, u8);

/// The snapshot that a leader sends: a znode's data say where it ends, and which branch it is of.
fn sent(zxid: i64, branch: u8) -> Vec<u8> {
    let mut writer = SnapshotWriter::new(Vec::new());
    writer.sessions([].into_iter()).unwrap();
    writer.acls([].into_iter()).unwrap();
    writer.node("", Some(b""), OPEN_ACL_ID, &StatPersisted::default()).unwrap();
    let stat = StatPersisted { czxid: 1, mzxid: zxid, ..StatPersisted::default() };
    let data = [&zxid.to_be_bytes()[..], &[branch; 40]].concat();
    writer.node("/a", Some(&data), OPEN_ACL_ID, &stat).unwrap();
    writer.finish(Trailer::default()).unwrap()
}

fn branch_of(data: &[u8]) -> Found {
    let zxid = data.first_chunk().map_or(0, |zxid| i64::from_be_bytes(*zxid));
    // The old snapshots have no more than the zxid.
    (zxid, data.get(8).copied().unwrap_or(1))
}

impl Stage {
    fn replace(&mut self, writer: &mut LogWriter, zxid: i64) -> Result<(), DiskError> {
        let file = self.disk.create(&received_path())?;
        self.disk.write_new(file, 0, &sent(zxid, THEIRS))?;
        if self.mutant != Some(DiskMutant::SnapshotNotSynced) {
            self.disk.sync(file)?;
        }
        let found = look(&mut self.disk, self.layout, self.mutant, |files, places| {
            find_replacement(files, places, Zxid(zxid))
        });
        writer.replace(found?);
        self.settle(writer)
    }

    /// What a server of Apache ZooKeeper starts with: the newest snapshot that loads, and every record
    /// beyond it. An error if the two are of different histories.
    fn started_by_java(&self) -> Result<Found, String> {
        let listing = Listing::new(self.layout.list(&self.disk));
        let loaded = listing.snapshots().iter().find_map(|snapshot| {
            let path = self.layout.path_of(&snapshot.name);
            let bytes = self.disk.read_name(&path).unwrap();
            let tail = &bytes[bytes.len().saturating_sub(8)..];
            if !is_quick_valid(snapshot, &bytes[..bytes.len().min(8)], tail) {
                return None;
            }
            let mut reader = SnapshotReader::new(path.as_ref(), bytes);
            let mut found = (0, 1);
            loop {
                match reader.next() {
                    Ok(Some(Item::Node { path, data: Some(data), .. })) if path == "/a" => {
                        found = branch_of(data);
                    }
                    Ok(Some(_)) => {}
                    Ok(None) => return Some((snapshot.zxid.0, found.1)),
                    Err(_) => return None,
                }
            }
        });
        let (base, branch) = loaded.ok_or("no snapshot loads")?;
        let mut last = base;
        for log in listing.logs_after(Zxid(base)) {
            let bytes = self.disk.read_name(&self.layout.path_of(&log.name)).unwrap();
            for record in LogReader::new(bytes).into_iter().flatten() {
                if record.header.zxid <= base {
                    continue;
                }
                let written = match &record.txn {
                    ringkeeper::record::txn::Txn::SetData { data, .. }
                    | ringkeeper::record::txn::Txn::Create { data, .. } => branch_of(data.unwrap()),
                    other => return Err(format!("{other:?} was not written")),
                };
                if written.1 != branch {
                    let zxid = record.header.zxid;
                    return Err(format!("{zxid:#x} of {written:?} after {base:#x} of {branch}"));
                }
                last = record.header.zxid;
            }
        }
        Ok((last, branch))
    }

    /// What a start of ours finds; `None`: that it has lost something.
    fn started(&mut self) -> Result<Option<Found>, String> {
        let recovered = recover_member(&mut self.disk, self.layout, self.mutant);
        let (mut recovered, standing) = recovered.map_err(|failure| format!("{failure:?}"))?;
        if standing.doubt.is_some() {
            return Ok(None);
        }
        let last = recovered.state.last.0;
        let reader = recovered.state.tree.reader();
        let found = reader.get("/a").ok_or("the znode is gone")?;
        let (zxid, branch) = branch_of(found.data().ok_or("the data are gone")?);
        if zxid != last {
            return Err(format!("served up to {last:#x} with the data of {zxid:x?}"));
        }
        Ok(Some((last, branch)))
    }
}

/// Replaces with a crash after so many steps of the disk. Says whether it came to its end before.
fn attempt(seed: u64, steps: u64, mutant: Option<DiskMutant>) -> Result<bool, String> {
    let mut stage = Stage::new(seed, mutant);
    let (mut writer, last) = stage.live();
    let to = stage.rng.between(1, last + 10);
    let loses_power = stage.rng.coin();
    let place = |what: &str| format!("{what}, to {to:#x} from {last:#x}, {steps} steps");
    stage.disk.light_fuse(steps);
    let has_ended = match stage.replace(&mut writer, to) {
        Ok(()) => true,
        Err(DiskError::Crashed) => false,
        Err(error) => return Err(place(&format!("{error:?}"))),
    };
    stage.disk.put_out_fuse();
    drop(writer);
    stage.crash(loses_power);
    let is_either = |(found, branch): Found| match branch {
        THEIRS => found == to,
        _ => !has_ended && (to.min(last)..=last).contains(&found),
    };
    let java = stage.started_by_java().map_err(|why| place(&format!("ZooKeeper: {why}")))?;
    if !is_either(java) {
        return Err(place(&format!("ZooKeeper starts with {java:x?}")));
    }
    let ours = stage.started().map_err(|why| place(&why))?;
    match ours {
        Some(found) if is_either(found) => {}
        // What it had beyond the new state is gone, and the rest is not replaced yet.
        None if to < last && !has_ended => {}
        found => return Err(place(&format!("{found:x?} is left"))),
    }
    // Another leader sends another snapshot, and history goes on.
    let broken = |error: DiskError| place(&format!("{error:?} without a fault"));
    let next = to + stage.rng.between(0, 3);
    let mut writer = stage.writer(ours.map_or(0, |(last, _)| last)).map_err(broken)?;
    stage.replace(&mut writer, next).map_err(broken)?;
    stage.log(&mut writer, append(true, next + 1, next + 3, THEIRS)).map_err(broken)?;
    drop(writer);
    stage.crash(loses_power);
    let expected = (next + 3, THEIRS);
    let java = stage.started_by_java().map_err(|why| place(&format!("ZooKeeper: {why}")))?;
    let ours = stage.started().map_err(|why| place(&why))?;
    if (java, ours) != (expected, Some(expected)) {
        return Err(place(&format!("went on to {expected:x?}, found is {ours:x?}, {java:x?}")));
    }
    Ok(has_ended)
}

pub(crate) fn run(seed: u64, mutant: Option<DiskMutant>) -> Result<(), String> {
    for steps in 0..STEPS_MAX {
        if attempt(seed, steps, mutant)? {
            return Ok(());
        }
    }
    Err(format!("it does not end within {STEPS_MAX} steps"))
}

#[test]
fn a_replacement_may_crash_at_every_step() {
    for seed in 0..SEEDS {
        run(seed, None).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// What a member finds that has logged transactions and not synced them, while a quorum has committed
/// them and it has written a snapshot that goes beyond all it had: that snapshot, or more.
fn snapshot_ahead(seed: u64) -> Result<(), String> {
    let mut stage = Stage::new(seed, None);
    let (mut writer, synced) = stage.live();
    let logged = synced + stage.rng.between(1, 12);
    let crashed = |error: DiskError| format!("{error:?} without a fault");
    for zxid in synced + 1..=logged {
        writer
            .append(Duration::ZERO, &mut stage.disk, append(false, zxid, zxid, 1))
            .map_err(crashed)?;
        if stage.rng.coin() {
            stage.disk.write_back_some(&mut stage.rng);
        }
    }
    if stage.rng.coin() && writer.begin_round(Duration::ZERO) {
        for _ in 0..stage.rng.below(4) {
            let advanced = writer.advance(Duration::ZERO, &mut stage.disk, &mut Marks::new());
            if advanced.map_err(crashed)?.is_some() {
                break;
            }
        }
    }
    let ahead = stage.rng.between(synced + 1, logged + 3);
    put(&mut stage.disk, &format!("version-2/snapshot.{ahead:x}"), &sent(ahead, 1));
    drop(writer);
    stage.disk.lose_power(&mut stage.rng);
    let place = |what: String| format!("{what}; {synced:#x} synced, {ahead:#x} in the snapshot");
    let end = match stage.started().map_err(place)? {
        Some((last, 1)) if (ahead..=logged.max(ahead)).contains(&last) => last,
        found => return Err(place(format!("{found:x?} is found"))),
    };
    let mut writer = stage.writer(end).map_err(crashed)?;
    stage.log(&mut writer, append(true, end + 1, end + 3, 1)).map_err(crashed)?;
    drop(writer);
    stage.disk.lose_power(&mut stage.rng);
    match stage.started().map_err(place)? {
        Some((last, 1)) if last == end + 3 => Ok(()),
        found => Err(place(format!("{found:x?} is found after {end:#x} went on"))),
    }
}

#[test]
fn a_members_snapshot_may_be_ahead_of_its_own_log() {
    for seed in 0..10 * SEEDS {
        snapshot_ahead(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}
