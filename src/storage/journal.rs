//! The log being written: which bytes go where, what is made durable in which order, and what may
//! be acknowledged then.
//!
//! Records are appended. The executor does what `next_order` and `next_round` return, and says with
//! `on_round` when a round has ended. Nothing here waits, and nothing outside decides about order.
//!
//! ```text
//! append --> queue --> stored --round--> synced --> Note the watermark --> Synced: acknowledge
//! ```
//!
//! | | mapped | direct |
//! |---|---|---|
//! | a record is stored | into the file, through its map (`segment.rs`) | into blocks in memory (`blocks.rs`) |
//! | a round | `Round::Sync` | `Round::Write`, past the page cache, durable when it ends |
//! | after a SIGKILL the file has | what was stored | what was written or on its way |
//!
//! **One round is under way at a time.** What is appended meanwhile gathers and shares the next one.
//! A round never leaves more than `UNSYNCED_BYTES_MAX` unsynced: longer extents are cut into several,
//! and records wait in the queue before they are stored into a map.
//!
//! **A roll is a round too.** Its steps are done one after the other, each ended before the next
//! begins: the old log is cut to end with its last record and synced, a file made ahead gets its
//! name, the directory is synced, and the watermark names the new log durably. Only then its first
//! record is stored. So a log that the watermark names exists and has a header, whatever happens.
//!
//! **The watermark comes before the acknowledgement.** After a round the watermark goes into a mapped
//! page first, which the kernel keeps when the process is killed; only then the zxid is handed out.
//!
//! **What else must be durable** is asked for and awaited in the same way: the epoch files of an
//! ensemble, a truncation, and a snapshot that replaces everything. A truncation moves the watermark
//! back first, then removes the snapshots beyond, then later logs from the newest on, and cuts the log
//! that stays. A crash between any two of these leaves a prefix of history that is at least as long as
//! what stays.
//!
//! **A replacement shows the old state or the new one**, to us and to ZooKeeper, which both begin with
//! the newest snapshot and replay what the logs hold beyond it. What the old logs hold beyond the new
//! snapshot goes first, from the newest log on: what is left is a prefix of the old history that
//! reaches at least as far as the new snapshot does. Then the new snapshot becomes the newest, in one
//! step: it gets its name, or, where old snapshots are named beyond it, it has its name already and
//! the last of those goes. Only then the watermark names the new snapshot: until then the old one
//! stands, and a server whose history was cut counts as one that has lost something. Old files are
//! renamed (`SET_ASIDE_PREFIX`), and stay until the leader has this server's acknowledgement.
//!
//! **The first error is the last.** A round that failed never ends here: the process does, and
//! nothing that was not synced is acknowledged. The kernel has dropped what it could not write, and
//! would not tell at the next sync.
//!
//! After `SyncRequestProcessor` and `FileTxnLog`, which sync no directory, keep no watermark, and
//! begin a log with the first record in it.

use std::collections::VecDeque;
use std::time::Duration;

use crate::types::{Epoch, Zxid};

use super::UNSYNCED_BYTES_MAX;
use super::blocks::{Blocks, Extent};
use super::epoch::{ACCEPTED_EPOCH_NAME, CURRENT_EPOCH_NAME};
use super::gathering::{Answered, Gathering, Shaping};
use super::segment::records;
use super::txnlog::{HEADER_BYTES, first_record_checksum};
use super::watermark::{UNBOUNDED, Watermark};

/// The name of a log before it has one, in the directory of logs. ZooKeeper does not look at it, and
/// a start removes it.
pub const TEMPORARY_NAME: &str = "ringkeeper-log.tmp";

/// The name of an epoch file before it has one, in the directory of snapshots. Not `currentEpoch.tmp`:
/// that name means something to ZooKeeper.
pub const EPOCH_TEMPORARY_NAME: &str = "ringkeeper-epoch.tmp";

/// The name of a snapshot that a leader sends, in the directory of snapshots, until it replaces what is
/// there. A start removes it.
pub const RECEIVED_NAME: &str = "ringkeeper-received.tmp";

/// What the name of a log or a snapshot begins with that a leader's snapshot has replaced. Neither
/// ZooKeeper nor a start of ours reads such a file.
pub const SET_ASIDE_PREFIX: &str = "ringkeeper-replaced.";

/// How far ahead of a direct log zeros are written.
const ZEROED_BYTES: u64 = 16 << 20;
/// How much of it before the log has its name: a start waits for this. Never less at a time.
pub const ZEROED_FIRST_BYTES: u64 = 256 << 10;

/// How a log's bytes reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackEnd {
    /// Stored into a mapped file, and synced.
    Mapped,
    /// Written past the page cache, durable when written.
    Direct,
}

/// Records for the log, whole and framed, one after the other; of one epoch, with consecutive zxids.
#[derive(Debug, Default)]
pub struct Append {
    /// The first record opens a new log file, named by its zxid; the one before is complete.
    pub new_file: bool,
    pub first: Zxid,
    pub last: Zxid,
    pub records: Vec<u8>,
}

/// How the log is written.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub back_end: BackEnd,
    /// How much room is allocated at a time.
    pub step_bytes: u64,
    /// False: nothing is synced (`forceSync=no`), and a crash of the machine may lose what was
    /// acknowledged. Only a mapped log can do without.
    pub force_sync: bool,
    /// How writes gather, where an operator wants them to.
    pub shaping: Option<Shaping>,
    /// Otherwise, whether a round waits a moment for clients that were just answered.
    pub waits_for_answered: bool,
}

/// What is to be done at once, in order.
#[derive(Debug)]
pub enum Order {
    /// Append these to the mapped log, at once (`segment.rs` has the order of the stores).
    Store(Vec<u8>),
    /// Memory that was copied out of, to be used again.
    Spare(Vec<u8>),
    /// Store the watermark into a cached slot, at once, and soon into a durable one.
    Note { sequence: u64, watermark: Watermark },
    /// All up to here is durable. It may be acknowledged, now that all orders before are done.
    Synced { through: Zxid, batch: Batch },
    /// What was asked for with `store_epoch`, `truncate` or `replace` is durable.
    Stored(Storing),
    /// Make room ahead of need. Nobody waits for it, and it may fail.
    GrowAhead(Growth),
    /// Make the next log ahead of need. Nobody waits for it, and it may fail.
    MakeAhead,
}

/// What makes stored records durable, or is needed before they can be stored.
#[derive(Debug)]
pub enum Round {
    /// Sync the mapped log.
    Sync,
    /// Write to the direct log, past the page cache.
    Write(Extent),
    /// Do all of these, one after the other, where it is no harm to wait for the disk.
    Steps(Vec<Step>),
}

