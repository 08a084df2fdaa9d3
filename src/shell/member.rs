//! What a member of an ensemble does with its files besides logging: the leader's snapshot taken in, and
//! the files asked where the log is to be cut and what the snapshot replaces.
//!
//! ```text
//! SNAP  --> SnapshotSink: bytes into a temporary file, as they come
//!       --> finish        synced, and loaded as a start would load it
//!       --> find_replacement, Log::replace (the journal's steps), and the loaded state is the server's
//!       --> remove_replaced, once the leader has the acknowledgement of NEWLEADER
//!
//! TRUNC --> find_truncation, Log::truncate; the pipeline takes back, or recovers what is left
//! ```
//!
//! All of this waits for the disk: it is for a thread that may, and for the one that writes snapshots
//! and purges, so that no file comes or goes between the look and the change.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use tracing::{info, warn};

use super::directories::{Directories, DirectoryError, names};
use super::recover::{Disk, RecoverError, RecoverOptions};
use super::unbuffered::UnbufferedFile;
use crate::pipeline::{ALL_PUBLISHED, Restore, RestoreSettings, Restored};
use crate::storage::history::{self, HistoryError, Place, Wanted};
use crate::storage::journal::{RECEIVED_NAME, Replacement, SET_ASIDE_PREFIX, Truncation};
use crate::storage::recovery::{self, Places};
use crate::storage::snapshot::BodyWriter;
use crate::storage::standing;
use crate::types::Zxid;
use crate::zab::leader::{Span, write_committed};

/// A leader's snapshot that cannot be taken in. Nothing else has been changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SinkError {
    #[error("{}: the leader's snapshot could not be written: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Unusable(#[from] RecoverError),
}

/// Takes in the body of a snapshot that a leader sends. What is not finished leaves no file.
pub(crate) struct SnapshotSink {
    path: PathBuf,
    /// `None` once it is finished.
    writer: Option<BodyWriter<UnbufferedFile>>,
}

impl SnapshotSink {
    pub(crate) fn create(directories: &Directories) -> Result<SnapshotSink, SinkError> {
        let path = directories.snapshots().join(RECEIVED_NAME);
        let writer = UnbufferedFile::create(&path).and_then(BodyWriter::new);
        let writer = writer.map_err(|source| SinkError::Write { path: path.clone(), source })?;
        Ok(SnapshotSink { path, writer: Some(writer) })
    }

    /// Takes what has come of the body (`PacketPiece::Snapshot`).
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), SinkError> {
        let writer = self.writer.as_mut().expect("it is not finished");
        let written = writer.write(bytes);
        written.map_err(|source| SinkError::Write { path: self.path.clone(), source })
    }

    /// The body has ended (`PacketPiece::SnapshotEnd`). Makes it durable under its temporary name and
    /// loads it as a start would: `Log::replace` may follow.
    pub(crate) fn finish(
        mut self,
        directories: &Directories,
        options: RecoverOptions,
        zxid: Zxid,
    ) -> Result<Restored, SinkError> {
        let writer = self.writer.take().expect("it is finished once");
        let restored = writer
            .finish()
            .and_then(UnbufferedFile::finish)
            .and_then(|file| file.sync_all())
            .map_err(|source| SinkError::Write { path: self.path.clone(), source })
            .and_then(|()| load(directories, options, zxid));
        if restored.is_err() {
            let _ = fs::remove_file(&self.path);
        }
        restored
    }
}

