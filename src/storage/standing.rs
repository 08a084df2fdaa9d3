//! What a member of an ensemble has when it starts, and whether it may speak for it.
//!
//! A server by itself refuses files that have lost something. A member goes on, and heals from the
//! leader: but it is *not vouched for*. It may have acknowledged what it has lost, so it neither votes nor
//! leads nor answers as if its history were all that it ever had, until a leader's snapshot has
//! replaced everything. Nothing in its directories is changed before that; what is wrong with them
//! is found again at the next start.
//!
//! | | |
//! |---|---|
//! | files lost or damaged below the watermark; a broken disk under one of them | not vouched for |
//! | no snapshot and no log, but epochs | not vouched for |
//! | no snapshot and no log, `db.autocreate=false` and no file `initialize` | not vouched for |
//! | a zxid beyond `currentEpoch`: a crash while a leader was joined | `currentEpoch` is the epoch of that zxid |
//! | a zxid beyond `acceptedEpoch` (and beyond `currentEpoch.tmp`): no leader of that epoch was accepted here | not vouched for |
//! | a snapshot that shows more than the log: it was written by ZooKeeper while the tree changed | not vouched for |
//! | a directory or a file that may not be read; logs of another history; a missing setting | refused |
//! | an epoch file that holds no epoch; `acceptedEpoch` below `currentEpoch` | refused: a promise may be forgotten |
//!
//! What comes before the first transaction of an epoch is all that its leader began with, so a server
//! whose history ends in an epoch has what `currentEpoch` stands for. Were a server in doubt that has
//! crashed after a leader's snapshot replaced its history and before `currentEpoch` was stored, a few
//! of them would leave an ensemble without voters, and with all of its data.
//!
//! A watermark that is damaged is replaced by one that no history reaches, so that it stays known.
//!
//! After `QuorumPeer.loadDataBase` and `FileTxnSnapLog.restore`, which end the process in all these
//! cases but that of `initialize`.

use std::path::{Path, PathBuf};

use crate::types::{Epoch, Zxid};

use super::epoch::{ACCEPTED_EPOCH_NAME, CURRENT_EPOCH_NAME, decode_epoch};
use super::journal::EpochFile;
use super::recovery::{
    Failure, Files, Note, Options, Places, Reading, Recovered, RecoveryError, State, io_error, read,
};
use super::replay::{ReplayError, Replayed};
use super::watermark::{WATERMARK_FILE_BYTES, WATERMARK_NAME, Watermark};
use super::{Listing, ZXID_MAX};

/// Says that an empty database is meant to be (`zkServer-initialize.sh`).
pub const INITIALIZE_NAME: &str = "initialize";

/// Where ZooKeeper leaves an epoch that it could not give its name.
const CURRENT_EPOCH_TEMPORARY_NAME: &str = "currentEpoch.tmp";

/// What a member of an ensemble may say of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// `None`: there is no such file, or it says -1.
    pub accepted: Option<Epoch>,
    pub current: Option<Epoch>,
    /// What the files do not say and follows from the history: to be stored before anything is said.
    pub derived: Vec<(EpochFile, Epoch)>,
    /// Why it is not vouched for, if it is not.
    pub doubt: Option<String>,
}