/// One step of a round. It has ended, durably where it says so, before the next begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make room in the current log.
    Grow(Growth),
    /// End the current log at this length. Room is not made in it any more.
    Cut { len: u64 },
    /// Sync the current log, which is not written any more.
    SyncCut,
    /// Make the next log under its temporary name (`MAKING`), unless it was made ahead.
    Make,
    /// Give the next log its name.
    Name { start: Zxid },
    /// Sync the directory of logs.
    SyncDirectory,
    /// Store the watermark into a durable slot, and sync it.
    StoreWatermark { sequence: u64, watermark: Watermark },
    /// The same with one that says less than those before, and also into the copy in the directory of
    /// snapshots: no watermark may say more than a truncation leaves.
    TakeBackWatermark { sequence: u64, watermark: Watermark },
    /// Remove a snapshot.
    RemoveSnapshot { name: String },
    /// Remove a log that is not the current one.
    RemoveLog { name: String },
    /// End a log that is not the current one at this length, and sync it.
    CutLog { name: String, len: u64 },
    /// Give the snapshot that was received its name.
    NameSnapshot { zxid: Zxid },
    /// Rename a snapshot so that nobody reads it (`SET_ASIDE_PREFIX`).
    SetAsideSnapshot { name: String },
    /// Rename a log that is not the current one so that nobody reads it.
    SetAsideLog { name: String },
    /// Write an epoch file under its temporary name, and sync it.
    WriteEpoch { file: EpochFile, epoch: Epoch },
    /// Give the epoch file that was written its name.
    NameEpoch { file: EpochFile },
    /// Sync the directory of snapshots, in which the epoch files are too.
    SyncSnapshots,
}

/// An epoch file of a member of an ensemble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochFile {
    Accepted,
    Current,
}

impl EpochFile {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            EpochFile::Accepted => ACCEPTED_EPOCH_NAME,
            EpochFile::Current => CURRENT_EPOCH_NAME,
        }
    }
}

/// Where a log ends that is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogCut {
    pub name: String,
    /// The zxid in the name.
    pub log: Zxid,
    /// The end of the last record that stays.
    pub offset: u64,
}

/// What a truncation leaves, and what it takes away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truncation {
    /// The last transaction that stays.
    pub zxid: Zxid,
    /// The log that it is in. `None`: it is in no log, but a snapshot ends with it.
    pub cut: Option<LogCut>,
    /// The logs of what comes after, oldest first.
    pub later_logs: Vec<String>,
    /// The snapshots of later states.
    pub later_snapshots: Vec<String>,
}

/// A leader's snapshot, whole and synced under `RECEIVED_NAME`, and what it replaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replacement {
    /// The last transaction that the snapshot holds, as the leader says.
    pub zxid: Zxid,
    /// The log that begins at or before `zxid` and goes beyond: where that begins.
    pub cut: Option<LogCut>,
    /// The logs that begin beyond `zxid`, oldest first.
    pub later_logs: Vec<String>,
    /// The snapshots of states beyond `zxid`, newest first.
    pub later_snapshots: Vec<String>,
    /// The other logs, and the other snapshots but for one of the same name.
    pub earlier_logs: Vec<String>,
    pub earlier_snapshots: Vec<String>,
}

/// What is made durable besides records, when asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storing {
    Epoch { file: EpochFile, epoch: Epoch },
    Truncation(Truncation),
    Replacement(Replacement),
}

impl Storing {
    /// Where history ends then, if this changes it.
    #[must_use]
    pub fn end(&self) -> Option<Zxid> {
        match self {
            Storing::Epoch { .. } => None,
            Storing::Truncation(Truncation { zxid, .. })
            | Storing::Replacement(Replacement { zxid, .. }) => Some(*zxid),
        }
    }
}

/// How the next log is made under its temporary name, in this order. So it has a durable header
/// before it has a name.
pub const MAKING: [Making; 3] = [Making::Create, Making::Header, Making::Sync];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Making {
    /// An empty file with `first_room`, in place of one that was left over.
    Create,
    Header,
    Sync,
}

/// Room in a log: its length, and up to where it can be written to. Of a mapped log that is the
/// same; a direct one has zeros written up to there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Growth {
    pub len: u64,
    pub ready: u64,
}

/// The room that a log has from the beginning.
#[must_use]
pub fn first_room(back_end: BackEnd, step_bytes: u64) -> Growth {
    let ready = match back_end {
        BackEnd::Mapped => step_bytes,
        BackEnd::Direct => step_bytes.min(ZEROED_FIRST_BYTES),
    };
    Growth { len: step_bytes, ready }
}

/// Records that wait for a round or were made durable by one, as metrics count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub count: u64,
    /// From when the first of them was appended until the round began.
    pub waited: Duration,
    /// How long the round took.
    pub took: Duration,
}

/// An append, as far as it is not stored yet.
#[derive(Debug)]
struct Queued {
    append: Append,
    /// How many of its bytes are stored.
    at: usize,
    /// The zxid of the next record.
    next: Zxid,
}

/// Where records end that were stored together.
#[derive(Clone, Copy, Debug)]
struct Boundary {
    offset: u64,
    zxid: Zxid,
    /// Of the last of them.
    checksum: u32,
    count: u64,
    since: Duration,
}

/// The log being written.
#[derive(Debug)]
struct Current {
    start: Zxid,
    bytes: Bytes,
    /// Where the last record ends that is durable.
    synced: u64,
    /// Up to where the file can be written to.
    room: u64,
    /// Whether room is made ahead of need.
    is_growing: bool,
    /// The last zxid stored in it, or before it.
    last: Zxid,
}

#[derive(Debug)]
enum Bytes {
    Mapped { end: u64 },
    Direct(Blocks),
}

/// The round that is under way.
#[derive(Debug)]
enum Under {
    /// Makes what was stored durable, up to this offset.
    Sync {
        end: u64,
        began: Duration,
    },
    Grow(Growth),
    Roll {
        start: Zxid,
        through: Zxid,
        watermark: Watermark,
        began: Duration,
    },
    Store(Storing),
}

