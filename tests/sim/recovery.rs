//! The simulated disk for the server's own recovery: each of its calls is a step of the disk. What
//! is read, in which order, and what it means is `storage::recovery`'s.

use std::path::Path;

use ringkeeper::pipeline::{
    ALL_PUBLISHED, OnMismatch, Restore, RestoreError, RestoreSettings, Restored,
};
use ringkeeper::storage::history::HistoryError;
use ringkeeper::storage::recovery::{self, Files, Note, Options, Places, RecoveryError};
use ringkeeper::storage::standing::{self, Standing};
use ringkeeper::storage::{self, QUICK_BYTES, SnapshotFile};
use ringkeeper::tree;
use ringkeeper::types::Zxid;

use crate::check::Marks;
use crate::disk::{Disk, DiskError};
use crate::log::{DIRECTORY, DiskMutant, Layout};

/// Why there is nothing to go on from.
#[derive(Debug)]
pub(crate) enum Failure {
    Disk(DiskError),
    /// A setting is missing, without which znodes would be lost.
    Setting,
    /// The directory is refused, which must never happen here: nothing is damaged beyond what a
    /// crash leaves.
    Refused(String),
}

impl From<DiskError> for Failure {
    fn from(error: DiskError) -> Failure {
        Failure::Disk(error)
    }
}

impl From<RecoveryError<DiskError, RestoreError>> for Failure {
    fn from(error: RecoveryError<DiskError, RestoreError>) -> Failure {
        match error {
            RecoveryError::Io { source, .. } | RecoveryError::Copy { source, .. } => {
                Failure::Disk(source)
            }
            RecoveryError::NotAccepted { error: RestoreError::Ttl { .. }, .. } => Failure::Setting,
            error => Failure::Refused(error.to_string()),
        }
    }
}

pub(crate) struct Recovered {
    pub(crate) state: Restored,
    pub(crate) snapshot: Option<Zxid>,
    /// Torn tails that were cut off.
    pub(crate) cuts: usize,
}

pub(crate) fn recover(
    disk: &mut Disk,
    layout: Layout,
    tree: tree::Settings,
    mutant: Option<DiskMutant>,
    marks: &mut Marks,
) -> Result<Recovered, Failure> {
    let mut files = SimulatedFiles { disk, mutant, marks, failed: None, passed_over: false };
    let options = options(layout, tree, mutant, false);
    let recovered = recovery::recover::<_, Restore>(&mut files, &options)?;
    finish(recovered, files.failed)
}

/// The same as a member of an ensemble, which has a database already.
pub(crate) fn recover_member(
    disk: &mut Disk,
    layout: Layout,
    mutant: Option<DiskMutant>,
) -> Result<(Recovered, Standing), Failure> {
    let marks = &mut Marks::new();
    let mut files = SimulatedFiles { disk, mutant, marks, failed: None, passed_over: false };
    let options = options(layout, tree::Settings::default(), mutant, true);
    let (recovered, standing) =
        standing::recover_member::<_, Restore>(&mut files, &options, false)?;
    let (recent, end) = (recovered.recent.clone(), recovered.replayed.last);
    let recovered = finish(recovered, files.failed)?;
    // What is handed out is the end of the history, without a gap.
    let mut last = recent.after;
    for (zxid, _) in &recent.txns {
        assert_eq!(*zxid, last.next());
        last = *zxid;
    }
    assert!(standing.doubt.is_some() || last == end, "{last} is not the end, {end}");
    Ok((recovered, standing))
}

fn options(
    layout: Layout,
    tree: tree::Settings,
    mutant: Option<DiskMutant>,
    is_member: bool,
) -> Options<'static, RestoreSettings> {
    #[cfg(not(feature = "mutants"))]
    let _ = mutant;
    Options {
        data_dir: Path::new(""),
        data_log_dir: layout.data_log_dir().map(Path::new),
        settings: RestoreSettings {
            tree,
            on_mismatch: OnMismatch::Refuse,
            unpublished_max: ALL_PUBLISHED,
        },
        trust_empty: false,
        is_live: false,
        is_member,
        recent_max: if is_member { 5 } else { 0 },
        #[cfg(feature = "mutants")]
        mutant: match mutant {
            Some(DiskMutant::EvidenceIgnored) => Some(recovery::Mutant::EvidenceIgnored),
            Some(DiskMutant::AbsentLogIsEmptyHistory) => {
                Some(recovery::Mutant::AbsentLogIsEmptyHistory)
            }
            Some(DiskMutant::SnapshotNameBelieved) => Some(recovery::Mutant::SnapshotNameBelieved),
            Some(DiskMutant::ForeignLogsTaken) => Some(recovery::Mutant::ForeignLogsTaken),
            _ => None,
        },
    }
}

fn finish(
    recovered: recovery::Recovered<Restore>,
    failed: Option<DiskError>,
) -> Result<Recovered, Failure> {
    if let Some(error) = failed {
        return Err(error.into());
    }
    let recovery::Recovered { state, snapshot, replayed, .. } = recovered;
    Ok(Recovered { state: state.finish(), snapshot, cuts: replayed.cuts.len() })
}

