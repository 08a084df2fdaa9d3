//! The log on the simulated disk: does what the server's own journal orders, as the shell does it on
//! files, and decides nothing.
//!
//! Each step of a round is one event, so that anything may happen between two of them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use ringkeeper::storage::blocks::{Blocks, Extent};
use ringkeeper::storage::epoch::encode_epoch;
use ringkeeper::storage::journal::{
    self, Append, BackEnd, Growth, Journal, MAKING, Making, Order, Replacement, Round,
    SET_ASIDE_PREFIX, Step, Truncation, first_room,
};
use ringkeeper::storage::segment::{each_store, records};
use ringkeeper::storage::txnlog::{self, HEADER_BYTES};
use ringkeeper::storage::watermark::{
    DurableSlots, WATERMARK_FILE_BYTES, Watermark, cached_offset,
};
use ringkeeper::storage::{self, Compression};
use ringkeeper::types::Zxid;

use crate::check::Marks;
use crate::disk::{Disk, DiskError, FileId, Syncing};

/// Where snapshots are.
pub(crate) const DIRECTORY: &str = "version-2";

/// Where a server keeps its logs: with the snapshots, or in a directory of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    Together,
    Apart,
}

impl Layout {
    pub(crate) fn data_log_dir(self) -> Option<&'static str> {
        match self {
            Layout::Together => None,
            Layout::Apart => Some("logs"),
        }
    }

    /// Where logs are.
    pub(crate) fn logs(self) -> &'static str {
        match self {
            Layout::Together => DIRECTORY,
            Layout::Apart => "logs/version-2",
        }
    }

    /// The watermark beside the logs, and its copy.
    pub(crate) fn watermarks(self) -> &'static [&'static str] {
        match self {
            Layout::Together => &["ringkeeper.watermark"],
            Layout::Apart => &["logs/ringkeeper.watermark", "ringkeeper.watermark"],
        }
    }

    /// Where a log or a snapshot of this name is.
    pub(crate) fn path_of(self, name: &str) -> String {
        let directory = if name.starts_with("log.") { self.logs() } else { DIRECTORY };
        format!("{directory}/{name}")
    }

    /// All names with their lengths.
    pub(crate) fn list(self, disk: &Disk) -> Vec<(String, u64)> {
        let mut names = disk.list(DIRECTORY);
        if self == Layout::Apart {
            names.extend(disk.list(self.logs()));
        }
        names
    }
}

/// Seeded bugs of whoever does what the journal and recovery order, which the checkers must catch.
/// Those of the journal itself are in `storage::journal::Mutant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutants"), expect(dead_code, reason = "made by the mutants only"))]
pub(crate) enum DiskMutant {
    /// A log's name is not made durable before its records are acknowledged.
    NoDirectorySync,
    /// What is stored is acknowledged, synced or not.
    AckBeforeSync,
    /// A sync that failed is taken for one that did not.
    FailedSyncIgnored,
    /// A record's length is stored before the rest of it.
    LengthFirst,
    /// A snapshot gets its name before it is synced.
    SnapshotNotSynced,
    /// Logs that the snapshots need are purged.
    PurgeTooMuch,
    /// Recovery does not ask how far the log was synced.
    WatermarkIgnored,
    /// Recovery serves what only the page cache has.
    RecoveryNotSynced,
    /// Recovery believes pages that a failed sync has lost.
    PageCacheTrusted,
    /// Recovery leaves a torn tail where it is, and goes on as if it had not.
    TailTaken,
    /// Recovery takes what is behind the watermark for torn, whatever follows it.
    EvidenceIgnored,
    /// Recovery takes a log that is not there for one without records.
    AbsentLogIsEmptyHistory,
    /// Recovery believes the zxid in a snapshot's name.
    SnapshotNameBelieved,
    /// Recovery takes logs for its own whatever a watermark says of their records.
    ForeignLogsTaken,
    /// A truncation leaves the watermark where it is.
    WatermarkNotTakenBack,
    /// A truncation leaves the copy of the watermark where it is.
    CopyNotTakenBack,
    /// A leader's snapshot leaves the logs that go beyond it.
    LaterLogsKept,
    /// A leader's snapshot leaves what a log holds beyond it.
    LogNotCut,
    /// A leader's snapshot gets its name before what the logs hold beyond it is gone.
    NamedTooEarly,
}

/// Where a record is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// The log being written.
struct Current {
    file: FileId,
    /// Where the next record is stored, in a mapped log.
    end: usize,
}