/// See the module.
#[derive(Debug)]
pub struct Journal {
    settings: Settings,
    current: Option<Current>,
    /// What is not stored yet: it waits for a roll, for room, or for a sync.
    queue: VecDeque<Queued>,
    /// What is stored and not durable yet.
    boundaries: VecDeque<Boundary>,
    /// How many records that are.
    waiting: u64,
    /// Ends of epochs that are stored and not yet in the watermark.
    epoch_ends: VecDeque<Zxid>,
    appended: Zxid,
    stored: Zxid,
    /// The checksum of the last record that was stored, where it is known.
    stored_checksum: Option<u32>,
    synced: Zxid,
    /// What is to be stored once all that was appended before is durable.
    storing: VecDeque<(Zxid, Storing)>,
    /// What the newest round made durable; `None` before the first log of a directory.
    mark: Option<Watermark>,
    /// Of the newest watermark.
    sequence: u64,
    round: Option<Under>,
    gathering: Gathering,
    orders: VecDeque<Order>,
    #[cfg(feature = "mutants")]
    mutant: Option<Mutant>,
}

/// Seeded bugs, for proving the simulation's checkers. Never in a release.
#[cfg(feature = "mutants")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// A sync is taken for one of all that was stored by its end.
    AckBeyondSync,
    /// The watermark is stored only when a log is begun.
    WatermarkLate,
}

impl Journal {
    /// Goes on after `last` in a directory that recovery has put in order. `mark` is the newest
    /// watermark with its sequence. The first append opens a new file.
    #[must_use]
    pub fn new(settings: Settings, last: Zxid, mark: Option<(u64, Watermark)>) -> Journal {
        let can_sync = settings.force_sync || settings.back_end == BackEnd::Mapped;
        assert!(can_sync, "a direct log that is not synced is not written either");
        let gathering = match Gathering::new(settings.shaping) {
            Gathering::Nothing if settings.waits_for_answered => {
                Gathering::Answered(Answered::default())
            }
            gathering => gathering,
        };
        Journal {
            settings,
            current: None,
            queue: VecDeque::new(),
            boundaries: VecDeque::new(),
            waiting: 0,
            epoch_ends: VecDeque::new(),
            appended: last,
            stored: last,
            stored_checksum: mark.and_then(|(_, mark)| mark.checksum.filter(|_| mark.zxid == last)),
            synced: last,
            storing: VecDeque::new(),
            mark: mark.map(|(_, mark)| mark),
            sequence: mark.map_or(0, |(sequence, _)| sequence),
            round: None,
            gathering,
            orders: VecDeque::new(),
            #[cfg(feature = "mutants")]
            mutant: None,
        }
    }

    /// From now on with a seeded bug.
    #[cfg(feature = "mutants")]
    pub fn set_mutant(&mut self, mutant: Option<Mutant>) {
        self.mutant = mutant;
    }

    /// Takes records. `next_order` and `next_round` say what follows from it.
    pub fn append(&mut self, now: Duration, append: Append) {
        assert!(self.appended < append.first && append.first <= append.last, "zxids ascend");
        assert!(!self.changes_history(), "nothing is appended before that has ended");
        assert!(append.first.epoch() == append.last.epoch(), "an append is of one epoch");
        assert!(
            append.new_file || self.current.is_some() || !self.queue.is_empty(),
            "the first append opens a log"
        );
        debug_assert_eq!(
            records(&append.records).count() as i64,
            append.last.0 - append.first.0 + 1,
            "the zxids of an append are consecutive"
        );
        self.gathering.on_append(now);
        self.appended = append.last;
        let next = append.first;
        self.queue.push_back(Queued { append, at: 0, next });
        self.store(now);
    }

    /// Stores an epoch once all that was appended so far is durable. `Order::Stored` says when it is.
    pub fn store_epoch(&mut self, file: EpochFile, epoch: Epoch) {
        self.storing.push_back((self.appended, Storing::Epoch { file, epoch }));
    }

    /// Takes back what comes after a transaction. `Order::Stored` says when that is done, and the
    /// next append opens a new file.
    ///
    /// # Panics
    /// If anything that was appended is not durable, or is not behind what stays.
    pub fn truncate(&mut self, truncation: Truncation) {
        assert!(self.is_idle(), "a log is truncated when it is at rest");
        assert!(truncation.zxid <= self.synced, "what stays is there");
        self.storing.push_back((self.appended, Storing::Truncation(truncation)));
    }

    /// Replaces all that there is by a snapshot that was received. `Order::Stored` says when that is
    /// done, and the next append opens a new file.
    ///
    /// # Panics
    /// If anything that was appended is not durable.
    pub fn replace(&mut self, replacement: Replacement) {
        assert!(self.is_idle(), "a log is replaced when it is at rest");
        self.storing.push_back((self.appended, Storing::Replacement(replacement)));
    }

    /// Whether a truncation or a replacement is asked for and has not ended.
    fn changes_history(&self) -> bool {
        let changes = |storing: &Storing| storing.end().is_some();
        let is_under = matches!(&self.round, Some(Under::Store(storing)) if changes(storing));
        is_under || self.storing.iter().any(|(_, storing)| changes(storing))
    }

    /// Room was made in the current log, up to here.
    pub fn on_room(&mut self, now: Duration, end: u64) {
        if let Some(current) = self.current.as_mut().filter(|current| current.room < end) {
            current.room = end;
            self.store(now);
        }
    }

    /// Making room ahead of need has ended, whether it succeeded or not.
    pub fn on_grown_ahead(&mut self) {
        if let Some(current) = &mut self.current {
            current.is_growing = false;
        }
    }