/// What the server's own code finds in the files of this disk.
pub(crate) fn look<T>(
    disk: &mut Disk,
    layout: Layout,
    mutant: Option<DiskMutant>,
    find: impl FnOnce(&mut SimulatedFiles<'_>, &Places) -> Result<T, HistoryError<DiskError>>,
) -> Result<T, DiskError> {
    let mut marks = Marks::new();
    let mut files =
        SimulatedFiles { disk, mutant, marks: &mut marks, failed: None, passed_over: false };
    let places = Places::new(Path::new(""), layout.data_log_dir().map(Path::new));
    find(&mut files, &places).map_err(|error| error.source)
}

/// The disk, or one that lies about what it has done.
pub(crate) struct SimulatedFiles<'a> {
    disk: &'a mut Disk,
    mutant: Option<DiskMutant>,
    marks: &'a mut Marks,
    /// What could not be removed, and need not be, but for the crash that was meant there.
    failed: Option<DiskError>,
    passed_over: bool,
}

impl SimulatedFiles<'_> {
    fn is(&self, mutant: DiskMutant) -> bool {
        self.mutant == Some(mutant)
    }
}

impl Files for SimulatedFiles<'_> {
    type Error = DiskError;

    fn list(&mut self, directory: &Path) -> Result<Option<Vec<(String, u64)>>, DiskError> {
        Ok(Some(self.disk.list(text(directory))))
    }

    fn read(&mut self, path: &Path) -> Result<Option<Vec<u8>>, DiskError> {
        if path.ends_with("ringkeeper.watermark") && self.is(DiskMutant::WatermarkIgnored) {
            return Ok(None);
        }
        Ok(self.disk.read_name(text(path)).map(<[u8]>::to_vec))
    }

    fn sync(&mut self, path: &Path) -> Result<(), DiskError> {
        if self.is(DiskMutant::RecoveryNotSynced) {
            return Ok(());
        }
        self.disk.sync(self.disk.find(text(path)).expect("listed before"))
    }

    fn drop_clean_pages(&mut self, path: &Path) -> Result<(), DiskError> {
        if !self.is(DiskMutant::PageCacheTrusted) {
            self.disk.drop_clean_pages(self.disk.find(text(path)).expect("listed before"));
        }
        Ok(())
    }

    fn read_at(&mut self, path: &Path, offset: u64, target: &mut [u8]) -> Result<usize, DiskError> {
        let bytes = self.disk.read_name(text(path)).expect("listed before");
        let rest = bytes.get(offset as usize..).unwrap_or_default();
        let count = rest.len().min(target.len());
        target[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn make_directory(&mut self, _: &Path) -> Result<(), DiskError> {
        Ok(())
    }

    fn create(&mut self, path: &Path) -> Result<(), DiskError> {
        self.disk.create(text(path)).map(drop)
    }

    fn append(&mut self, path: &Path, bytes: &[u8]) -> Result<(), DiskError> {
        let file = self.disk.find(text(path)).expect("made before");
        self.disk.write_new(file, self.disk.read(file).len(), bytes)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), DiskError> {
        self.disk.rename(text(from), text(to))
    }

    fn set_len(&mut self, path: &Path, len: u64) -> Result<(), DiskError> {
        if self.is(DiskMutant::TailTaken) {
            return Ok(());
        }
        self.disk.set_len(self.disk.find(text(path)).expect("read before"), len as usize)
    }

    fn remove(&mut self, path: &Path) -> Result<(), DiskError> {
        match self.disk.find(text(path)) {
            Some(_) => self.disk.unlink(text(path)),
            None => Ok(()),
        }
    }

    fn sync_directory(&mut self, path: &Path) -> Result<(), DiskError> {
        if self.is(DiskMutant::RecoveryNotSynced) {
            return Ok(());
        }
        self.disk.sync_directory(text(path))
    }

    fn is_loss(_: &DiskError) -> bool {
        false
    }

    fn tell(&mut self, note: Note<'_>) {
        match note {
            Note::PassedOver { .. } => self.passed_over = true,
            Note::Loaded { zxid: Some(_) } if self.passed_over => {
                self.marks.insert("recovered from an older snapshot");
            }
            Note::Torn { copy: Some(_), .. } => {
                self.marks.insert("torn tail cut");
            }
            Note::Removed { .. } => {
                self.marks.insert("leftover removed");
            }
            Note::NotRemoved { .. } => self.failed = Some(DiskError::Crashed),
            Note::NotVouchedFor { .. } => {
                self.marks.insert("not vouched for");
            }
            Note::Reading { .. }
            | Note::Rebuilding { .. }
            | Note::Loaded { .. }
            | Note::TornBefore { .. }
            | Note::Torn { copy: None, .. } => {}
        }
    }
}

pub(crate) fn is_quick_valid(disk: &Disk, file: &SnapshotFile) -> bool {
    let bytes = disk.read_name(&format!("{DIRECTORY}/{}", file.name)).unwrap_or_default();
    let head = &bytes[..bytes.len().min(QUICK_BYTES)];
    let tail = &bytes[bytes.len().saturating_sub(QUICK_BYTES)..];
    storage::is_quick_valid(file, head, tail)
}

fn text(path: &Path) -> &str {
    path.to_str().expect("made from a text")
}