/// Recovers as a member of an ensemble. `autocreate`: whether a directory without any database is one
/// with an empty database. Where there is a doubt, the state is empty or what the epochs contradict.
pub fn recover_member<F: Files, S: State>(
    files: &mut F,
    options: &Options<'_, S::Settings>,
    autocreate: bool,
) -> Result<(Recovered<S>, Standing), Failure<F, S>> {
    let places = Places::new(options.data_dir, options.data_log_dir);
    let accepted = read_epoch::<F, S>(files, &places, ACCEPTED_EPOCH_NAME)?;
    let current = read_epoch::<F, S>(files, &places, CURRENT_EPOCH_NAME)?;
    let found = |epoch: Option<Option<Epoch>>| epoch.flatten();
    let mut standing = Standing {
        accepted: found(accepted),
        current: found(current),
        derived: Vec::new(),
        doubt: None,
    };
    let reading: Reading<S> = match read(files, options) {
        Ok(reading) => reading,
        Err(error) if is_loss::<F, S>(&error) => {
            if let RecoveryError::Watermark { path, .. } = &error
                && !options.is_live
            {
                keep_in_mind::<F, S>(files, path)?;
            }
            return Ok(doubted(files, options, standing, error.to_string()));
        }
        Err(error) => return Err(error),
    };
    let has_epoch = [standing.accepted, standing.current].iter().any(|of| Some(Epoch(0)) < *of);
    let why = if !is_empty(&reading.listing) {
        None
    } else if has_epoch {
        Some("there are epochs, and neither a snapshot nor a log")
    } else if autocreate || has_initialize::<F, S>(files, &places)? {
        None
    } else {
        Some("there is no database, and no file initialize that says that none is meant to be")
    };
    if let Some(why) = why {
        let why = format!("{}: {why}", places.snapshots.display());
        return Ok(doubted(files, options, standing, why));
    }
    let last = reading.recovered.state.last();
    if accepted.is_none() {
        standing.accepted = Some(last.epoch());
        standing.derived.push((EpochFile::Accepted, last.epoch()));
    }
    if current.is_none() {
        standing.current = Some(last.epoch());
        standing.derived.push((EpochFile::Current, last.epoch()));
    } else if standing.current < Some(last.epoch()) {
        // ZooKeeper could not rename it, and has logged transactions of that epoch (ZOOKEEPER-4269).
        let left = read_epoch::<F, S>(files, &places, CURRENT_EPOCH_TEMPORARY_NAME)?;
        let left = left.flatten().filter(|left| last.epoch() <= *left);
        let is_accepted = Some(last.epoch()) <= standing.accepted;
        match left.or(is_accepted.then_some(last.epoch())) {
            Some(left) => {
                standing.current = Some(left);
                standing.derived.push((EpochFile::Current, left));
            }
            None => {
                let path = places.snapshots.join(CURRENT_EPOCH_NAME);
                standing.doubt = Some(format!(
                    "{}: the epoch in it is older than the last zxid, {last}, and so is acceptedEpoch",
                    path.display()
                ));
            }
        }
    }
    if standing.accepted < standing.current {
        return Err(RecoveryError::Promise {
            path: places.snapshots.join(ACCEPTED_EPOCH_NAME),
            accepted: standing.accepted.map_or(-1, |epoch| i64::from(epoch.0)),
            current: standing.current.map_or(-1, |epoch| i64::from(epoch.0)),
        });
    }
    if standing.doubt.is_none() && !reading.recovered.state.is_settled() {
        standing.doubt = Some(format!(
            "{}: the newest snapshot shows transactions beyond zxid {last}, where the logs end",
            places.snapshots.display()
        ));
    }
    if let Some(why) = &standing.doubt {
        files.tell(Note::NotVouchedFor { why });
        return Ok((reading.recovered, standing));
    }
    Ok((reading.accept(files, options)?, standing))
}

/// Nothing to go on from but a leader's snapshot.
fn doubted<F: Files, S: State>(
    files: &mut F,
    options: &Options<'_, S::Settings>,
    standing: Standing,
    why: String,
) -> (Recovered<S>, Standing) {
    files.tell(Note::NotVouchedFor { why: &why });
    let state = S::empty(options.settings);
    let (replayed, recent) = (Replayed::default(), Default::default());
    let recovered = Recovered { state, snapshot: None, watermark: None, replayed, recent };
    (recovered, Standing { doubt: Some(why), ..standing })
}

/// Whether an error says that what was here is gone, rather than that it may not be used.
fn is_loss<F: Files, S: State>(error: &Failure<F, S>) -> bool {
    match error {
        RecoveryError::Io { source, is_file, .. } => *is_file && F::is_loss(source),
        RecoveryError::NoSnapshot { .. }
        | RecoveryError::NoneLoads { .. }
        | RecoveryError::Unreached { .. }
        | RecoveryError::Watermark { .. }
        | RecoveryError::LogMissing { .. }
        | RecoveryError::LogsMissing { .. }
        | RecoveryError::SnapshotMissing { .. }
        | RecoveryError::Transaction { .. } => true,
        RecoveryError::Replay(error) => !matches!(error, ReplayError::Foreign { .. }),
        RecoveryError::Name { .. }
        | RecoveryError::State { .. }
        | RecoveryError::NotAccepted { .. }
        | RecoveryError::Received { .. }
        | RecoveryError::Epoch { .. }
        | RecoveryError::Promise { .. }
        | RecoveryError::Copy { .. } => false,
    }
}