    /// The next thing to do at once. `None`: nothing, for now.
    pub fn next_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }

    /// The next round to begin. `None`: one is under way, there is nothing to make durable, or it
    /// is put off to gather more.
    pub fn next_round(&mut self, now: Duration) -> Option<Round> {
        if self.round.is_some() {
            return None;
        }
        self.begin_round(now)
    }

    /// How much longer a round is put off to gather more records. `None`: no round is put off.
    #[must_use]
    pub fn gathers(&self, now: Duration) -> Option<Duration> {
        let may_wait = self.round.is_none() && self.stored != self.synced && !self.is_in_parts();
        may_wait.then(|| self.gathering.left(now, self.waiting)).flatten()
    }

    /// Where the current log ends.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.current.as_ref().map_or(0, Current::end)
    }

    /// Whether a round is under way.
    #[must_use]
    pub fn in_round(&self) -> bool {
        self.round.is_some()
    }

    /// Whether all that was appended is durable and handed out.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.round.is_none()
            && self.orders.is_empty()
            && self.storing.is_empty()
            && self.appended == self.synced
    }

    /// No round is put off any more.
    pub fn hurry(&mut self) {
        self.gathering = Gathering::Nothing;
    }

    /// The end of the log, idle as it is: the last steps. Nothing more will be appended.
    pub fn seal(&mut self) -> Vec<Step> {
        assert!(self.is_idle(), "a log is sealed when all of it is durable");
        let Some(current) = self.current.take() else { return Vec::new() };
        let mut steps = vec![Step::Cut { len: current.end() }, Step::SyncCut];
        if let Some(watermark) = self.mark {
            self.sequence += 1;
            steps.push(Step::StoreWatermark { sequence: self.sequence, watermark });
        }
        steps
    }

    /// The round under way has ended, without an error. `written` is the extent it wrote.
    pub fn on_round(&mut self, now: Duration, written: Option<Extent>) {
        match self.round.take().expect("a round ends that has begun") {
            Under::Sync { end, began } => self.on_synced(now, end, began, written),
            Under::Grow(Growth { ready, .. }) => self.on_room(now, ready),
            Under::Roll { start, through, watermark, began } => {
                self.on_roll_synced(now, through, began);
                self.on_rolled(now, start, through, watermark);
            }
            Under::Store(storing) => {
                if let Some(zxid) = storing.end() {
                    (self.appended, self.stored, self.synced) = (zxid, zxid, zxid);
                    self.stored_checksum = None;
                    self.epoch_ends.clear();
                    // What was asked for behind it follows what is left.
                    self.storing.iter_mut().for_each(|(after, _)| *after = zxid.min(*after));
                }
                self.orders.push_back(Order::Stored(storing));
            }
        }
    }

    fn on_synced(&mut self, now: Duration, end: u64, began: Duration, written: Option<Extent>) {
        let current = self.current.as_mut().expect("it was written to");
        if let (Bytes::Direct(blocks), Some(extent)) = (&mut current.bytes, written) {
            blocks.give_back(extent);
        }
        let took = now.saturating_sub(began);
        let mut batch = Batch { took, ..Batch::default() };
        let mut last = None;
        while let Some(boundary) = self.boundaries.pop_front_if(|of| of.offset <= end) {
            let waited = began.saturating_sub(boundary.since);
            batch = Batch { count: batch.count + boundary.count, ..batch };
            batch.waited = batch.waited.max(waited);
            last = Some(boundary);
        }
        let Some(boundary) = last else { return };
        self.waiting -= batch.count;
        current.synced = boundary.offset;
        let start = current.start;
        self.gathering.on_synced(now, batch.count, self.waiting, took);
        self.synced_through(start, boundary, batch);
        self.store(now);
    }

    /// Orders what follows from it: first the watermark, then the acknowledgement.
    fn synced_through(&mut self, log: Zxid, boundary: Boundary, batch: Batch) {
        let Boundary { offset, zxid, checksum, .. } = boundary;
        #[cfg(feature = "mutants")]
        let zxid = if self.mutant == Some(Mutant::AckBeyondSync) { self.stored } else { zxid };
        assert!(self.synced < zxid && zxid <= self.stored);
        self.synced = zxid;
        let mut mark = self.mark.expect("set when the log was begun");
        (mark.log, mark.offset, mark.zxid, mark.checksum) = (log, offset, zxid, Some(checksum));
        while let Some(end) = self.epoch_ends.pop_front_if(|end| *end <= zxid) {
            mark.end_epoch(end);
        }
        self.mark = Some(mark);
        let synced = Order::Synced { through: zxid, batch };
        if !self.settings.force_sync || self.has_late_watermark() {
            // Where nothing is synced, a watermark would claim too much.
            self.orders.push_back(synced);
            return;
        }
        self.sequence += 1;
        self.orders.push_back(Order::Note { sequence: self.sequence, watermark: mark });
        self.orders.push_back(synced);
    }

    /// The steps of a roll have synced the log before.
    fn on_roll_synced(&mut self, now: Duration, through: Zxid, began: Duration) {
        if self.synced < through {
            let since = self.boundaries.front().map_or(began, |boundary| boundary.since);
            let (waited, took) = (began.saturating_sub(since), now.saturating_sub(began));
            let batch = Batch { count: std::mem::take(&mut self.waiting), waited, took };
            self.boundaries.clear();
            self.synced = through;
            self.orders.push_back(Order::Synced { through, batch });
        }
    }

    fn on_rolled(&mut self, now: Duration, start: Zxid, through: Zxid, watermark: Watermark) {
        let Settings { back_end, step_bytes, .. } = self.settings;
        self.mark = Some(watermark);
        while self.epoch_ends.pop_front_if(|end| *end <= through).is_some() {}
        let bytes = match back_end {
            BackEnd::Mapped => Bytes::Mapped { end: HEADER_BYTES as u64 },
            BackEnd::Direct => {
                let mut blocks = Blocks::create();
                // The header was written when the file was made.
                let header = blocks.take();
                blocks.give_back(header);
                Bytes::Direct(blocks)
            }
        };
        self.current = Some(Current {
            start,
            bytes,
            synced: HEADER_BYTES as u64,
            room: first_room(back_end, step_bytes).ready,
            is_growing: false,
            last: through,
        });
        // The append that asked for this log; a later one may ask for another.
        let front = self.queue.front_mut().expect("an append has asked for the log");
        assert!(front.append.new_file && front.append.first == start);
        front.append.new_file = false;
        self.store(now);
        // The log in use comes first.
        self.orders.push_back(Order::MakeAhead);
    }

    /// Stores as much of the queue as may be stored.
    fn store(&mut self, now: Duration) {
        while let Some(queued) = self.queue.front_mut() {
            let Some(current) = self.current.as_mut().filter(|_| !queued.append.new_file) else {
                return;
            };
            let taken = current.fitting(&queued.append.records[queued.at..]);
            if taken.bytes == 0 {
                return;
            }
            let (from, first) = (queued.at, queued.next);
            queued.at += taken.bytes;
            let is_whole = queued.at == queued.append.records.len();
            queued.next = if is_whole {
                queued.append.last.next()
            } else {
                Zxid(first.0 + i64::try_from(taken.records).expect("a count of records"))
            };
            let last = Zxid(queued.next.0 - 1);
            assert!(current.last < first && first <= last, "zxids ascend");
            if Zxid::ZERO < current.last && current.last.epoch() < first.epoch() {
                self.epoch_ends.push_back(current.last);
            }
            let count = (last.0 - first.0 + 1).unsigned_abs();
            let stored = &queued.append.records[from..queued.at];
            let last_record = records(stored).last().expect("whole records were taken");
            let checksum = first_record_checksum(&stored[last_record.start..]);
            let whole = is_whole && from == 0;
            let records = match &mut current.bytes {
                Bytes::Direct(blocks) => {
                    blocks.append(&queued.append.records[from..queued.at]);
                    None
                }
                Bytes::Mapped { end } => {
                    *end += taken.bytes as u64;
                    Some(match whole {
                        true => std::mem::take(&mut queued.append.records),
                        false => queued.append.records[from..queued.at].to_vec(),
                    })
                }
            };
            (current.last, self.stored, self.stored_checksum) = (last, last, Some(checksum));
            let offset = current.end();
            let boundary = Boundary { offset, zxid: last, checksum, count, since: now };
            self.boundaries.push_back(boundary);
            self.waiting += count;
            if let Some(growth) = current.growth_ahead(self.settings) {
                current.is_growing = true;
                self.orders.push_back(Order::GrowAhead(growth));
            }
            self.orders.extend(records.map(Order::Store));
            if is_whole {
                let queued = self.queue.pop_front().expect("it was looked at");
                if 0 < queued.append.records.capacity() {
                    self.orders.push_back(Order::Spare(queued.append.records));
                }
            }
        }
    }

    fn begin_round(&mut self, now: Duration) -> Option<Round> {
        if let Some((_, storing)) = self.storing.pop_front_if(|(after, _)| *after <= self.synced) {
            return Some(self.begin_storing(storing));
        }
        if self.queue.front().is_some_and(|queued| queued.append.new_file)
            && !self.must_write_first()
        {
            return Some(self.begin_roll(now));
        }
        if self.stored != self.synced {
            if !self.is_in_parts() && self.gathers(now).is_some_and(|left| !left.is_zero()) {
                return None;
            }
            return Some(self.begin_sync(now));
        }
        // The queue waits for room, since there is nothing that it could wait for a sync of.
        let queued = self.queue.front()?;
        let current = self.current.as_ref().expect("a log is begun with a roll");
        let first = records(&queued.append.records[queued.at..]).next().expect("there are more");
        let growth = growth_to(current.end() + first.len() as u64, self.settings.step_bytes);
        self.round = Some(Under::Grow(growth));
        Some(Round::Steps(vec![Step::Grow(growth)]))
    }

    fn begin_sync(&mut self, now: Duration) -> Round {
        let step_bytes = self.settings.step_bytes;
        let queued = self.waiting;
        let is_in_parts = self.is_in_parts();
        let current = self.current.as_mut().expect("what was stored is in an open log");
        let round = match &mut current.bytes {
            Bytes::Mapped { end } => {
                self.round = Some(Under::Sync { end: *end, began: now });
                Round::Sync
            }
            Bytes::Direct(blocks) if current.room < blocks.file_bytes() => {
                let growth = growth_to(blocks.file_bytes(), step_bytes);
                let growth = Growth { ready: blocks.file_bytes(), ..growth };
                self.round = Some(Under::Grow(growth));
                return Round::Steps(vec![Step::Grow(growth)]);
            }
            Bytes::Direct(blocks) => {
                let extent = blocks.take();
                self.round = Some(Under::Sync { end: extent.end(), began: now });
                Round::Write(extent)
            }
        };
        if !is_in_parts {
            self.gathering.on_begin(queued);
        }
        round
    }

    fn begin_roll(&mut self, now: Duration) -> Round {
        let start = self.queue.front().expect("it asks for a log").append.first;
        let through = self.stored;
        let mut watermark = Watermark::new(start, through);
        watermark.checksum = self.stored_checksum;
        if !self.settings.force_sync {
            watermark.offset = UNBOUNDED;
        }
        watermark.epoch_ends = self.mark.map_or(watermark.epoch_ends, |mark| mark.epoch_ends);
        for end in self.epoch_ends.iter().filter(|end| **end <= through) {
            watermark.end_epoch(*end);
        }
        let mut steps = self.ending();
        self.sequence += 1;
        steps.extend([
            Step::Make,
            Step::Name { start },
            Step::SyncDirectory,
            Step::StoreWatermark { sequence: self.sequence, watermark },
        ]);
        self.gathering.on_interruption();
        self.round = Some(Under::Roll { start, through, watermark, began: now });
        Round::Steps(steps)
    }

    fn begin_storing(&mut self, storing: Storing) -> Round {
        let steps = match &storing {
            Storing::Epoch { file, epoch } => vec![
                Step::WriteEpoch { file: *file, epoch: *epoch },
                Step::NameEpoch { file: *file },
                Step::SyncSnapshots,
            ],
            Storing::Truncation(truncation) => self.truncating(truncation),
            Storing::Replacement(replacement) => self.replacing(replacement),
        };
        self.round = Some(Under::Store(storing));
        Round::Steps(steps)
    }

    fn truncating(&mut self, truncation: &Truncation) -> Vec<Step> {
        let Truncation { zxid, cut, later_logs, later_snapshots } = truncation;
        let mut steps = self.ending();
        let mark = match cut {
            Some(LogCut { log, offset, .. }) => {
                let mut mark = self.mark.unwrap_or_else(|| Watermark::new(*log, *zxid));
                mark.truncate(*log, *offset, *zxid);
                mark
            }
            None => Watermark::of_snapshot(*zxid),
        };
        steps.push(self.taking_back(mark));
        let snapshots = later_snapshots.iter().cloned();
        steps.extend(snapshots.map(|name| Step::RemoveSnapshot { name }));
        steps.push(Step::SyncSnapshots);
        // From the newest on, each durably gone before the one before it: no hole at any moment.
        for name in later_logs.iter().rev().cloned() {
            steps.extend([Step::RemoveLog { name }, Step::SyncDirectory]);
        }
        steps.extend(cut.as_ref().map(LogCut::step));
        steps
    }

    fn replacing(&mut self, replacement: &Replacement) -> Vec<Step> {
        let Replacement { zxid, .. } = replacement;
        let (snapshots, logs) = (&replacement.later_snapshots, &replacement.later_logs);
        let aside = |name: &String| Step::SetAsideSnapshot { name: name.clone() };
        let name = [Step::NameSnapshot { zxid: *zxid }, Step::SyncSnapshots];
        let mut steps = self.ending();
        if !snapshots.is_empty() {
            // Nobody begins with it as long as there is a newer one.
            steps.extend(name.clone());
        }
        // From the newest on, each durably gone before the one before it: no hole at any moment.
        for name in logs.iter().rev().cloned() {
            steps.extend([Step::SetAsideLog { name }, Step::SyncDirectory]);
        }
        steps.extend(replacement.cut.as_ref().map(LogCut::step));
        if snapshots.is_empty() {
            steps.extend(name);
        } else {
            steps.extend(snapshots.iter().map(aside));
            steps.push(Step::SyncSnapshots);
        }
        steps.push(self.taking_back(Watermark::of_snapshot(*zxid)));
        // They hold nothing that anybody replays.
        let logs = replacement.earlier_logs.iter().cloned();
        steps.extend(logs.map(|name| Step::SetAsideLog { name }));
        steps.extend(replacement.earlier_snapshots.iter().map(aside));
        steps.extend([Step::SyncDirectory, Step::SyncSnapshots]);
        steps
    }

    /// Ends the current log, if there is one: history does not go on in it.
    fn ending(&mut self) -> Vec<Step> {
        let ended = self.current.take();
        let steps = ended.map(|current| [Step::Cut { len: current.end() }, Step::SyncCut]);
        steps.into_iter().flatten().collect()
    }

    fn taking_back(&mut self, watermark: Watermark) -> Step {
        self.mark = Some(watermark);
        self.sequence += 1;
        Step::TakeBackWatermark { sequence: self.sequence, watermark }
    }

    /// Whether a roll has to wait until all that was stored is durable. A mapped log is synced by
    /// the steps of the roll.
    fn must_write_first(&self) -> bool {
        self.settings.back_end == BackEnd::Direct && self.stored != self.synced
    }

    /// Whether an extent was written that no record ended in: the rest of it is not put off.
    fn is_in_parts(&self) -> bool {
        let Some(Current { bytes: Bytes::Direct(blocks), synced, .. }) = &self.current else {
            return false;
        };
        synced + UNSYNCED_BYTES_MAX <= blocks.end()
    }

    #[cfg(not(feature = "mutants"))]
    #[expect(clippy::unused_self, reason = "the same call with and without mutants")]
    fn has_late_watermark(&self) -> bool {
        false
    }

    #[cfg(feature = "mutants")]
    fn has_late_watermark(&self) -> bool {
        self.mutant == Some(Mutant::WatermarkLate)
    }
}

