//! A disk in memory, for the tests of what is read from directories.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::Compression;
use super::compression::Encoder;
use super::damage::{empty_log, history};
use super::recovery::{Files, Names, Note, Options, Recovered, State, recover};
use super::replay::Record;
use super::snapshot::{
    OPEN_ACL_ID, SnapshotDigest, SnapshotError, SnapshotReader, SnapshotWriter, Trailer,
};
use super::watermark::{WATERMARK_FILE_BYTES, WATERMARK_NAME, Watermark};
use super::window::Source as _;
use crate::record::data::StatPersisted;
use crate::types::{Epoch, Zxid};

const EIO: i32 = 5;

pub(super) const LOGS: &str = "/logs/version-2";
pub(super) const DATA: &str = "/data/version-2";

/// A disk in memory, which sees to it that a file is read only once it was synced and its pages
/// are dropped.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    pub(super) files: BTreeMap<PathBuf, Vec<u8>>,
    pub(super) unreadable: BTreeSet<PathBuf>,
    /// What the disk does not give any more.
    pub(super) broken: BTreeSet<PathBuf>,
    pub(super) is_full: bool,
    pub(super) synced: BTreeSet<PathBuf>,
    pub(super) dropped: BTreeSet<PathBuf>,
    /// What was changed, in order.
    pub(super) steps: Vec<String>,
    /// What was told, by its first word.
    pub(super) notes: Vec<String>,
    pub(super) is_one_directory: bool,
    pub(super) trusts_empty: bool,
}

impl Memory {
    pub(super) fn with(files: &[(&str, Vec<u8>)]) -> Memory {
        let named = |(name, bytes): &(&str, Vec<u8>)| (Memory::path(name), bytes.clone());
        Memory { files: files.iter().map(named).collect(), ..Memory::default() }
    }

    /// Where a file of this name lies; one with a slash says so itself.
    pub(super) fn path(name: &str) -> PathBuf {
        match name {
            _ if name.starts_with('/') => name.into(),
            _ if name.starts_with("log.") => Path::new(LOGS).join(name),
            _ if name == WATERMARK_NAME => Path::new("/logs").join(name),
            _ => Path::new(DATA).join(name),
        }
    }

    fn step(&mut self, name: &str, path: &Path) -> io::Result<()> {
        if self.is_full && matches!(name, "create" | "append") {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.steps.push(format!("{name} {}", path.display()));
        Ok(())
    }

    pub(super) fn bytes(&mut self, path: &Path) -> io::Result<&mut Vec<u8>> {
        if self.unreadable.contains(path) {
            return Err(io::Error::from(io::ErrorKind::PermissionDenied));
        }
        if self.broken.contains(path) {
            return Err(io::Error::from_raw_os_error(EIO));
        }
        self.files.get_mut(path).ok_or(io::Error::from(io::ErrorKind::NotFound))
    }

    pub(super) fn options(&self) -> Options<'static, ()> {
        Options {
            data_dir: Path::new("/data"),
            data_log_dir: (!self.is_one_directory).then_some(Path::new("/logs")),
            settings: (),
            trust_empty: self.trusts_empty,
            is_live: false,
            is_member: false,
            recent_max: 0,
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    pub(super) fn recover(&mut self) -> Result<Recovered<Seen>, String> {
        let options = self.options();
        let before = self.files.clone();
        let recovered = recover(self, &options).map_err(|error| error.to_string());
        if let Err(error) = &recovered {
            assert_eq!(self.files, before, "a start that was refused ({error}) changed files");
        }
        recovered
    }

    /// Served: up to where, and from which snapshot's content.
    pub(super) fn served(&mut self) -> (i64, i64) {
        let Recovered { state, .. } = self.recover().unwrap();
        (state.last.0, state.of_snapshot)
    }

    pub(super) fn refused(&mut self) -> String {
        match self.recover() {
            Ok(recovered) => panic!("served: {recovered:?}"),
            Err(error) => error,
        }
    }
}

impl Files for Memory {
    type Error = io::Error;

    fn list(&mut self, directory: &Path) -> io::Result<Option<Names>> {
        let inside = |path: &&PathBuf| path.parent() == Some(directory);
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        let names = self.files.keys().filter(inside);
        let names: Vec<_> = names.map(|path| (name(path), self.files[path].len() as u64)).collect();
        Ok((!names.is_empty()).then_some(names))
    }

    fn read(&mut self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        Ok(self.files.get(path).cloned())
    }

    fn sync(&mut self, path: &Path) -> io::Result<()> {
        self.bytes(path)?;
        self.synced.insert(path.into());
        if !self.steps.is_empty() {
            self.step("sync", path)?;
        }
        Ok(())
    }

    fn drop_clean_pages(&mut self, path: &Path) -> io::Result<()> {
        assert!(self.synced.contains(path), "{} is dropped unsynced", path.display());
        self.dropped.insert(path.into());
        Ok(())
    }

    fn read_at(&mut self, path: &Path, offset: u64, target: &mut [u8]) -> io::Result<usize> {
        assert!(self.dropped.contains(path), "{} is read from the cache", path.display());
        let mut bytes = self.bytes(path)?.as_slice();
        let Ok(count) = bytes.read_at(offset as usize, target);
        Ok(count)
    }

    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        self.step("make", path)
    }

    fn create(&mut self, path: &Path) -> io::Result<()> {
        self.step("create", path)?;
        self.files.insert(path.into(), Vec::new());
        Ok(())
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step("append", path)?;
        self.bytes(path)?.extend_from_slice(bytes);
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        self.step("rename", to)?;
        let bytes = self.files.remove(from).unwrap();
        self.files.insert(to.into(), bytes);
        Ok(())
    }

    fn set_len(&mut self, path: &Path, len: u64) -> io::Result<()> {
        self.step("cut", path)?;
        self.bytes(path)?.resize(len as usize, 0);
        Ok(())
    }

    fn remove(&mut self, path: &Path) -> io::Result<()> {
        self.step("remove", path)?;
        self.files.remove(path);
        Ok(())
    }

    fn sync_directory(&mut self, path: &Path) -> io::Result<()> {
        self.step("sync names in", path)
    }

    fn is_loss(error: &io::Error) -> bool {
        error.raw_os_error() == Some(EIO)
    }

    fn tell(&mut self, note: Note<'_>) {
        self.notes.push(match note {
            Note::Reading { snapshot } => format!("reading {}", snapshot.display()),
            Note::PassedOver { snapshot, why } => {
                format!("passed over {}: {why}", snapshot.display())
            }
            Note::Loaded { zxid } => format!("loaded {zxid:?}"),
            Note::Rebuilding { first_log } => {
                format!("rebuilding from {}", first_log.display())
            }
            Note::TornBefore { cut } => format!("torn before: {}", cut.path.display()),
            Note::Torn { cut, copy } => format!("torn: {} {copy:?}", cut.path.display()),
            Note::Removed { leftover } | Note::NotRemoved { leftover, .. } => {
                format!("leftover {}", leftover.display())
            }
            Note::NotVouchedFor { why } => format!("not vouched for: {why}"),
        });
    }
}

/// Knows what it has seen, and which snapshot it is from by a number that each has inside.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) last: Zxid,
    pub(super) of_snapshot: i64,
}