/// A round that is under way.
enum Running {
    Sync(Option<Syncing>),
    Write { extent: Extent, has_begun: bool },
    Steps { steps: VecDeque<Step>, syncing: Option<Syncing> },
}

struct MarkFile {
    file: FileId,
    slots: DurableSlots,
    /// The newest sequence in a durable slot.
    newest: u64,
}

impl MarkFile {
    fn open(disk: &mut Disk, name: &str) -> Result<MarkFile, DiskError> {
        let file = match disk.find(name) {
            Some(file) => file,
            None => {
                let file = disk.create(name)?;
                disk.set_len(file, WATERMARK_FILE_BYTES)?;
                disk.sync(file)?;
                disk.sync_directory(name.rsplit_once('/').map_or("", |(directory, _)| directory))?;
                file
            }
        };
        disk.set_len(file, WATERMARK_FILE_BYTES)?;
        let bytes = disk.read(file);
        Ok(MarkFile { file, slots: DurableSlots::of(bytes), newest: DurableSlots::newest(bytes) })
    }

    fn store(
        &mut self,
        disk: &mut Disk,
        sequence: u64,
        watermark: Watermark,
    ) -> Result<(), DiskError> {
        if sequence <= self.newest {
            return Ok(());
        }
        disk.write(self.file, self.slots.offset() as usize, &watermark.encode(sequence))?;
        disk.sync(self.file)?;
        self.slots.on_synced();
        self.newest = sequence;
        Ok(())
    }
}

pub(crate) struct LogWriter {
    journal: Journal,
    settings: journal::Settings,
    mutant: Option<DiskMutant>,
    current: Option<Current>,
    /// A log that only lacks a name.
    prepared: Option<FileId>,
    round: Option<Running>,
    /// What the journal wants ahead of need.
    makes_ahead: bool,
    grows_ahead: Option<Growth>,
    layout: Layout,
    /// The watermark beside the logs, and its copy.
    marks: Vec<MarkFile>,
    /// The newest watermark that is not in all durable slots.
    noted: Option<(u64, Watermark)>,
    places: BTreeMap<i64, Place>,
    /// Where the next record is placed.
    placing: (String, usize),
    /// The files by the names that they got.
    named: BTreeMap<String, FileId>,
}

impl LogWriter {
    /// A log that goes on after `last`, in a directory that recovery has put in order.
    pub(crate) fn new(
        disk: &mut Disk,
        settings: journal::Settings,
        layout: Layout,
        last: Zxid,
        mutant: Option<DiskMutant>,
    ) -> Result<LogWriter, DiskError> {
        let mut found: Option<(u64, Watermark)> = None;
        let mut marks = Vec::new();
        for name in layout.watermarks() {
            let bytes = disk.read_name(name).unwrap_or_default();
            let newest = Watermark::decode(bytes).expect("recovery has read it");
            let sequence = |of: Option<(u64, Watermark)>| of.map(|(sequence, _)| sequence);
            if sequence(found) < sequence(newest) {
                found = newest;
            }
            marks.push(MarkFile::open(disk, name)?);
        }
        let mut writer = LogWriter {
            journal: Journal::new(settings, last, found),
            settings,
            mutant,
            current: None,
            prepared: None,
            round: None,
            makes_ahead: false,
            grows_ahead: None,
            layout,
            marks,
            noted: found,
            places: BTreeMap::new(),
            placing: (String::new(), 0),
            named: BTreeMap::new(),
        };
        writer.prepare(disk)?;
        Ok(writer)
    }

    #[cfg(feature = "mutants")]
    pub(crate) fn set_mutant(&mut self, mutant: Option<journal::Mutant>) {
        self.journal.set_mutant(mutant);
    }

    fn prepare(&mut self, disk: &mut Disk) -> Result<(), DiskError> {
        if self.prepared.is_some() {
            return Ok(());
        }
        let temporary = self.temporary_path();
        let back_end = self.settings.back_end;
        for making in MAKING {
            match making {
                Making::Create => {
                    let file = disk.create(&temporary)?;
                    let room = first_room(back_end, self.settings.step_bytes);
                    disk.allocate(file, room.len as usize)?;
                }
                Making::Header => {
                    let file = disk.find(&temporary).expect("it was created");
                    let header = Blocks::create().take();
                    match back_end {
                        BackEnd::Mapped => disk.write(file, 0, &header.bytes()[..HEADER_BYTES])?,
                        BackEnd::Direct => {
                            disk.begin_write(file, 0, header.bytes())?;
                            disk.end_write(file)?;
                        }
                    }
                }
                Making::Sync => {
                    let file = disk.find(&temporary).expect("it was created");
                    disk.sync(file)?;
                    self.prepared = Some(file);
                }
            }
        }
        Ok(())
    }