impl LogCut {
    fn step(&self) -> Step {
        Step::CutLog { name: self.name.clone(), len: self.offset }
    }
}

/// How much may be stored at once.
struct Fitting {
    bytes: usize,
    /// How many records that are, where it is not all.
    records: usize,
}

impl Current {
    fn end(&self) -> u64 {
        match &self.bytes {
            Bytes::Mapped { end } => *end,
            Bytes::Direct(blocks) => blocks.end(),
        }
    }

    /// How much of `framed` may be stored now. All of it into memory; into a map as much as there
    /// is room for, and no record that would begin too far behind the last sync.
    fn fitting(&self, framed: &[u8]) -> Fitting {
        let (end, room) = (self.end(), self.room);
        let bound = self.synced + UNSYNCED_BYTES_MAX;
        let is_whole = end + framed.len() as u64 <= room.min(bound);
        if is_whole || matches!(self.bytes, Bytes::Direct(_)) {
            return Fitting { bytes: framed.len(), records: 0 };
        }
        let mut fitting = Fitting { bytes: 0, records: 0 };
        for record in records(framed) {
            if bound <= end + record.start as u64 || room < end + record.end as u64 {
                break;
            }
            fitting = Fitting { bytes: record.end, records: fitting.records + 1 };
        }
        fitting
    }