impl State for Seen {
    type Settings = ();
    type Error = SnapshotError;

    fn empty((): ()) -> Seen {
        Seen { last: Zxid::ZERO, of_snapshot: -1 }
    }

    fn from_snapshot<R: Read>(
        (): (),
        zxid: Zxid,
        snapshot: &mut SnapshotReader<R>,
    ) -> Result<Seen, SnapshotError> {
        let mut of_snapshot = -1;
        while let Some(item) = snapshot.next()? {
            if let super::snapshot::Item::Node { data: Some(data), .. } = item {
                of_snapshot = i64::from_be_bytes(data.try_into().unwrap());
            }
        }
        Ok(Seen { last: zxid, of_snapshot })
    }

    fn replay(&mut self, record: &Record<'_>) -> Result<(), SnapshotError> {
        assert!(self.last < record.zxid());
        self.last = record.zxid();
        Ok(())
    }

    fn last(&self) -> Zxid {
        self.last
    }

    fn accept(&self) -> Result<(), SnapshotError> {
        Ok(())
    }
}

pub(super) const SILENT: Trailer = Trailer { digest: None, last_processed: None };

pub(super) fn finished(zxid: i64) -> Trailer {
    Trailer { last_processed: Some(Zxid(zxid)), ..SILENT }
}

pub(super) fn digested(zxid: i64) -> Trailer {
    let digest = SnapshotDigest { zxid: Zxid(zxid), version: 2, digest: 0 };
    Trailer { digest: Some(digest), last_processed: None }
}

pub(super) fn snapshot_as(compression: Compression, inside: i64, trailer: Trailer) -> Vec<u8> {
    let mut writer = SnapshotWriter::new(Encoder::new(Vec::new(), compression));
    writer.sessions([].into_iter()).unwrap();
    writer.acls([].into_iter()).unwrap();
    let stat = StatPersisted::default();
    writer.node("", Some(&inside.to_be_bytes()), OPEN_ACL_ID, &stat).unwrap();
    writer.finish(trailer).unwrap().finish().unwrap()
}

/// A snapshot of the state after `zxid`, as a server of ours writes it.
pub(super) fn snapshot(zxid: i64) -> Vec<u8> {
    snapshot_as(Compression::None, zxid, finished(zxid))
}

pub(super) fn silent(zxid: i64) -> Vec<u8> {
    snapshot_as(Compression::None, zxid, SILENT)
}

pub(super) fn damaged(mut bytes: Vec<u8>) -> Vec<u8> {
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes
}

pub(super) fn half(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.len() / 2);
    bytes
}

pub(super) fn mark(sequence: u64, watermark: Watermark) -> Vec<u8> {
    let mut file = vec![0; WATERMARK_FILE_BYTES];
    let slot = watermark.encode(sequence);
    file[..slot.len()].copy_from_slice(&slot);
    file
}

/// The watermark of a log that begins with `log` and is synced up to `zxid`, whole.
pub(super) fn marked(log: i64, zxid: i64) -> Vec<u8> {
    let offset = if zxid < log { empty_log() } else { history(log..=zxid) }.len() as u64;
    mark(1, Watermark { offset, ..Watermark::new(Zxid(log), Zxid(zxid)) })
}

pub(super) fn epoch(epoch: u32, counter: u32) -> i64 {
    Zxid::new(Epoch(epoch), counter).0
}