    /// Where a record is, and in which file: `None` while that has no name.
    pub(crate) fn place(&self, zxid: i64) -> Option<(&Place, Option<FileId>)> {
        let place = self.places.get(&zxid)?;
        Some((place, self.named.get(&place.name).copied()))
    }

    /// Whether all is durable, and nothing under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.journal.is_idle()
    }

    /// No round is put off any more.
    pub(crate) fn hurry(&mut self) {
        self.journal.hurry();
    }

    /// Ends the log, idle as it is.
    pub(crate) fn seal(&mut self, disk: &mut Disk) -> Result<(), DiskError> {
        for step in self.journal.seal() {
            let mut syncing = None;
            while !self.run(&step, &mut syncing, disk)? {}
        }
        Ok(())
    }

    pub(crate) fn append(
        &mut self,
        now: Duration,
        disk: &mut Disk,
        append: Append,
    ) -> Result<(), DiskError> {
        self.place_records(&append);
        self.journal.append(now, append);
        let synced = self.obey(disk)?;
        assert_eq!(synced, None, "only a round makes anything durable");
        Ok(())
    }

    fn place_records(&mut self, append: &Append) {
        if append.new_file {
            self.placing = (self.log_path(append.first), HEADER_BYTES);
        }
        let (name, at) = &mut self.placing;
        for (zxid, record) in (append.first.0..).zip(records(&append.records)) {
            let (name, start) = (name.clone(), *at);
            *at += record.len();
            self.places.insert(zxid, Place { name, start, end: *at });
        }
    }

    /// Does what the journal orders. Says up to where all is durable, if that is news.
    fn obey(&mut self, disk: &mut Disk) -> Result<Option<Zxid>, DiskError> {
        let mut synced = None;
        while let Some(order) = self.journal.next_order() {
            match order {
                Order::Store(records) => {
                    let current = self.current.as_mut().expect("records are for an open log");
                    let length_first = self.mutant == Some(DiskMutant::LengthFirst);
                    store_records(disk, current.file, current.end, &records, length_first)?;
                    current.end += records.len();
                }
                Order::Spare(_) => {}
                Order::Note { sequence, watermark } => {
                    // A store through a map: a kill may come between any two instructions.
                    let slot = watermark.encode(sequence);
                    let (first, last) = slot.split_at(slot.len() / 2);
                    let offset = cached_offset(sequence) as usize;
                    for mark in &self.marks {
                        disk.write(mark.file, offset, first)?;
                        disk.write(mark.file, offset + first.len(), last)?;
                    }
                    self.noted = Some((sequence, watermark));
                }
                Order::Synced { through, .. } => synced = Some(through),
                Order::GrowAhead(growth) => self.grows_ahead = Some(growth),
                Order::MakeAhead => self.makes_ahead = true,
                Order::Stored(_) => {}
            }
        }
        Ok(synced)
    }

    /// Begins the next round, if there is one.
    pub(crate) fn begin_round(&mut self, now: Duration) -> bool {
        let Some(round) = self.journal.next_round(now) else { return false };
        self.round = Some(match round {
            Round::Sync => Running::Sync(None),
            Round::Write(extent) => Running::Write { extent, has_begun: false },
            Round::Steps(mut steps) => {
                if self.mutant == Some(DiskMutant::NamedTooEarly) {
                    steps.sort_by_key(|step| !matches!(step, Step::NameSnapshot { .. }));
                }
                Running::Steps { steps: steps.into(), syncing: None }
            }
        });
        true
    }

    /// How much longer a round is put off.
    pub(crate) fn gathers(&self, now: Duration) -> Option<Duration> {
        self.journal.gathers(now)
    }

    /// Does the next step of the round. At its end says up to where all is durable, if that is
    /// news.
    pub(crate) fn advance(
        &mut self,
        now: Duration,
        disk: &mut Disk,
        marks: &mut Marks,
    ) -> Result<Option<Option<Zxid>>, DiskError> {
        let skips_sync = self.mutant == Some(DiskMutant::AckBeforeSync);
        let mut written = None;
        match self.round.take().expect("a round is under way") {
            Running::Sync(_) if skips_sync => {}
            Running::Sync(None) => {
                let current = self.current.as_ref().expect("there is a log to sync");
                self.round = Some(Running::Sync(Some(disk.begin_sync(current.file)?)));
                return Ok(None);
            }
            Running::Sync(Some(syncing)) => {
                let synced = disk.end_sync(syncing);
                self.unless_ignored(synced)?;
            }
            Running::Write { extent, has_begun: false } if !skips_sync => {
                let current = self.current.as_ref().expect("there is a log to write");
                disk.begin_write(current.file, extent.offset() as usize, extent.bytes())?;
                self.round = Some(Running::Write { extent, has_begun: true });
                return Ok(None);
            }
            Running::Write { extent, has_begun } => {
                if has_begun {
                    let current = self.current.as_ref().expect("there is a log to write");
                    let ended = disk.end_write(current.file);
                    self.unless_ignored(ended)?;
                }
                marks.insert("log written past the page cache");
                written = Some(extent);
            }
            Running::Steps { mut steps, mut syncing } => {
                let step = steps.front().cloned().expect("there are steps");
                if matches!(step, Step::Cut { .. }) {
                    marks.insert("log rolled");
                }
                if matches!(step, Step::Grow(_)) {
                    marks.insert("log grown by a round");
                }
                if self.run(&step, &mut syncing, disk)? {
                    steps.pop_front();
                }
                if !steps.is_empty() {
                    self.round = Some(Running::Steps { steps, syncing });
                    return Ok(None);
                }
            }
        }
        self.journal.on_round(now, written);
        Ok(Some(self.obey(disk)?))
    }

    fn unless_ignored(&self, done: Result<(), DiskError>) -> Result<(), DiskError> {
        match done {
            Err(DiskError::Io) if self.mutant == Some(DiskMutant::FailedSyncIgnored) => Ok(()),
            done => done,
        }
    }

    /// Does a step, or the first half of it: false.
    fn run(
        &mut self,
        step: &Step,
        syncing: &mut Option<Syncing>,
        disk: &mut Disk,
    ) -> Result<bool, DiskError> {
        match step {
            Step::Grow(growth) => self.grow(*growth, disk)?,
            Step::Cut { len } => {
                let current = self.current.as_ref().expect("there is a log to cut");
                // Room is not made in it any more.
                self.grows_ahead = None;
                disk.set_len(current.file, *len as usize)?;
            }
            Step::SyncCut => {
                let Some(begun) = syncing.take() else {
                    let current = self.current.as_ref().expect("there is a log to sync");
                    *syncing = Some(disk.begin_sync(current.file)?);
                    return Ok(false);
                };
                let synced = disk.end_sync(begun);
                self.unless_ignored(synced)?;
                self.current = None;
            }
            Step::Make => self.prepare(disk)?,
            Step::Name { start } => {
                let file = self.prepared.take().expect("it was made");
                let name = self.log_path(*start);
                disk.rename(&self.temporary_path(), &name)?;
                self.named.insert(name, file);
                self.current = Some(Current { file, end: HEADER_BYTES });
            }
            Step::SyncDirectory => {
                if self.mutant != Some(DiskMutant::NoDirectorySync) {
                    disk.sync_directory(self.layout.logs())?;
                }
            }
            Step::StoreWatermark { sequence, watermark } => {
                self.marks[0].store(disk, *sequence, *watermark)?;
                // The copy follows.
                self.noted = Some((*sequence, *watermark));
            }
            Step::TakeBackWatermark { .. }
                if self.mutant == Some(DiskMutant::WatermarkNotTakenBack) => {}
            Step::TakeBackWatermark { sequence, watermark } => {
                let takes_copy = self.mutant != Some(DiskMutant::CopyNotTakenBack);
                for mark in self.marks.iter_mut().take(if takes_copy { 2 } else { 1 }) {
                    mark.store(disk, *sequence, *watermark)?;
                }
            }
            Step::RemoveSnapshot { name } | Step::RemoveLog { name } => {
                disk.unlink(&self.layout.path_of(name))?;
            }
            Step::NameSnapshot { zxid } => {
                let name = storage::snapshot_name(*zxid, Compression::None);
                disk.rename(&received_path(), &self.layout.path_of(&name))?;
            }
            Step::SetAsideLog { .. } if self.mutant == Some(DiskMutant::LaterLogsKept) => {}
            Step::SetAsideSnapshot { name } | Step::SetAsideLog { name } => {
                let path = self.layout.path_of(name);
                let aside = path.replace(name, &format!("{SET_ASIDE_PREFIX}{name}"));
                disk.rename(&path, &aside)?;
            }
            Step::CutLog { .. } if self.mutant == Some(DiskMutant::LogNotCut) => {}
            Step::CutLog { name, len } => {
                let file = disk.find(&self.layout.path_of(name)).expect("it stays");
                disk.set_len(file, *len as usize)?;
                disk.sync(file)?;
            }
            Step::WriteEpoch { epoch, .. } => {
                let file = disk.create(&epoch_path())?;
                disk.write_new(file, 0, encode_epoch(Some(*epoch)).as_bytes())?;
                disk.sync(file)?;
            }
            Step::NameEpoch { file } => {
                disk.rename(&epoch_path(), &format!("{DIRECTORY}/{}", file.name()))?;
            }
            Step::SyncSnapshots => disk.sync_directory(DIRECTORY)?,
        }
        Ok(true)
    }

    fn grow(&mut self, growth: Growth, disk: &mut Disk) -> Result<(), DiskError> {
        let Some(current) = &self.current else { return Ok(()) };
        if disk.read(current.file).len() < growth.len as usize {
            disk.allocate(current.file, growth.len as usize)?;
        }
        Ok(())
    }

    /// What is done from time to time: room and the next file are made ahead, and the watermark is
    /// made durable. Any of it may be late.
    pub(crate) fn keep(&mut self, now: Duration, disk: &mut Disk) -> Result<(), DiskError> {
        let harmless = |done: Result<(), DiskError>| match done {
            // Tried again when it is needed.
            Err(DiskError::Full | DiskError::Io) => Ok(()),
            done => done,
        };
        if std::mem::take(&mut self.makes_ahead) {
            harmless(self.prepare(disk))?;
        }
        if let Some(growth) = self.grows_ahead.take()
            && self.current.is_some()
        {
            let grown = self.grow(growth, disk);
            let has_grown = grown.is_ok();
            harmless(grown)?;
            self.journal.on_grown_ahead();
            if has_grown {
                self.journal.on_room(now, growth.ready);
                let synced = self.obey(disk)?;
                assert_eq!(synced, None, "only a round makes anything durable");
            }
        }
        let Some((sequence, watermark)) = self.noted.take() else { return Ok(()) };
        let mut is_stored = true;
        for mark in &mut self.marks {
            let stored = mark.store(disk, sequence, watermark);
            is_stored &= stored.is_ok();
            harmless(stored)?;
        }
        if !is_stored {
            self.noted = Some((sequence, watermark));
        }
        Ok(())
    }

    /// Asks for a truncation, as a leader does.
    pub(crate) fn truncate(&mut self, truncation: Truncation) {
        self.journal.truncate(truncation);
    }

    /// Replaces everything by a snapshot that was received.
    pub(crate) fn replace(&mut self, replacement: Replacement) {
        self.journal.replace(replacement);
    }

    fn temporary_path(&self) -> String {
        format!("{}/{}", self.layout.logs(), journal::TEMPORARY_NAME)
    }

    fn log_path(&self, start: Zxid) -> String {
        self.layout.path_of(&storage::log_name(start))
    }
}

pub(crate) fn received_path() -> String {
    format!("{DIRECTORY}/{}", journal::RECEIVED_NAME)
}

fn epoch_path() -> String {
    format!("{DIRECTORY}/{}", journal::EPOCH_TEMPORARY_NAME)
}

/// Stores records in the order of a mapped log. Nothing is promised of the order within one store,
/// so its last byte comes first.
fn store_records(
    disk: &mut Disk,
    file: FileId,
    offset: usize,
    records: &[u8],
    length_first: bool,
) -> Result<(), DiskError> {
    let mut pieces = Vec::new();
    each_store(records, |piece| {
        pieces.extend([piece.end - 1..piece.end, piece.start..piece.end - 1]);
    });
    if length_first {
        let is_length = |piece: &std::ops::Range<usize>| {
            storage::segment::records(records)
                .any(|of| piece.start.wrapping_sub(of.start + txnlog::LENGTH_OFFSET) < 4)
        };
        pieces.sort_by_key(|piece| !is_length(piece));
    }
    for piece in pieces {
        disk.write(file, offset + piece.start, &records[piece])?;
    }
    Ok(())
}