    /// Room that will soon be needed, if it is not there and nobody makes it.
    fn growth_ahead(&self, settings: Settings) -> Option<Growth> {
        let step_bytes = settings.step_bytes;
        let left = self.room.saturating_sub(self.end());
        if self.is_growing {
            return None;
        }
        match self.bytes {
            Bytes::Mapped { .. } => {
                (left < step_bytes / 4).then(|| growth_to(self.room + step_bytes, step_bytes))
            }
            Bytes::Direct(_) => {
                let ahead = ZEROED_BYTES.min(step_bytes).max(ZEROED_FIRST_BYTES);
                let ready = (self.end() + ahead).next_multiple_of(ZEROED_FIRST_BYTES);
                (left < ahead / 2).then(|| Growth { ready, ..growth_to(ready, step_bytes) })
            }
        }
    }
}

/// Room for so many bytes, in steps.
fn growth_to(bytes: u64, step_bytes: u64) -> Growth {
    let len = bytes.next_multiple_of(step_bytes);
    Growth { len, ready: len }
}

#[cfg(test)]
mod tests {
    use super::super::txnlog;
    use super::*;
    use crate::record::txn::{Txn, TxnHeader};
    use crate::types::Epoch;

    const BACK_ENDS: [BackEnd; 2] = [BackEnd::Mapped, BackEnd::Direct];
    const NOW: Duration = Duration::from_secs(7);

    fn settings(back_end: BackEnd) -> Settings {
        Settings {
            back_end,
            step_bytes: 8 << 20,
            force_sync: true,
            shaping: None,
            waits_for_answered: false,
        }
    }

    fn append(new_file: bool, zxids: std::ops::RangeInclusive<i64>, extra: usize) -> Append {
        let data = vec![7; extra];
        let mut records = Vec::new();
        for zxid in zxids.clone() {
            let txn = Txn::SetData { path: "/a".into(), data: Some(&data), version: 1 };
            let header = TxnHeader { client_id: 1, cxid: 2, zxid, time: 3, kind: txn.kind() };
            txnlog::append_txn(&mut records, &header, &txn, None);
        }
        Append { new_file, first: Zxid(*zxids.start()), last: Zxid(*zxids.end()), records }
    }

    fn orders(journal: &mut Journal) -> Vec<Order> {
        std::iter::from_fn(|| journal.next_order()).collect()
    }

    /// Ends the round that begins now, and returns what it was and the orders after it.
    fn round(journal: &mut Journal) -> Option<(Round, Vec<Order>)> {
        let round = journal.next_round(NOW)?;
        assert!(journal.in_round());
        assert!(journal.next_round(NOW).is_none(), "one round at a time");
        let (round, written) = match round {
            Round::Write(extent) => (Round::Sync, Some(extent)),
            round => (round, None),
        };
        journal.on_round(NOW, written);
        Some((round, orders(journal)))
    }

    fn begun(back_end: BackEnd) -> Journal {
        let mut journal = Journal::new(settings(back_end), Zxid(0), None);
        journal.append(NOW, append(true, 1..=1, 10));
        assert!(orders(&mut journal).is_empty(), "nothing is stored before the log is begun");
        let (roll, _) = round(&mut journal).unwrap();
        assert!(matches!(roll, Round::Steps(_)));
        round(&mut journal).unwrap();
        assert!(journal.is_idle());
        journal
    }

    fn synced(orders: &[Order]) -> Option<Zxid> {
        orders.iter().rev().find_map(|order| match order {
            Order::Synced { through, .. } => Some(*through),
            _ => None,
        })
    }