impl Drop for SnapshotSink {
    fn drop(&mut self) {
        if self.writer.is_some() {
            // What is half made would take the room that the log may need.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn load(
    directories: &Directories,
    options: RecoverOptions,
    zxid: Zxid,
) -> Result<Restored, SinkError> {
    let RecoverOptions { tree, on_mismatch, .. } = options;
    let settings = RestoreSettings { tree, on_mismatch, unpublished_max: ALL_PUBLISHED };
    let places = places(directories);
    let restore = recovery::load_received::<_, Restore>(&mut Disk::new(), &places, settings, zxid)?;
    Ok(restore.finish())
}

fn places(directories: &Directories) -> Places {
    Places::new(directories.data_dir(), directories.data_log_dir())
}

/// How to take back what comes after a transaction (`storage::history`).
pub(crate) fn find_truncation(
    directories: &Directories,
    zxid: Zxid,
) -> Result<Option<Truncation>, HistoryError<io::Error>> {
    history::find_truncation(&mut Disk::new(), &places(directories), zxid)
}

/// What the snapshot that was received replaces.
pub(crate) fn find_replacement(
    directories: &Directories,
    zxid: Zxid,
) -> Result<Replacement, HistoryError<io::Error>> {
    history::find_replacement(&mut Disk::new(), &places(directories), zxid)
}

/// What a learner lacks, from the logs (`storage::history`).
pub(crate) fn read_logged(
    directories: &Directories,
    wanted: Wanted,
    each: impl FnMut(Zxid, &[u8]) -> ControlFlow<()>,
) -> Result<bool, HistoryError<io::Error>> {
    history::read_logged(&mut Disk::new(), &places(directories), wanted, each)
}

/// Where some transactions end that were read last, for whoever goes on behind them.
#[derive(Debug, Default)]
pub(crate) struct ReadPlaces {
    places: Mutex<VecDeque<(Zxid, Place)>>,
}

/// So many learners at once go on where they were.
const READ_PLACES_MAX: usize = 64;

impl ReadPlaces {
    fn behind(&self, zxid: Zxid) -> Option<Place> {
        let places = self.places.lock();
        places.iter().find(|(end, _)| *end == zxid).map(|(_, place)| *place)
    }

    fn note(&self, zxid: Zxid, place: Option<Place>) {
        let mut places = self.places.lock();
        places.extend(place.map(|place| (zxid, place)));
        if READ_PLACES_MAX < places.len() {
            places.pop_front();
        }
    }
}

/// Writes what the logs have of the history as a leader sends it.
pub(crate) fn write_logged(
    directories: &Directories,
    read: &ReadPlaces,
    span: Span,
    out: &mut dyn io::Write,
) -> io::Result<()> {
    let mut place = read.behind(span.after);
    let Span { after, through } = span;
    let (mut packets, mut written) = (Vec::new(), Ok(()));
    let wanted = Wanted { after, through, size_factor: 0.0 };
    let each = |zxid, payload: &[u8]| {
        packets.clear();
        write_committed(zxid, payload, &mut packets);
        written = out.write_all(&packets);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    };
    let places = places(directories);
    let is_whole = history::read_logged_from(&mut Disk::new(), &places, wanted, &mut place, each);
    match (is_whole.map_err(io::Error::other)?, written) {
        (_, Err(error)) => Err(error),
        (true, Ok(())) => {
            read.note(through, place);
            Ok(())
        }
        (false, Ok(())) => Err(io::Error::other("the log does not have all of it")),
    }
}

/// Removes the file `initialize`, now that the empty database is durable.
pub(crate) fn remove_initialize(directories: &Directories) -> io::Result<()> {
    standing::remove_initialize(&mut Disk::new(), &places(directories))
}

/// Removes what a leader's snapshot has replaced.
pub(crate) fn remove_replaced(directories: &Directories) -> Result<(), DirectoryError> {
    let remove = |directory: &Path| -> Result<(), DirectoryError> {
        for (name, _) in names(directory)? {
            if name.starts_with(SET_ASIDE_PREFIX) {
                let path = directory.join(name);
                info!(target: "ringkeeper::shell::member", "Removing file: {}", path.display());
                if let Err(error) = fs::remove_file(&path) {
                    warn!(path = %path.display(), %error, "not removed");
                }
            }
        }
        Ok(())
    };
    remove(directories.snapshots())?;
    if directories.are_apart() { remove(directories.logs()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::metrics::Metrics;
    use crate::pipeline::OnMismatch;
    use crate::record::txn::{Txn, TxnHeader};
    use crate::shell::disk::{Log, LogOptions, LogParts, Round};
    use crate::shell::keeper::Keeper;
    use crate::shell::marks::Marks;
    use crate::shell::recover::recover;
    use crate::shell::scratch::Scratch;
    use crate::storage::journal::{self, BackEnd, Storing};
    use crate::storage::recovery::VERSION_NAME;
    use crate::storage::snapshot::{OPEN_ACL_ID, SnapshotWriter, Trailer};
    use crate::storage::txnlog;
    use crate::tree;

    const OPTIONS: RecoverOptions = RecoverOptions {
        tree: tree::Settings {
            types: tree::ephemerals::Types { extended: false, emulate_353: false },
            digest: false,
        },
        trust_empty: false,
        on_mismatch: OnMismatch::Refuse,
        is_live: true,
        member: None,
    };

    fn opened(scratch: &Scratch) -> Directories {
        Directories::open(scratch.path(), scratch.path(), true).unwrap().made().unwrap()
    }

    fn snapshot(data: &[u8]) -> Vec<u8> {
        let mut writer = SnapshotWriter::new(Vec::new());
        writer.sessions([].into_iter()).unwrap();
        writer.acls([].into_iter()).unwrap();
        writer.node("", Some(b""), OPEN_ACL_ID, &Default::default()).unwrap();
        writer.node("/a", Some(data), OPEN_ACL_ID, &Default::default()).unwrap();
        writer.finish(Trailer::default()).unwrap()
    }

    /// What a leader sends of a snapshot: all between its header and its seal.
    fn body(snapshot: &[u8]) -> &[u8] {
        &snapshot[16..snapshot.len() - 13]
    }

    /// A log that goes on in these directories, where no log is open.
    fn log(scratch: &Scratch, directories: &Directories) -> Log {
        let back_end = BackEnd::Mapped;
        let keeper = Keeper::start(directories.logs(), 64 << 10, back_end).unwrap();
        let marks = Marks::start(&directories.watermarks()).unwrap();
        let options = LogOptions {
            directory: scratch.path().join(VERSION_NAME),
            snapshots: scratch.path().join(VERSION_NAME),
            journal: journal::Settings {
                back_end,
                step_bytes: 64 << 10,
                force_sync: true,
                shaping: None,
                waits_for_answered: false,
            },
            sync_warning: std::time::Duration::from_secs(10),
        };
        let recorder = Metrics::new(1).1.remove(0);
        let (keeper, marks) = (Arc::new(keeper), Arc::new(marks));
        Log::open(LogParts { options, keeper, marks, last: Zxid(9), mark: None, recorder })
    }

    fn steps(log: &mut Log) -> Vec<Storing> {
        let mut stored = Vec::new();
        while let Some(round) = log.round().unwrap() {
            let Round::Wait(waiting) = round else { panic!("nothing was logged") };
            stored.extend(log.on_round(waiting.run().unwrap()).unwrap().stored);
        }
        stored
    }

    #[test]
    fn a_snapshot_that_came_in_pieces_replaces_what_was_there() {
        let scratch = Scratch::new("member-snap");
        let directories = opened(&scratch);
        for name in ["snapshot.0", "snapshot.9"] {
            fs::write(directories.snapshots().join(name), snapshot(b"old")).unwrap();
        }
        let sent = snapshot(b"new");
        let mut sink = SnapshotSink::create(&directories).unwrap();
        body(&sent).chunks(7).for_each(|piece| sink.take(piece).unwrap());
        let mut restored = sink.finish(&directories, OPTIONS, Zxid(5)).unwrap();
        assert_eq!(restored.last, Zxid(5));
        assert_eq!(restored.tree.reader().get("/a").unwrap().data(), Some(&b"new"[..]));
        assert_eq!(recovered(&directories), (Zxid(9), b"old".to_vec()));
        let mut log = log(&scratch, &directories);
        log.replace(find_replacement(&directories, Zxid(5)).unwrap());
        assert!(matches!(steps(&mut log)[..], [Storing::Replacement(_)]));
        assert_eq!(fs::read(directories.snapshots().join("snapshot.5")).unwrap(), sent);
        assert_eq!(recovered(&directories), (Zxid(5), b"new".to_vec()));
        let aside = ["snapshot.0", "snapshot.9"];
        let aside = aside.map(|name| format!("{SET_ASIDE_PREFIX}{name}"));
        assert!(aside.iter().all(|name| directories.snapshots().join(name).exists()));
        assert_eq!(find_truncation(&directories, Zxid(4)).unwrap(), None, "only the leader helps");
        let truncation = find_truncation(&directories, Zxid(7)).unwrap().unwrap();
        assert_eq!((truncation.zxid, truncation.cut), (Zxid(5), None));
        remove_replaced(&directories).unwrap();
        assert!(!aside.iter().any(|name| directories.snapshots().join(name).exists()));
        assert_eq!(recovered(&directories), (Zxid(5), b"new".to_vec()));
    }

    fn recovered(directories: &Directories) -> (Zxid, Vec<u8>) {
        let mut state = recover(directories, OPTIONS).unwrap().state;
        let data = state.tree.reader().get("/a").unwrap().data().unwrap().to_vec();
        (state.last, data)
    }

    #[test]
    fn what_a_learner_lacks_is_read_from_the_logs() {
        let scratch = Scratch::new("member-logged");
        let directories = opened(&scratch);
        let mut log = Vec::new();
        txnlog::append_header(&mut log);
        for zxid in 3..=6 {
            let data = [zxid as u8];
            let txn = Txn::SetData { path: "/a".into(), data: Some(&data), version: 1 };
            let header = TxnHeader { client_id: 1, cxid: 2, zxid, time: 3, kind: txn.kind() };
            txnlog::append_txn(&mut log, &header, &txn, None);
        }
        log.resize(64 << 10, 0);
        fs::write(directories.logs().join("log.3"), log).unwrap();
        for (after, is_whole, expected) in [(3, true, vec![4, 5]), (1, false, vec![])] {
            let wanted = Wanted { after: Zxid(after), through: Zxid(5), size_factor: 0.33 };
            let mut zxids = Vec::new();
            let read = read_logged(&directories, wanted, |zxid, _| {
                zxids.push(zxid.0);
                ControlFlow::Continue(())
            });
            assert_eq!((read.unwrap(), zxids), (is_whole, expected), "after {after}");
        }
    }

    #[test]
    fn a_snapshot_that_does_not_come_whole_or_does_not_load_leaves_nothing() {
        let scratch = Scratch::new("member-half");
        let directories = opened(&scratch);
        let path = directories.snapshots().join(RECEIVED_NAME);
        let sent = snapshot(b"new");
        let mut sink = SnapshotSink::create(&directories).unwrap();
        sink.take(&body(&sent)[..20]).unwrap();
        assert!(path.exists());
        drop(sink);
        assert!(!path.exists());
        let mut sink = SnapshotSink::create(&directories).unwrap();
        sink.take(&body(&sent)[..40]).unwrap();
        let Err(error) = sink.finish(&directories, OPTIONS, Zxid(5)) else { panic!("it is half") };
        assert!(error.to_string().contains(RECEIVED_NAME), "{error}");
        assert!(!path.exists());
    }
}