fn is_empty(listing: &Listing) -> bool {
    listing.logs().is_empty() && listing.snapshots().is_empty()
}

/// The files `initialize`: the script makes it in dataDir, ZooKeeper looks for it in dataLogDir.
fn initialize_paths(places: &Places) -> [PathBuf; 2] {
    [&places.data_dir, &places.data_log_dir].map(|directory| directory.join(INITIALIZE_NAME))
}

fn has_initialize<F: Files, S: State>(
    files: &mut F,
    places: &Places,
) -> Result<bool, Failure<F, S>> {
    for path in initialize_paths(places) {
        if files.read(&path).map_err(|source| io_error(&path, source))?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes `initialize`, now that the empty database is durable.
pub fn remove_initialize<F: Files>(files: &mut F, places: &Places) -> Result<(), F::Error> {
    initialize_paths(places).iter().try_for_each(|path| files.remove(path))
}

/// The epoch in a file; `None` if there is no file.
fn read_epoch<F: Files, S: State>(
    files: &mut F,
    places: &Places,
    name: &str,
) -> Result<Option<Option<Epoch>>, Failure<F, S>> {
    let path = places.snapshots.join(name);
    let bytes = files.read(&path).map_err(|source| io_error(&path, source))?;
    let decode = |bytes: Vec<u8>| decode_epoch(name, &bytes);
    bytes.map(decode).transpose().map_err(|error| RecoveryError::Epoch { path, error })
}

/// Replaces a damaged watermark by one that no history reaches: what was known is lost, and without
/// a watermark the files would pass for ZooKeeper's.
fn keep_in_mind<F: Files, S: State>(files: &mut F, path: &Path) -> Result<(), Failure<F, S>> {
    let failed = |source| io_error(path, source);
    let temporary = path.with_file_name(format!("{WATERMARK_NAME}.tmp"));
    let mut bytes = vec![0; WATERMARK_FILE_BYTES];
    // Beyond every sequence that a copy can have, and with as many left.
    let slot = Watermark::of_snapshot(ZXID_MAX).encode(1 << 62);
    bytes[..slot.len()].copy_from_slice(&slot);
    files.create(&temporary).map_err(failed)?;
    files.append(&temporary, &bytes).map_err(failed)?;
    files.sync(&temporary).map_err(failed)?;
    files.rename(&temporary, path).map_err(failed)?;
    let directory = path.parent().unwrap_or(Path::new(""));
    files.sync_directory(directory).map_err(failed)
}

/// The last transactions that were replayed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recent {
    /// The one before them.
    pub after: Zxid,
    /// Each with the payload of its record, without a gap.
    pub txns: std::collections::VecDeque<(Zxid, Vec<u8>)>,
}

impl Recent {
    pub(super) fn push(&mut self, zxid: Zxid, payload: &[u8], count_max: usize) {
        self.txns.push_back((zxid, payload.to_vec()));
        if count_max < self.txns.len()
            && let Some((zxid, _)) = self.txns.pop_front()
        {
            self.after = zxid;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::damage::{empty_log, history};
    use super::super::memory::*;
    use super::super::recovery::recover;
    use super::*;

    fn member(
        memory: &mut Memory,
        autocreate: bool,
    ) -> Result<(Recovered<Seen>, Standing), String> {
        let options = Options { is_member: true, recent_max: 3, ..memory.options() };
        recover_member(memory, &options, autocreate).map_err(|error| error.to_string())
    }

    fn standing(memory: &mut Memory) -> Standing {
        member(memory, true).unwrap().1
    }

    /// Snapshot, log and watermark of a server that has synced six transactions.
    fn whole() -> Memory {
        Memory::with(&[
            ("snapshot.0", snapshot(0)),
            ("snapshot.2", snapshot(2)),
            ("log.1", history(1..=2)),
            ("log.3", history(3..=6)),
            (WATERMARK_NAME, marked(3, 6)),
        ])
    }

    #[test]
    fn what_a_server_by_itself_refuses_as_lost_is_doubted_and_not_changed() {
        let damage = |name: &str, change: fn(Vec<u8>) -> Vec<u8>| {
            let mut memory = whole();
            let bytes = memory.files.remove(&Memory::path(name)).unwrap();
            memory.files.insert(Memory::path(name), change(bytes));
            memory
        };
        let gone = |names: &[&str]| {
            let mut memory = whole();
            names.iter().for_each(|name| drop(memory.files.remove(&Memory::path(name))));
            memory
        };
        let broken = |name: &str| Memory { broken: [Memory::path(name)].into(), ..whole() };
        let cases = [
            ("log.3", damage("log.3", damaged)),
            ("log.3", damage("log.3", half)),
            ("log.3", gone(&["log.3"])),
            ("log", gone(&["log.1", "log.3", WATERMARK_NAME, "snapshot.0", "snapshot.2"])),
            ("snapshot", gone(&["snapshot.0", "snapshot.2"])),
            ("log.3", broken("log.3")),
            ("snapshot.2", broken("snapshot.2")),
        ];
        for (name, mut memory) in cases {
            memory.files.insert(Memory::path(CURRENT_EPOCH_NAME), b"1".to_vec());
            let before = memory.files.clone();
            let alone = Options { is_live: false, ..memory.options() };
            let refused = recover::<_, Seen>(&mut memory.clone(), &alone).is_err();
            assert!(refused || name == "log", "{name}");
            let (recovered, standing) = member(&mut memory, true).unwrap();
            let doubt = standing.doubt.expect("it has lost something");
            assert!(doubt.contains(name), "{name}: {doubt}");
            assert_eq!((recovered.state.last, recovered.snapshot), (Zxid::ZERO, None));
            assert!(memory.files == before && memory.steps.is_empty(), "{:?}", memory.steps);
            assert!(memory.notes.iter().any(|note| note.starts_with("not vouched for: ")));
            assert_eq!((standing.current, standing.derived), (Some(Epoch(1)), Vec::new()));
        }
        assert_eq!(standing(&mut whole()).doubt, None);
    }

    #[test]
    fn what_an_operator_has_to_mend_is_refused() {
        let name = Memory::path("log.3");
        let unreadable = Memory { unreadable: [name].into(), ..whole() };
        let mut misnamed = whole();
        misnamed.files.insert(Memory::path("log.7fffffffffffffff"), empty_log());
        for mut memory in [unreadable, misnamed] {
            assert!(member(&mut memory, true).is_err());
        }
    }

    #[test]
    fn a_damaged_watermark_stays_known_until_a_snapshot_has_replaced_everything() {
        let mut memory = whole();
        memory.files.get_mut(&Memory::path(WATERMARK_NAME)).unwrap()[30] ^= 1;
        for _ in 0..2 {
            assert!(standing(&mut memory).doubt.is_some());
            let watermark = Watermark::decode(&memory.files[&Memory::path(WATERMARK_NAME)]);
            assert!(watermark.is_ok(), "the log can go on with it");
        }
        memory.files.insert(Memory::path("snapshot.9"), snapshot(9));
        let replaced = Watermark::of_snapshot(Zxid(9));
        memory.files.insert(Memory::path(WATERMARK_NAME), mark((1 << 62) + 1, replaced));
        let (recovered, standing) = member(&mut memory, true).unwrap();
        assert_eq!((recovered.state.last, standing.doubt), (Zxid(9), None));
    }

    #[test]
    fn epochs_are_read_or_follow_from_the_history_as_in_zookeeper() {
        let files = |names: &[(&str, &str)]| {
            let mut memory = Memory::with(&[
                ("snapshot.200000000", snapshot(epoch(2, 0))),
                ("log.200000001", history(epoch(2, 1)..=epoch(2, 3))),
            ]);
            for (name, text) in names {
                memory.files.insert(Memory::path(name), text.as_bytes().to_vec());
            }
            memory
        };
        let found = |names: &[(&str, &str)]| standing(&mut files(names));
        let epochs = |standing: &Standing| [standing.accepted, standing.current];
        let both = [("acceptedEpoch", "7"), ("currentEpoch", "2")];
        let read = found(&both);
        assert_eq!((epochs(&read), &read.derived[..]), ([7, 2].map(|n| Some(Epoch(n))), &[][..]));
        let none = found(&[]);
        assert_eq!(epochs(&none), [Some(Epoch(2)); 2]);
        let derived = [EpochFile::Accepted, EpochFile::Current].map(|file| (file, Epoch(2)));
        assert_eq!(none.derived, derived);
        // ZooKeeper ends here. A crash while a leader was joined leaves it, and all that this leader
        // began with is there.
        for current in ["1", "-1"] {
            let behind = found(&[("acceptedEpoch", "3"), ("currentEpoch", current)]);
            assert_eq!((behind.doubt, behind.current), (None, Some(Epoch(2))));
            assert_eq!(behind.derived, [(EpochFile::Current, Epoch(2))]);
            let beyond = found(&[("acceptedEpoch", "1"), ("currentEpoch", current)]);
            assert!(beyond.doubt.unwrap().contains("acceptedEpoch"));
        }
        let left = [("acceptedEpoch", "2"), ("currentEpoch", "1"), ("currentEpoch.tmp", "2")];
        let left = found(&left);
        assert_eq!((left.doubt, left.current), (None, Some(Epoch(2))));
        assert_eq!(left.derived, [(EpochFile::Current, Epoch(2))]);
        for wrong in [
            [("acceptedEpoch", "1"), ("currentEpoch", "2")],
            [("acceptedEpoch", "x"), ("currentEpoch", "2")],
            [("acceptedEpoch", "2"), ("currentEpoch", "")],
        ] {
            let mut memory = files(&wrong);
            let before = memory.files.clone();
            assert!(member(&mut memory, true).is_err(), "{wrong:?}");
            assert_eq!(memory.files, before);
        }
    }

    #[test]
    fn an_empty_directory_is_an_empty_database_only_if_that_is_meant() {
        let empty = || Memory::default();
        assert_eq!(member(&mut empty(), true).unwrap().1.doubt, None);
        assert!(member(&mut empty(), false).unwrap().1.doubt.unwrap().contains("initialize"));
        for place in ["/data/initialize", "/logs/initialize"] {
            let mut memory = Memory::with(&[(place, Vec::new())]);
            assert_eq!(member(&mut memory, false).unwrap().1.doubt, None);
            let places = Places::new(Path::new("/data"), Some(Path::new("/logs")));
            remove_initialize(&mut memory, &places).unwrap();
            assert!(memory.files.is_empty());
        }
        // It was a member once, and has nothing of it.
        let mut emptied = Memory::with(&[("acceptedEpoch", b"3".to_vec())]);
        assert!(member(&mut emptied, true).unwrap().1.doubt.is_some());
        let mut begun = Memory::with(&[("snapshot.0", snapshot(0))]);
        assert_eq!(member(&mut begun, false).unwrap().1.doubt, None);
    }

    #[test]
    fn the_last_transactions_are_handed_out() {
        let recent = |memory: &mut Memory| {
            let Recent { after, txns } = member(memory, true).unwrap().0.recent;
            (after.0, txns.iter().map(|(zxid, _)| zxid.0).collect::<Vec<_>>())
        };
        assert_eq!(recent(&mut whole()), (3, vec![4, 5, 6]));
        let mut short = Memory::with(&[("snapshot.2", snapshot(2)), ("log.1", history(1..=3))]);
        assert_eq!(recent(&mut short), (2, vec![3]));
        assert_eq!(recent(&mut Memory::with(&[("snapshot.5", snapshot(5))])), (5, vec![]));
    }

    /// A quorum has committed it, and this server has not synced it.
    #[test]
    fn a_snapshot_may_be_ahead_of_what_was_synced() {
        let mut log = history(1..=6);
        let start = history(1..=3).len();
        log[start + 40] ^= 1;
        let files = |snapshot: Vec<u8>| {
            let watermark = (WATERMARK_NAME, marked(1, 3));
            Memory::with(&[("snapshot.5", snapshot), ("log.1", log.clone()), watermark])
        };
        let alone = files(snapshot(5)).refused();
        assert!(alone.contains("damaged"), "{alone}");
        let mut memory = files(snapshot(5));
        let (recovered, standing) = member(&mut memory, true).unwrap();
        assert_eq!((recovered.state.last, standing.doubt), (Zxid(5), None));
        assert_eq!(memory.files[&Memory::path("log.1")].len(), start);
        // One that says nothing of when it was finished is believed as well.
        let mut silent = files(silent(5));
        assert_eq!(member(&mut silent, true).unwrap().0.state.last, Zxid(5));
    }
}