    #[test]
    fn the_watermark_is_stored_before_anything_is_acknowledged() {
        for back_end in BACK_ENDS {
            let mut journal = begun(back_end);
            for zxid in 2..9 {
                journal.append(NOW, append(false, zxid..=zxid, 10));
                orders(&mut journal);
                let (_, orders) = round(&mut journal).unwrap();
                let [Order::Note { watermark, .. }, Order::Synced { through, batch }] = &orders[..]
                else {
                    panic!("{orders:?}")
                };
                assert_eq!((watermark.zxid, *through), (Zxid(zxid), Zxid(zxid)));
                assert_eq!((watermark.offset, batch.count), (journal.end(), 1));
                let record = append(false, zxid..=zxid, 10).records;
                assert_eq!(watermark.checksum, Some(first_record_checksum(&record)));
            }
        }
    }

    #[test]
    fn a_roll_seals_names_and_notes_in_this_order() {
        for back_end in BACK_ENDS {
            let mut journal = begun(back_end);
            journal.append(NOW, append(false, 2..=2, 10));
            journal.append(NOW, append(true, 3..=3, 10));
            orders(&mut journal);
            let end = journal.end();
            if back_end == BackEnd::Direct {
                // What is only in memory has to be written before the log is cut behind it.
                assert_eq!(synced(&round(&mut journal).unwrap().1), Some(Zxid(2)));
            }
            let (Round::Steps(steps), orders) = round(&mut journal).unwrap() else {
                panic!("a roll is steps")
            };
            let [
                Step::Cut { len },
                Step::SyncCut,
                Step::Make,
                Step::Name { start: Zxid(3) },
                Step::SyncDirectory,
                Step::StoreWatermark { watermark, .. },
            ] = &steps[..]
            else {
                panic!("{steps:?}")
            };
            assert_eq!(*len, end);
            assert_eq!((watermark.log, watermark.zxid), (Zxid(3), Zxid(2)));
            assert_eq!(watermark.offset, HEADER_BYTES as u64);
            let before = append(false, 2..=2, 10).records;
            assert_eq!(watermark.checksum, Some(first_record_checksum(&before)));
            if back_end == BackEnd::Mapped {
                assert_eq!(synced(&orders), Some(Zxid(2)));
            }
            assert_eq!(synced(&round(&mut journal).unwrap().1), Some(Zxid(3)));
            assert!(journal.is_idle() && journal.next_round(NOW).is_none());
            let last = [Step::Cut { len: journal.end() }, Step::SyncCut];
            assert_eq!(journal.seal()[..2], last);
        }
    }

    #[test]
    fn no_more_than_the_bound_is_unsynced() {
        for back_end in BACK_ENDS {
            let mut journal = begun(back_end);
            let count = 400;
            journal.append(NOW, append(false, 2..=1 + count, 10_000));
            let all = journal.appended;
            let (mut rounds, mut durable, mut stored) = (0, journal.end(), journal.end());
            let mut through = Zxid(1);
            let mut pending = orders(&mut journal);
            while !journal.is_idle() {
                for order in pending.drain(..) {
                    if let Order::Store(records) = order {
                        let last = super::records(&records).last().unwrap();
                        assert!(stored + last.start as u64 - durable < UNSYNCED_BYTES_MAX);
                        stored += records.len() as u64;
                    }
                }
                match journal.next_round(NOW).expect("there is more") {
                    Round::Write(extent) => {
                        assert!(extent.bytes().len() as u64 <= UNSYNCED_BYTES_MAX);
                        journal.on_round(NOW, Some(extent));
                    }
                    Round::Sync => journal.on_round(NOW, None),
                    Round::Steps(steps) => {
                        assert!(matches!(steps[..], [Step::Grow(_)]));
                        journal.on_round(NOW, None);
                        pending = orders(&mut journal);
                        continue;
                    }
                }
                rounds += 1;
                durable = stored;
                pending = orders(&mut journal);
                if let Some(now) = synced(&pending) {
                    assert!(through < now);
                    through = now;
                }
            }
            assert_eq!(through, all);
            assert!(4 <= rounds, "{back_end:?}: 4 MB in {rounds} rounds");
        }
    }

    #[test]
    fn records_without_room_wait_until_there_is_some() {
        for back_end in BACK_ENDS {
            let mut journal = begun(back_end);
            let mut zxid = 2;
            // Room that is asked for ahead of need never comes.
            let growth = loop {
                journal.append(NOW, append(false, zxid..=zxid, 500_000));
                orders(&mut journal);
                match round(&mut journal).unwrap() {
                    (Round::Steps(steps), _) => break steps,
                    (_, orders) => assert_eq!(synced(&orders), Some(Zxid(zxid))),
                }
                zxid += 1;
            };
            let [Step::Grow(Growth { len, ready })] = growth[..] else { panic!("{growth:?}") };
            assert!(journal.end() <= ready && ready <= len && len.is_multiple_of(8 << 20));
            assert_eq!(synced(&round(&mut journal).unwrap().1), Some(Zxid(zxid)));
        }
    }

    #[test]
    fn what_gathers_during_a_round_shares_the_next() {
        for back_end in BACK_ENDS {
            let mut journal = begun(back_end);
            journal.append(NOW, append(false, 2..=2, 10));
            let under = journal.next_round(NOW).unwrap();
            for zxid in 3..=20 {
                journal.append(NOW, append(false, zxid..=zxid, 10));
            }
            let written = match under {
                Round::Write(extent) => Some(extent),
                _ => None,
            };
            orders(&mut journal);
            journal.on_round(NOW, written);
            // A sync may cover more than what it began with, and must not claim to.
            assert_eq!(synced(&orders(&mut journal)), Some(Zxid(2)));
            let (_, orders) = round(&mut journal).unwrap();
            assert_eq!(synced(&orders), Some(Zxid(20)));
        }
    }

    #[test]
    fn the_watermark_knows_where_epochs_end() {
        for back_end in BACK_ENDS {
            let mut journal = begun(back_end);
            journal.append(NOW, append(false, 2..=3, 10));
            let next = Zxid::new(Epoch(2), 1).0;
            journal.append(NOW, append(false, next..=next, 10));
            orders(&mut journal);
            let (_, orders) = round(&mut journal).unwrap();
            let Some(Order::Note { watermark, .. }) = orders.first() else { panic!("{orders:?}") };
            assert_eq!(watermark.epoch_ends[..2], [Zxid(3), Zxid::ZERO]);
            // And when the epoch ends with its log.
            let later = Zxid::new(Epoch(5), 1).0;
            journal.append(NOW, append(true, later..=later, 10));
            round(&mut journal).unwrap();
            let (_, orders) = round(&mut journal).unwrap();
            let Some(Order::Note { watermark, .. }) = orders.first() else { panic!("{orders:?}") };
            assert_eq!(watermark.epoch_ends[..3], [Zxid(next), Zxid(3), Zxid::ZERO]);
        }
    }

