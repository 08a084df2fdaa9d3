//! The log writer on the simulated disk: the same order of operations as the server's own.
//!
//! Records are stored into a segment, and a round makes them durable: one sync for all that has
//! gathered, or a roll to the next file. Each step of a round is one event, so that anything may
//! happen between two of them.
//!
//! ```text
//! sync  begin, end                                                -> synced
//! roll  cut the old file, sync it; name the new one, sync the directory, store the watermark
//! ```

use std::collections::{BTreeMap, VecDeque};

use ringkeeper::pipeline::Append;
use ringkeeper::storage;
use ringkeeper::storage::segment::Segment;
use ringkeeper::storage::txnlog::{self, HEADER_BYTES, LENGTH_OFFSET, PAYLOAD_OFFSET};
use ringkeeper::storage::watermark::{DurableSlots, WATERMARK_FILE_BYTES, Watermark};
use ringkeeper::types::Zxid;

use crate::check::Marks;
use crate::disk::{Disk, DiskError, FileId, Syncing};

pub(crate) const DIRECTORY: &str = "version-2";
pub(crate) const WATERMARK: &str = "ringkeeper.watermark";
pub(crate) const TEMPORARY_LOG: &str = "version-2/ringkeeper-log.tmp";

/// Seeded bugs of the writer and of recovery, which the checkers must catch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "mutants"), expect(dead_code, reason = "made by the mutants only"))]
pub(crate) enum DiskMutant {
    /// A log's name is not made durable before its records are acknowledged.
    NoDirectorySync,
    /// What is stored is acknowledged, synced or not.
    AckBeforeSync,
    /// A sync is taken for one of all that was stored by its end.
    AckBeyondSync,
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
}

/// Where a record is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) name: String,
    pub(crate) file: FileId,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

struct Current {
    name: String,
    start: Zxid,
    file: FileId,
    segment: Segment<Vec<u8>>,
    last: Zxid,
}

/// A log that only lacks a name.
struct Prepared {
    file: FileId,
    segment: Segment<Vec<u8>>,
}

enum Step {
    CutOld,
    BeginSync(FileId),
    EndSync,
    Prepare,
    Name,
    SyncDirectory,
    StoreWatermark,
}

struct Round {
    steps: VecDeque<Step>,
    syncing: Option<Syncing>,
    through: Zxid,
    kind: RoundKind,
}

enum RoundKind {
    Sync { log: Zxid, offset: u64 },
    Roll { old: Option<(FileId, usize)>, start: Zxid },
}

pub(crate) struct LogWriter {
    step_bytes: usize,
    mutant: Option<DiskMutant>,
    current: Option<Current>,
    /// What cannot be stored before a roll is done.
    waiting: VecDeque<Append>,
    stored: Zxid,
    synced: Zxid,
    round: Option<Round>,
    prepared: Option<Prepared>,
    watermark: Watermark,
    watermark_file: FileId,
    sequence: u64,
    noted: Option<Watermark>,
    places: BTreeMap<i64, Place>,
}

impl LogWriter {
    /// A log that goes on after `last`, in a directory that recovery has put in order.
    pub(crate) fn new(
        disk: &mut Disk,
        step_bytes: usize,
        last: Zxid,
        mutant: Option<DiskMutant>,
    ) -> Result<LogWriter, DiskError> {
        let found = disk.read_name(WATERMARK).map(Watermark::decode);
        let found = found.and_then(|found| found.expect("recovery has read it"));
        let watermark_file = match disk.find(WATERMARK) {
            Some(file) => file,
            None => {
                let file = disk.create(WATERMARK)?;
                disk.set_len(file, WATERMARK_FILE_BYTES)?;
                disk.sync(file)?;
                disk.sync_directory("")?;
                file
            }
        };
        disk.set_len(watermark_file, WATERMARK_FILE_BYTES)?;
        let mut writer = LogWriter {
            step_bytes,
            mutant,
            current: None,
            waiting: VecDeque::new(),
            stored: last,
            synced: last,
            round: None,
            prepared: None,
            watermark: found.map_or(Watermark::new(Zxid::ZERO, Zxid::ZERO), |(_, found)| found),
            watermark_file,
            sequence: found.map_or(0, |(sequence, _)| sequence + 1),
            noted: None,
            places: BTreeMap::new(),
        };
        writer.prepared = Some(writer.prepare(disk)?);
        Ok(writer)
    }

    fn prepare(&self, disk: &mut Disk) -> Result<Prepared, DiskError> {
        let file = disk.create(TEMPORARY_LOG)?;
        disk.allocate(file, self.step_bytes)?;
        let segment = Segment::create(vec![0; self.step_bytes]);
        disk.write(file, 0, &segment.bytes()[..HEADER_BYTES])?;
        disk.sync(file)?;
        Ok(Prepared { file, segment })
    }