    #[test]
    fn without_syncs_no_watermark_claims_any() {
        let settings = Settings { force_sync: false, ..settings(BackEnd::Mapped) };
        let mut journal = Journal::new(settings, Zxid(0), None);
        journal.append(NOW, append(true, 1..=3, 10));
        let mut seen = Vec::new();
        while let Some((_, orders)) = round(&mut journal) {
            seen.extend(orders);
        }
        assert_eq!(synced(&seen), Some(Zxid(3)));
        assert!(!seen.iter().any(|order| matches!(order, Order::Note { .. })), "{seen:?}");
    }

    #[test]
    fn an_epoch_is_stored_behind_the_records_before_it() {
        for back_end in BACK_ENDS {
            let mut journal = begun(back_end);
            journal.append(NOW, append(false, 2..=2, 10));
            journal.store_epoch(EpochFile::Current, Epoch(3));
            orders(&mut journal);
            assert_eq!(synced(&round(&mut journal).unwrap().1), Some(Zxid(2)));
            let (Round::Steps(steps), orders) = round(&mut journal).unwrap() else {
                panic!("an epoch is stored by steps")
            };
            let file = EpochFile::Current;
            let expected = [
                Step::WriteEpoch { file, epoch: Epoch(3) },
                Step::NameEpoch { file },
                Step::SyncSnapshots,
            ];
            assert_eq!(steps, expected);
            assert!(matches!(orders[..], [Order::Stored(Storing::Epoch { epoch: Epoch(3), .. })]));
            assert!(journal.is_idle());
        }
    }

    #[test]
    fn a_truncation_moves_the_watermark_back_before_it_takes_anything() {
        for back_end in BACK_ENDS {
            let mut journal = begun(back_end);
            journal.append(NOW, append(true, 2..=5, 10));
            while round(&mut journal).is_some() {}
            let truncation = Truncation {
                zxid: Zxid(1),
                cut: Some(LogCut { name: "log.1".to_owned(), log: Zxid(1), offset: 99 }),
                later_logs: vec!["log.2".to_owned(), "log.4".to_owned()],
                later_snapshots: vec!["snapshot.3".to_owned()],
            };
            journal.truncate(truncation);
            let (Round::Steps(steps), _) = round(&mut journal).unwrap() else { panic!("steps") };
            let [
                Step::Cut { .. },
                Step::SyncCut,
                Step::TakeBackWatermark { watermark, .. },
                rest @ ..,
            ] = &steps[..]
            else {
                panic!("{steps:?}")
            };
            assert_eq!((watermark.log, watermark.offset, watermark.zxid), (Zxid(1), 99, Zxid(1)));
            let remove = |name: &str| Step::RemoveLog { name: name.to_owned() };
            let expected = [
                Step::RemoveSnapshot { name: "snapshot.3".to_owned() },
                Step::SyncSnapshots,
                remove("log.4"),
                Step::SyncDirectory,
                remove("log.2"),
                Step::SyncDirectory,
                Step::CutLog { name: "log.1".to_owned(), len: 99 },
            ];
            assert_eq!(rest, expected);
            // History goes on from there, in a new file.
            journal.append(NOW, append(true, 2..=2, 10));
            round(&mut journal).unwrap();
            assert_eq!(synced(&round(&mut journal).unwrap().1), Some(Zxid(2)));
        }
    }

    #[test]
    fn a_replacement_becomes_the_newest_in_one_step_and_the_watermark_follows() {
        for back_end in BACK_ENDS {
            for shields in [false, true] {
                let mut journal = begun(back_end);
                journal.append(NOW, append(false, 2..=5, 10));
                while round(&mut journal).is_some() {}
                let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
                let replacement = Replacement {
                    zxid: Zxid(3),
                    cut: Some(LogCut { name: "log.1".to_owned(), log: Zxid(1), offset: 99 }),
                    later_logs: names(&["log.5", "log.7"]),
                    later_snapshots: if shields { names(&["snapshot.6"]) } else { Vec::new() },
                    earlier_logs: names(&["log.1"]),
                    earlier_snapshots: names(&["snapshot.0"]),
                };
                journal.replace(replacement.clone());
                let (Round::Steps(steps), orders) = round(&mut journal).unwrap() else {
                    panic!("a replacement is steps")
                };
                assert!(matches!(&orders[..], [Order::Stored(Storing::Replacement(stored))]
                    if *stored == replacement));
                let named = [Step::NameSnapshot { zxid: Zxid(3) }, Step::SyncSnapshots];
                let log = |name: &str| Step::SetAsideLog { name: name.to_owned() };
                let snapshot = |name: &str| Step::SetAsideSnapshot { name: name.to_owned() };
                let mut expected = Vec::new();
                expected.extend(named.iter().filter(|_| shields).cloned());
                expected.extend([log("log.7"), Step::SyncDirectory]);
                expected.extend([log("log.5"), Step::SyncDirectory]);
                expected.push(Step::CutLog { name: "log.1".to_owned(), len: 99 });
                match shields {
                    true => expected.extend([snapshot("snapshot.6"), Step::SyncSnapshots]),
                    false => expected.extend(named),
                }
                assert!(matches!(steps[..2], [Step::Cut { .. }, Step::SyncCut]));
                let (before, after) = steps[2..].split_at(expected.len());
                assert_eq!(before, expected);
                let [Step::TakeBackWatermark { watermark, .. }, aside @ ..] = after else {
                    panic!("{after:?}")
                };
                assert_eq!(watermark.snapshot(), Some(Zxid(3)));
                let expected = [
                    log("log.1"),
                    snapshot("snapshot.0"),
                    Step::SyncDirectory,
                    Step::SyncSnapshots,
                ];
                assert_eq!(aside, expected);
                // History goes on from there, in a new file.
                journal.append(NOW, append(true, 4..=4, 10));
                let (Round::Steps(steps), _) = round(&mut journal).unwrap() else {
                    panic!("steps")
                };
                let Some(Step::StoreWatermark { watermark, .. }) = steps.last() else {
                    panic!("{steps:?}")
                };
                assert_eq!((watermark.log, watermark.zxid), (Zxid(4), Zxid(3)));
                assert_eq!(synced(&round(&mut journal).unwrap().1), Some(Zxid(4)));
            }
        }
    }
}