    pub(crate) fn place(&self, zxid: i64) -> Option<&Place> {
        self.places.get(&zxid)
    }

    /// Whether something is left to be made durable, or under way.
    pub(crate) fn is_idle(&self) -> bool {
        self.round.is_none() && self.waiting.is_empty() && self.stored == self.synced
    }

    /// Ends the log, idle as it is: it is cut to end with its last record.
    pub(crate) fn seal(&mut self, disk: &mut Disk) -> Result<(), DiskError> {
        assert!(self.is_idle(), "a log is sealed when all of it is durable");
        let Some(current) = self.current.take() else { return Ok(()) };
        disk.set_len(current.file, current.segment.end())?;
        disk.sync(current.file)
    }

    pub(crate) fn append(&mut self, disk: &mut Disk, append: Append) -> Result<(), DiskError> {
        if append.new_file || !self.waiting.is_empty() {
            self.waiting.push_back(append);
            return Ok(());
        }
        self.store(disk, &append)
    }

    fn store(&mut self, disk: &mut Disk, append: &Append) -> Result<(), DiskError> {
        let current = self.current.as_mut().expect("records are stored into an open log");
        assert!(current.last < append.first && append.first <= append.last, "zxids ascend");
        let start = current.segment.end();
        if let Err(full) = current.segment.append(&append.records) {
            let missing = full.needed - full.room;
            let length = current.segment.bytes().len();
            let grown = length + missing.div_ceil(self.step_bytes) * self.step_bytes;
            disk.allocate(current.file, grown)?;
            let mut longer = current.segment.bytes().to_vec();
            longer.resize(grown, 0);
            current.segment.remap(longer);
            current.segment.append(&append.records).expect("grown by what was missing");
        }
        let mut at = start;
        let mut zxid = append.first.0;
        for length in record_lengths(&append.records) {
            let (name, file) = (current.name.clone(), current.file);
            self.places.insert(zxid, Place { name, file, start: at, end: at + length });
            at += length;
            zxid += 1;
        }
        let records = &current.segment.bytes()[start..current.segment.end()];
        let length_first = self.mutant == Some(DiskMutant::LengthFirst);
        store_records(disk, current.file, start, records, length_first)?;
        current.last = append.last;
        self.stored = append.last;
        Ok(())
    }

    /// Begins the next round, if there is any work and none is under way.
    pub(crate) fn begin_round(&mut self) -> bool {
        if self.round.is_some() {
            return false;
        }
        let through = self.stored;
        if let Some(next) = self.waiting.front() {
            let start = next.first;
            let old = self.current.take().map(|of| (of.file, of.segment.end()));
            let mut steps = VecDeque::new();
            if let Some((file, _)) = old {
                steps.extend([Step::CutOld, Step::BeginSync(file), Step::EndSync]);
            }
            steps.extend([Step::Prepare, Step::Name]);
            if self.mutant != Some(DiskMutant::NoDirectorySync) {
                steps.push_back(Step::SyncDirectory);
            }
            steps.push_back(Step::StoreWatermark);
            let kind = RoundKind::Roll { old, start };
            self.round = Some(Round { steps, syncing: None, through, kind });
            return true;
        }
        if self.stored == self.synced {
            return false;
        }
        let current = self.current.as_ref().expect("what was stored is in an open log");
        let steps = match self.mutant {
            Some(DiskMutant::AckBeforeSync) => VecDeque::new(),
            _ => VecDeque::from([Step::BeginSync(current.file), Step::EndSync]),
        };
        let offset = current.segment.end() as u64;
        let kind = RoundKind::Sync { log: current.start, offset };
        self.round = Some(Round { steps, syncing: None, through, kind });
        true
    }

    /// Does the next step of the round. At its end says up to where all is durable, if that is
    /// news.
    pub(crate) fn advance(
        &mut self,
        disk: &mut Disk,
        marks: &mut Marks,
    ) -> Result<Option<Option<Zxid>>, DiskError> {
        let mut round = self.round.take().expect("a round is under way");
        if let Some(step) = round.steps.pop_front() {
            self.run(step, &mut round, disk)?;
        }
        if !round.steps.is_empty() {
            self.round = Some(round);
            return Ok(None);
        }
        let mut through = round.through;
        match round.kind {
            RoundKind::Sync { log, offset } => {
                let mut watermark = Watermark { log, offset, zxid: through, ..self.watermark };
                if self.mutant == Some(DiskMutant::AckBeyondSync) {
                    through = self.stored;
                    watermark.zxid = through;
                }
                self.noted = Some(watermark);
                self.synced = through;
                Ok(Some(Some(through)))
            }
            RoundKind::Roll { start, old } => {
                if old.is_some() {
                    marks.insert("log rolled");
                }
                let Prepared { file, segment } = self.prepared.take().expect("made before");
                let name = log_path(start);
                self.current = Some(Current { name, start, file, segment, last: through });
                let news = self.synced < through;
                self.synced = self.synced.max(through);
                while let Some(mut append) = self.waiting.pop_front() {
                    if append.new_file && append.first != start {
                        self.waiting.push_front(append);
                        break;
                    }
                    append.new_file = false;
                    self.store(disk, &append)?;
                }
                Ok(Some(news.then_some(through)))
            }
        }
    }

    fn run(&mut self, step: Step, round: &mut Round, disk: &mut Disk) -> Result<(), DiskError> {
        match (step, &round.kind) {
            (Step::CutOld, RoundKind::Roll { old: Some((file, end)), .. }) => {
                disk.set_len(*file, *end)?;
            }
            (Step::BeginSync(file), _) => round.syncing = Some(disk.begin_sync(file)?),
            (Step::EndSync, _) => {
                let syncing = round.syncing.take().expect("begun before");
                match disk.end_sync(syncing) {
                    Err(DiskError::Io) if self.mutant == Some(DiskMutant::FailedSyncIgnored) => {}
                    done => done?,
                }
            }
            (Step::Prepare, _) => {
                if self.prepared.is_none() {
                    self.prepared = Some(self.prepare(disk)?);
                }
            }
            (Step::Name, RoundKind::Roll { start, .. }) => {
                disk.rename(TEMPORARY_LOG, &log_path(*start))?;
            }
            (Step::SyncDirectory, _) => disk.sync_directory(DIRECTORY)?,
            (Step::StoreWatermark, RoundKind::Roll { start, .. }) => {
                let offset = HEADER_BYTES as u64;
                let (log, zxid) = (*start, round.through);
                self.noted = None;
                self.store_watermark(disk, Watermark { log, offset, zxid, ..self.watermark })?;
            }
            (Step::CutOld | Step::Name | Step::StoreWatermark, _) => {
                unreachable!("a step of a roll")
            }
        }
        Ok(())
    }

    /// What is done from time to time: the next file is made ahead, and the watermark stored. It
    /// may lag.
    pub(crate) fn keep(&mut self, disk: &mut Disk) -> Result<(), DiskError> {
        if self.prepared.is_none() {
            match self.prepare(disk) {
                Ok(prepared) => self.prepared = Some(prepared),
                // Tried again when it is needed.
                Err(DiskError::Full | DiskError::Io) => {}
                Err(DiskError::Crashed) => return Err(DiskError::Crashed),
            }
        }
        let Some(watermark) = self.noted.take() else { return Ok(()) };
        match self.store_watermark(disk, watermark) {
            Err(DiskError::Io) => Ok(()),
            done => done,
        }
    }

    fn store_watermark(&mut self, disk: &mut Disk, watermark: Watermark) -> Result<(), DiskError> {
        let slot = watermark.encode(self.sequence);
        let slots = DurableSlots::of(disk.read(self.watermark_file));
        disk.write(self.watermark_file, slots.offset() as usize, &slot)?;
        disk.sync(self.watermark_file)?;
        self.sequence += 1;
        self.watermark = watermark;
        Ok(())
    }
}

fn log_path(start: Zxid) -> String {
    format!("{DIRECTORY}/{}", storage::log_name(start))
}

fn record_lengths(records: &[u8]) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut at = 0;
    while at < records.len() {
        let length = txnlog::first_record_bytes(&records[at..]);
        lengths.push(length);
        at += length;
    }
    lengths
}

/// The stores of `Segment::append`, in its order: of every record all but the length, then the
/// lengths one by one. Nothing is promised of the order within one copy, so its end comes first.
fn store_records(
    disk: &mut Disk,
    file: FileId,
    offset: usize,
    records: &[u8],
    length_first: bool,
) -> Result<(), DiskError> {
    let lengths = record_lengths(records);
    for stores_lengths in [length_first, !length_first] {
        let mut at = 0;
        for length in &lengths {
            let (of_length, payload, mark) =
                (at + LENGTH_OFFSET, at + PAYLOAD_OFFSET, at + length - 1);
            let pieces = match stores_lengths {
                true => vec![of_length..payload],
                false => vec![mark..mark + 1, at..of_length, payload..mark],
            };
            for piece in pieces {
                disk.write(file, offset + piece.start, &records[piece])?;
            }
            at += length;
        }
    }
    Ok(())
}
