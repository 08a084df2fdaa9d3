//! Logs back into transactions, and a torn tail told from damage.
//!
//! Every crash leaves a torn tail: bytes behind the last sync, of which any part may be missing.
//! They were never acknowledged and may be dropped. Anything else that cannot be read is damage,
//! and dropping that would serve a history with a hole, or without what was acknowledged. The
//! format does not tell the two apart: a broken length or end mark reads as the end of the log.
//! Three things do:
//!
//! ```text
//! the watermark    what ends before it is damaged, what ends behind it is torn (watermark.rs)
//! continuity       the next log must go on where this one ended, or begin a later epoch
//! what follows     without a watermark, a whole record behind the end says damage; behind the
//!                  watermark, one that is farther away than what can be unsynced at once
//! ```
//!
//! | a log that ends before its bytes do | last log | earlier log |
//! |---|---|---|
//! | below the watermark | damaged | damaged |
//! | behind the watermark | torn, unless as below | as below |
//! | behind the watermark, before the end of what the snapshot holds, a whole record behind the end; not of a member of an ensemble | damaged | damaged |
//! | behind the watermark, whole records behind the end that are farther apart than `APART_BYTES` | damaged | damaged |
//! | the watermark names it, and it is empty | damaged | damaged |
//! | the watermark names it, and the record that it names is not where it was | damaged | damaged |
//! | the next log goes on with zxid+1 | | torn |
//! | a later epoch begins, nothing whole behind the end | | torn, unless more was synced |
//! | a later epoch begins, a whole record behind the end | | damaged |
//! | no watermark, nothing whole behind the end | torn | |
//! | no watermark, a whole record behind the end | damaged | |
//! | anything else that is missing | | gap |
//!
//! What a snapshot already holds is never missed: only transactions after `from` count. But the
//! watermark may be behind what was acknowledged, so a log that it names has to be there up to the
//! watermark even where a snapshot holds all that the watermark knows of: with the record that it
//! names, other records may be gone that nobody knows of. What is broken before that record is then
//! left as it is.
//!
//! A watermark also says where a record ends, and which one. A log in which another record is there
//! is of another history, however whole it is (`Claim`).
//!
//! A log is read through a window: no more of it is in memory than its longest record.
//!
//! Why far apart says damage: at any moment at most `UNSYNCED_BYTES_MAX` of a log are not durable,
//! and records begin only within these (`super::UNSYNCED_BYTES_MAX`). Of two whole records behind a
//! break that are farther apart, the later was begun when the earlier, and so the break before it,
//! was durable. With `forceSync=no` nothing bounds what is unsynced; but there the watermark never
//! moves within a log, and where it has not moved, this proves nothing.
//!
//! After `FileTxnLog.FileTxnIterator`, which takes every end for the end of the log, looks for no
//! gap, and stops the server on a wrong checksum wherever it is.

use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

use simd_adler32::Adler32;

use crate::jute::record::Record as _;
use crate::jute::{Malformed, Reader};
use crate::record::op::code;
use crate::record::persistence::LOG_MAGIC;
use crate::record::txn::{TXN_DIGEST_BYTES, Txn, TxnDigest, TxnHeader};
use crate::types::{HighestSessions, SessionId, Zxid};

use super::blocks::BLOCK_BYTES;
use super::txnlog::{
    self, END_MARK, FRAMING_BYTES, HEADER_BYTES, LENGTH_OFFSET, PAYLOAD_BYTES_MIN, PAYLOAD_OFFSET,
    RECORD_BYTES_MIN,
};
use super::watermark::{UNBOUNDED, Watermark};
use super::window::{Source, Window};
use super::{UNSYNCED_BYTES_MAX, ZXID_MAX};

/// One transaction where it lies in its log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Where in the file the record begins.
    pub offset: usize,
    pub header: TxnHeader,
    pub txn: Txn<'a>,
    pub digest: Option<TxnDigest>,
    /// Header, body and digest as they were logged: what a learner is sent.
    pub payload: &'a [u8],
}

impl Record<'_> {
    #[must_use]
    pub fn zxid(&self) -> Zxid {
        Zxid(self.header.zxid)
    }

    /// Where in the file the next record begins.
    #[must_use]
    pub fn end(&self) -> usize {
        self.offset + self.payload.len() + FRAMING_BYTES
    }
}

/// Where the records of a log end, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    pub offset: usize,
    pub cause: Cause,
}

/// Why there is no record at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    #[error("no record")]
    End,
    #[error("no header")]
    NoHeader,
    #[error("a checksum before a length of zero")]
    LengthMissing,
    #[error("an impossible length of {0}")]
    Length(i32),
    #[error("a record that goes beyond the end of the file")]
    Cut,
    #[error("a record without its end mark")]
    EndMark,
    #[error("a wrong checksum")]
    Checksum,
    /// Whole and as it was written, and still no transaction that we know.
    #[error("a transaction that cannot be read: {0}")]
    Unreadable(Malformed),
}

impl Cause {
    /// No record begins here, rather than a broken one.
    #[must_use]
    pub fn is_end(self) -> bool {
        self == Cause::End
    }
}

/// The transactions of one log in memory, in order, up to the first bytes that are none.
#[derive(Clone, Debug)]
pub struct LogReader<'a> {
    log: &'a [u8],
    offset: usize,
    stop: Option<Stop>,
}

impl<'a> LogReader<'a> {
    /// Reads what follows the header; `None` if `log` does not begin with a log's.
    #[must_use]
    pub fn new(log: &'a [u8]) -> Option<LogReader<'a>> {
        has_header(log).then_some(LogReader { log, offset: HEADER_BYTES, stop: None })
    }

    /// Where reading has stopped, once it has.
    #[must_use]
    pub fn stop(&self) -> Option<Stop> {
        self.stop
    }
}

impl<'a> Iterator for LogReader<'a> {
    type Item = Record<'a>;

    fn next(&mut self) -> Option<Record<'a>> {
        if self.stop.is_some() {
            return None;
        }
        match record_at(self.log.get(self.offset..).unwrap_or_default(), self.offset) {
            Ok(record) => {
                self.offset = record.end();
                Some(record)
            }
            Err(cause) => {
                self.stop = Some(Stop { offset: self.offset, cause });
                None
            }
        }
    }
}

fn has_header(log: &[u8]) -> bool {
    HEADER_BYTES <= log.len() && log.starts_with(&LOG_MAGIC.to_be_bytes())
}

/// The record that `rest` begins with, at this offset of its log.
fn record_at(rest: &[u8], offset: usize) -> Result<Record<'_>, Cause> {
    let payload = payload_of(rest)?;
    let (header, txn, digest) = read_payload(payload).map_err(Cause::Unreadable)?;
    Ok(Record { offset, header, txn, digest, payload })
}

/// What the payload of a record says, which is also what a leader proposes.
pub fn read_payload(payload: &[u8]) -> Result<(TxnHeader, Txn<'_>, Option<TxnDigest>), Malformed> {
    // Whole as it is, no field of it is too long: what clients may send does not count here.
    let mut reader = Reader::with_field_bytes_max(payload, payload.len());
    let header = TxnHeader::read(&mut reader)?;
    let txn = Txn::read(header.kind, &mut reader)?;
    let digest = if TXN_DIGEST_BYTES <= reader.rest().len() {
        Some(TxnDigest::read(&mut reader)?)
    } else {
        None
    };
    Ok((header, txn, digest))
}

/// The checksum that a record announces, and the length of its payload.
fn framing_of(rest: &[u8]) -> Result<(u64, usize), Cause> {
    let Some(framing) = rest.get(..PAYLOAD_OFFSET) else {
        return Err(if rest.iter().all(|&byte| byte == 0) { Cause::End } else { Cause::Cut });
    };
    let (checksum, length) = framing.split_at(LENGTH_OFFSET);
    let checksum = u64::from_be_bytes(checksum.try_into().expect("eight bytes"));
    let length = i32::from_be_bytes(length.try_into().expect("four bytes"));
    match usize::try_from(length) {
        Ok(0) => Err(if checksum == 0 { Cause::End } else { Cause::LengthMissing }),
        Ok(bytes) => Ok((checksum, bytes)),
        Err(_) => Err(Cause::Length(length)),
    }
}

/// The payload of the record that `rest` begins with, if it is whole.
fn payload_of(rest: &[u8]) -> Result<&[u8], Cause> {
    let (checksum, payload_bytes) = framing_of(rest)?;
    let Some((payload, rest)) = rest[PAYLOAD_OFFSET..].split_at_checked(payload_bytes) else {
        return Err(Cause::Cut);
    };
    match rest.first() {
        Some(&END_MARK) if txnlog::checksum(payload) == checksum => Ok(payload),
        Some(&END_MARK) => Err(Cause::Checksum),
        Some(_) => Err(Cause::EndMark),
        None => Err(Cause::Cut),
    }
}

/// How much of a log is read at once. A longer record is brought into memory once it is known to
/// be whole.
const WINDOW_BYTES: usize = 4 << 20;

/// Brings the record at `offset` into the window. What is returned begins with it and is enough to
/// read it, or to say why it cannot be read.
fn view_record<'w, S: Source>(
    window: &'w mut Window,
    source: &mut S,
    offset: usize,
) -> Result<Result<&'w [u8], Cause>, S::Error> {
    let needed = match framing_of(window.view(source, offset, PAYLOAD_OFFSET)?) {
        Ok((checksum, payload_bytes)) => {
            let needed = payload_bytes + FRAMING_BYTES;
            if WINDOW_BYTES < needed
                && let Err(cause) = check_long(window, source, offset, checksum, payload_bytes)?
            {
                return Ok(Err(cause));
            }
            needed
        }
        Err(_) => PAYLOAD_OFFSET,
    };
    window.view(source, offset, needed).map(Ok)
}

/// Whether the record at `offset` is whole, without all of it in memory.
fn check_long<S: Source>(
    window: &mut Window,
    source: &mut S,
    offset: usize,
    checksum: u64,
    payload_bytes: usize,
) -> Result<Result<(), Cause>, S::Error> {
    let payload = offset + PAYLOAD_OFFSET;
    match window.view(source, payload + payload_bytes, 1)?.first() {
        None => return Ok(Err(Cause::Cut)),
        Some(&END_MARK) => {}
        Some(_) => return Ok(Err(Cause::EndMark)),
    }
    let is_right = checksum_of(window, source, payload..payload + payload_bytes)? == Some(checksum);
    Ok(if is_right { Ok(()) } else { Err(Cause::Checksum) })
}

/// The checksum of a payload that is read piece by piece; `None` where the file ends before it.
fn checksum_of<S: Source>(
    window: &mut Window,
    source: &mut S,
    payload: Range<usize>,
) -> Result<Option<u64>, S::Error> {
    let mut checksum = Adler32::new();
    let mut at = payload.start;
    while at < payload.end {
        let bytes = window.view(source, at, 1)?;
        let bytes = &bytes[..bytes.len().min(payload.end - at)];
        if bytes.is_empty() {
            return Ok(None);
        }
        checksum.write(bytes);
        at += bytes.len();
    }
    Ok(Some(u64::from(checksum.finish())))
}

/// Whole records that are farther apart than this were not both on their way to the disk. A block
/// more than the bound on that: a direct write begins with a block that was durable already.
pub const APART_BYTES: usize = UNSYNCED_BYTES_MAX as usize + BLOCK_BYTES;

/// A whole record behind the end of a log's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub offset: usize,
    pub zxid: Zxid,
}

/// What follows the end of a log's records.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Beyond {
    /// Zeros or nothing: how a log ends that was closed, or padded and not written further.
    Zeros,
    /// Bytes that are no record, up to here: a crash, or damage.
    Scraps { end: usize },
    /// Records that history would lack if the log ended here: the first and the last of them.
    Records { end: usize, first: Found, last: Found },
}

/// Looks behind the end of a log for whole records after `known`. The records between would have
/// to fit in, so its zxid says whether one can belong here. Bytes made to look like many long
/// records run the search out of its budget; the one it gave up at is then taken for real.
fn beyond<S: Source>(
    window: &mut Window,
    source: &mut S,
    end: usize,
    known: Zxid,
) -> Result<Beyond, S::Error> {
    let Some(Range { start, end: last_byte }) = non_zero_range(window, source, end)? else {
        return Ok(Beyond::Zeros);
    };
    let mut probe = Window::new(PROBE_BYTES);
    let mut budget = 4 * (last_byte - end) + (4 << 20);
    let mut found: Option<(Found, Found)> = None;
    // A record may begin with zeros, those of its checksum.
    let mut offset = start.saturating_sub(PAYLOAD_OFFSET - 1).max(end);
    while offset + RECORD_BYTES_MIN <= last_byte {
        let bytes = window.view(source, offset, RECORD_BYTES_MIN)?;
        let Some(candidate) = bytes.get(..PAYLOAD_OFFSET) else { break };
        if candidate == [0; PAYLOAD_OFFSET] {
            let zeros = non_zero_from(bytes).unwrap_or(bytes.len());
            offset += zeros - (PAYLOAD_OFFSET - 1);
            continue;
        }
        let Some((zxid, payload)) = plausible(bytes, offset, end, known) else {
            offset += 1;
            continue;
        };
        let payload = offset + PAYLOAD_OFFSET..offset + PAYLOAD_OFFSET + payload;
        let (is_marked, checksum) = (
            payload.end < last_byte
                && probe.view(source, payload.end, 1)?.first() == Some(&END_MARK),
            u64::from_be_bytes(*candidate.first_chunk().expect("eight bytes")),
        );
        if !is_marked {
            offset += 1;
            continue;
        }
        let gives_up = budget < payload.len();
        if gives_up || checksum_of(&mut probe, source, payload.clone())? == Some(checksum) {
            let record = Found { offset, zxid };
            found = Some((found.map_or(record, |(first, _)| first), record));
            if gives_up {
                break;
            }
            offset = payload.end + 1;
        } else {
            budget -= payload.len();
            offset += 1;
        }
    }
    Ok(match found {
        Some((first, last)) => Beyond::Records { end: last_byte, first, last },
        None => Beyond::Scraps { end: last_byte },
    })
}

/// How much is read at once where the search looks ahead.
const PROBE_BYTES: usize = 64 << 10;

/// Whether all but end mark and checksum of a record could be: its zxid and payload length.
fn plausible(rest: &[u8], offset: usize, end: usize, known: Zxid) -> Option<(Zxid, usize)> {
    let (framing, rest) = rest.split_at_checked(PAYLOAD_OFFSET)?;
    // Adler-32 fills only four of the eight bytes.
    let length = framing.strip_prefix(&[0; 4])?.get(4..)?;
    let length = u32::from_be_bytes(length.try_into().ok()?) as usize;
    if length < PAYLOAD_BYTES_MIN {
        return None;
    }
    let header = TxnHeader::read(&mut Reader::new(rest)).ok()?;
    let zxid = Zxid(header.zxid);
    let records_between = ((offset - end) / RECORD_BYTES_MIN) as i64;
    let counted_from = if zxid.epoch() == known.epoch() { i64::from(known.counter()) } else { 0 };
    let fits = known < zxid && i64::from(zxid.counter()) <= counted_from + records_between + 2;
    (fits && is_logged_kind(header.kind)).then_some((zxid, length))
}

fn is_logged_kind(kind: i32) -> bool {
    matches!(
        kind,
        code::CREATE_SESSION
            | code::CLOSE_SESSION
            | code::ERROR
            | code::CREATE
            | code::CREATE2
            | code::CREATE_TTL
            | code::CREATE_CONTAINER
            | code::DELETE
            | code::DELETE_CONTAINER
            | code::SET_DATA
            | code::SET_ACL
            | code::RECONFIG
            | code::CHECK
            | code::MULTI
    )
}

/// From the first byte at or after `start` that is not zero to behind the last one.
fn non_zero_range<S: Source>(
    window: &mut Window,
    source: &mut S,
    start: usize,
) -> Result<Option<Range<usize>>, S::Error> {
    let mut range: Option<Range<usize>> = None;
    let mut at = start;
    while at < source.len() {
        let bytes = window.view(source, at, 1)?;
        if bytes.is_empty() {
            break;
        }
        if let Some(first) = non_zero_from(bytes) {
            let last = bytes.iter().rposition(|&byte| byte != 0).expect("one is not zero");
            range = Some(range.map_or(at + first, |range| range.start)..at + last + 1);
        }
        at += bytes.len();
    }
    Ok(range)
}

/// The first byte that is not zero. Padding is long: chunks first.
fn non_zero_from(bytes: &[u8]) -> Option<usize> {
    const CHUNK_BYTES: usize = 256;
    let is_zero = |chunk: &&[u8]| chunk.iter().fold(0, |any, &byte| any | byte) == 0;
    let zeros: usize = bytes.chunks(CHUNK_BYTES).take_while(is_zero).map(<[u8]>::len).sum();
    let found = bytes[zeros..].iter().position(|&byte| byte != 0)?;
    Some(zeros + found)
}

/// What is told of damage, whatever it is.
pub(super) const NEXT_STEP: &str = "nothing has been changed; restore the data directory from a copy, or, as \
                         a member of an ensemble, empty it so that this server fetches it anew";

/// Logs that cannot be replayed. A torn tail is not one: that is how every crash looks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    #[error("{}: not a transaction log (magic {magic:#010x}); {NEXT_STEP}", path.display())]
    Magic { path: PathBuf, magic: u32 },
    #[error(
        "{}: damaged at byte {offset} ({cause}), after zxid {last}, but {evidence}; {NEXT_STEP}",
        path.display()
    )]
    Damaged { path: PathBuf, offset: u64, cause: Cause, last: Zxid, evidence: Evidence },
    #[error(
        "{}: the transaction at byte {offset}, after zxid {last}, is whole but {malformed} of its \
         payload; it was written by another version or another program; {NEXT_STEP}",
        path.display()
    )]
    Unreadable { path: PathBuf, offset: u64, last: Zxid, malformed: Malformed },
    #[error(
        "{}: zxid {found} at byte {offset} does not go on from zxid {last}: transactions between \
         are missing{}; {NEXT_STEP}",
        path.display(),
        Ended(ended.as_ref())
    )]
    Gap { path: PathBuf, offset: u64, last: Zxid, found: Zxid, ended: Option<(PathBuf, Stop)> },
    #[error("{}: zxid {found} at byte {offset} comes after zxid {last}; {NEXT_STEP}", path.display())]
    Order { path: PathBuf, offset: u64, last: Zxid, found: Zxid },
    #[error(
        "{}: begins with zxid {found} at byte {offset}, which its name does not say; {NEXT_STEP}",
        path.display()
    )]
    Name { path: PathBuf, offset: u64, found: Zxid },
    #[error(
        "{}: of another history than {}, by which the record of zxid {} ends at byte {} of log.{:x}: here \
         zxid {zxid} is at byte {offset}; is dataLogDir the right one, and mounted? {NEXT_STEP}; if \
         these logs are the ones to be served, remove {}",
        path.display(), claim.by.display(), claim.watermark.zxid, claim.watermark.offset,
        claim.watermark.log.0, claim.by.display()
    )]
    Foreign { path: PathBuf, offset: u64, zxid: Zxid, claim: Box<Claim> },
    #[error(
        "{}: ends at byte {offset}, after zxid {last}, but by {} it was synced up to byte {}, zxid {}; \
         {NEXT_STEP}; if ZooKeeper has cut this log since, as a member of an ensemble, and these \
         files are the ones to be served, remove {}",
        path.display(), claim.by.display(), claim.watermark.offset, claim.watermark.zxid,
        claim.by.display()
    )]
    Shorter { path: PathBuf, offset: u64, last: Zxid, claim: Box<Claim> },
    #[error(
        "transactions up to zxid {} were synced to log.{:x} (byte {}), but history ends at zxid \
         {last}; {NEXT_STEP}; if another server has cut this log since, remove {}",
        watermark.zxid, watermark.log.0, watermark.offset, super::watermark::WATERMARK_NAME
    )]
    Lost { watermark: Watermark, last: Zxid },
}

/// Why an end cannot be a torn tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Evidence {
    #[error("synced up to byte {offset}, zxid {zxid}")]
    Watermark { offset: u64, zxid: Zxid },
    #[error("zxid {zxid} follows at byte {offset}")]
    Later { offset: u64, zxid: Zxid },
    #[error(
        "whole records follow from zxid {} at byte {} to zxid {} at byte {}, farther apart than \
         what a crash can tear", first.zxid, first.offset, last.zxid, last.offset
    )]
    Apart { first: Found, last: Found },
    #[error("zxid {zxid} begins a later epoch in the next log")]
    Epoch { zxid: Zxid },
    #[error("it was begun, durably, after zxid {zxid}")]
    Begun { zxid: Zxid },
}

/// How an error tells where the log before it ended.
struct Ended<'a>(Option<&'a (PathBuf, Stop)>);

impl std::fmt::Display for Ended<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some((path, Stop { offset, cause })) => {
                write!(f, " ({} ends at byte {offset}: {cause})", path.display())
            }
            None => Ok(()),
        }
    }
}

/// What a replay goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// The state that the transactions are applied to: a snapshot's zxid, or zero.
    pub from: Zxid,
    /// `None` for a directory that no server of ours has written yet.
    pub watermark: Option<Watermark>,
}

/// What a replay came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// The last transaction, or `from`.
    pub last: Zxid,
    /// How many transactions there were after `from`.
    pub txns: u64,
    /// The last log, and where its last record ends.
    pub end: Option<(PathBuf, u64)>,
    /// What to cut, durably, before a new log is begun: torn tails of the last logs.
    pub cuts: Vec<Cut>,
    /// Torn tails of earlier logs, which history went on from.
    pub torn: Vec<Cut>,
    /// Whose the transactions were that `from` holds already.
    pub sessions_before: HighestSessions,
}

/// A log that ends with bytes that are no record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub path: PathBuf,
    /// The zxid in its name.
    pub log: Zxid,
    /// Where the file has to end. Zero: it holds no header, and has to go.
    pub offset: u64,
    pub cause: Cause,
    /// The last transaction before.
    pub after: Zxid,
    /// Where what is not zero ends.
    pub end: u64,
    /// Whole records behind the cut, first and last.
    pub whole: Option<(Found, Found)>,
}

/// The logs of a directory, one after the other, oldest first. Only a window on one is in memory.
#[derive(Debug)]
pub struct Replay {
    options: Options,
    window: Window,
    /// The last record that was read, whether after `from` or not.
    previous: Option<Zxid>,
    /// Transactions that history is known to have, from elsewhere than the logs and the watermark.
    known_of: Vec<Zxid>,
    claims: Vec<Claim>,
    /// Ends that the next record, or its absence, has to explain.
    ends: Vec<End>,
    /// Where the last log ended.
    ended: Option<(PathBuf, Stop)>,
    txns: u64,
    torn: Vec<Cut>,
    sessions_before: HighestSessions,
    /// What the snapshot holds may not have been synced here.
    is_snapshot_ahead: bool,
    #[cfg(feature = "mutants")]
    ignores_evidence: bool,
}

/// The end of one log, seen before what follows it.
#[derive(Debug)]
struct End {
    path: PathBuf,
    log: Zxid,
    stop: Stop,
    /// All that was known when it was reached.
    known: Zxid,
    beyond: Beyond,
    /// Behind the watermark of this very log.
    unsynced: bool,
    /// The watermark has moved within the log, so its writer syncs.
    is_bounded: bool,
    /// It is damage that a snapshot makes up for, and it is not cut: what the watermark names lies
    /// behind it.
    is_covered: bool,
}

/// What a watermark says of the record that it names: its log, its end, its zxid and checksum.
///
/// A log is never written anew, so this stays true for as long as the log is there, whoever goes on
/// with the history; but ZooKeeper cuts a log where its leader has it do so (TRUNC), and then only the
/// operator knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The file that it is from.
    pub by: PathBuf,
    pub watermark: Watermark,
}

/// A whole record where it is found.
#[derive(Clone, Copy, Debug)]
struct Whole {
    log: Zxid,
    offset: usize,
    end: usize,
    zxid: Zxid,
    checksum: u32,
}

impl Claim {
    /// Whether it names a record of the log that is being written, rather than the last one before.
    fn is_within(&self) -> bool {
        HEADER_BYTES < whole_bytes(self.watermark.offset)
    }

    /// Whether this record can only be of another history.
    fn is_contradicted(&self, record: Whole) -> bool {
        let Watermark { log, offset, zxid, checksum, .. } = self.watermark;
        let end = whole_bytes(offset);
        let is_within = self.is_within();
        let is_there = is_within && record.log == log && record.end == end;
        let crosses = is_within && record.log == log && record.offset < end && end < record.end;
        let is_other = checksum.is_some_and(|checksum| checksum != record.checksum);
        let is_elsewhere = is_within && !is_there;
        let is_it = record.zxid == zxid;
        crosses || is_there && !is_it || is_it && (is_elsewhere || is_other)
    }

    /// Holds it against the log that it names, where nothing else of that log is needed.
    pub fn check<S: Source>(
        &self,
        path: &Path,
        source: &mut S,
    ) -> Result<Result<(), ReplayError>, S::Error> {
        let Watermark { log, offset: synced, zxid: named, .. } = self.watermark;
        let mut window = Window::new(WINDOW_BYTES);
        let end = whole_bytes(synced);
        let (mut offset, mut last) = (HEADER_BYTES, Zxid(log.0 - 1));
        let mut is_headless = false;
        if offset < end && !has_header(window.view(source, 0, HEADER_BYTES)?) {
            (offset, is_headless) = (0, true);
        }
        let cause = loop {
            if end <= offset {
                return Ok(Ok(()));
            }
            if is_headless {
                break Cause::NoHeader;
            }
            let rest = view_record(&mut window, source, offset)?;
            let found = rest.and_then(|rest| {
                let record = record_at(rest, offset)?;
                let (zxid, end) = (record.zxid(), record.end());
                let checksum = txnlog::first_record_checksum(rest);
                Ok(Whole { log, offset, end, zxid, checksum })
            });
            match found {
                Ok(record) if record.zxid != last && self.is_contradicted(record) => {
                    return Ok(Err(self.contradicted(path, record)));
                }
                Ok(record) => (offset, last) = (record.end, record.zxid),
                Err(cause) => break cause,
            }
        };
        if is_named_record_there(self.watermark, &mut window, source, offset)? {
            return Ok(Ok(()));
        }
        let (path, at) = (path.to_path_buf(), offset as u64);
        if source.len() <= offset {
            let claim = Box::new(self.clone());
            return Ok(Err(ReplayError::Shorter { path, offset: at, last, claim }));
        }
        let evidence = Evidence::Watermark { offset: synced, zxid: named };
        Ok(Err(ReplayError::Damaged { path, offset: at, cause, last, evidence }))
    }

    fn contradicted(&self, path: &Path, Whole { offset, zxid, .. }: Whole) -> ReplayError {
        let claim = Box::new(self.clone());
        ReplayError::Foreign { path: path.into(), offset: offset as u64, zxid, claim }
    }
}

/// Whether the record that a watermark names is in its log, whatever lies between `from` and it.
fn is_named_record_there<S: Source>(
    watermark: Watermark,
    window: &mut Window,
    source: &mut S,
    from: usize,
) -> Result<bool, S::Error> {
    let end = whole_bytes(watermark.offset);
    let last = end.checked_sub(RECORD_BYTES_MIN).filter(|_| end <= source.len());
    let Some(last) = last else { return Ok(false) };
    for offset in from..=last {
        let framing = window.view(source, offset, PAYLOAD_OFFSET)?;
        let Ok((_, bytes)) = framing_of(framing) else { continue };
        if offset + bytes + FRAMING_BYTES == end
            && let Ok(rest) = view_record(window, source, offset)?
            && let Ok(payload) = payload_of(rest)
            && let Ok(header) = TxnHeader::read(&mut Reader::new(payload))
        {
            let checksum = txnlog::first_record_checksum(rest);
            return Ok(watermark.zxid == Zxid(header.zxid)
                && watermark.checksum.is_none_or(|known| known == checksum));
        }
    }
    Ok(false)
}

fn whole_bytes(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

impl Replay {
    #[must_use]
    pub fn new(options: Options) -> Replay {
        Replay {
            options,
            window: Window::new(WINDOW_BYTES),
            previous: None,
            known_of: Vec::new(),
            claims: Vec::new(),
            ends: Vec::new(),
            ended: None,
            txns: 0,
            torn: Vec::new(),
            sessions_before: HighestSessions::default(),
            is_snapshot_ahead: false,
            #[cfg(feature = "mutants")]
            ignores_evidence: false,
        }
    }

    /// History is known to have this transaction: to go on behind it without it is a gap.
    pub fn expect(&mut self, zxid: Zxid) {
        // A new leader's snapshot has the number zero of its epoch, which no transaction has.
        if zxid.counter() != 0 {
            self.known_of.push(zxid);
        }
    }

    /// A quorum may have committed what the snapshot holds before it was synced here: a log may be torn
    /// before the end of that.
    pub fn expect_snapshot_ahead(&mut self) {
        self.is_snapshot_ahead = true;
    }

    /// A watermark that was found says this, and every log has to agree.
    pub fn hold_against(&mut self, claim: Claim) {
        self.claims.push(claim);
    }

    /// A seeded bug: what is behind the watermark is torn, whatever follows it.
    #[cfg(feature = "mutants")]
    pub fn ignore_evidence(&mut self) {
        self.ignores_evidence = true;
    }

    /// Reads one log in memory, whose name says that it begins with `start`, and hands over each
    /// transaction after `from`.
    pub fn log<E: From<ReplayError>>(
        &mut self,
        path: &Path,
        start: Zxid,
        log: &[u8],
        each: impl FnMut(&Record<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut log = log;
        self.read(path, start, &mut log, |never| match never {}, each)
    }

    /// The same with a log wherever it is. `failed` says what an error of reading it comes to.
    pub fn read<S: Source, E: From<ReplayError>>(
        &mut self,
        path: &Path,
        start: Zxid,
        source: &mut S,
        failed: impl Fn(S::Error) -> E,
        mut each: impl FnMut(&Record<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut window = std::mem::replace(&mut self.window, Window::new(WINDOW_BYTES));
        window.clear();
        let head = window.view(source, 0, HEADER_BYTES).map_err(&failed)?;
        let stop = if has_header(head) {
            let mut offset = HEADER_BYTES;
            let mut before: Option<(usize, Zxid)> = None;
            loop {
                let rest = view_record(&mut window, source, offset).map_err(&failed)?;
                let (record, checksum) = match rest.and_then(|rest| {
                    Ok((record_at(rest, offset)?, txnlog::first_record_checksum(rest)))
                }) {
                    Ok(found) => found,
                    Err(cause) => break Stop { offset, cause },
                };
                let (zxid, end) = (record.zxid(), record.end());
                // ZooKeeper appends a proposal it is sent twice (`FileTxnLog.append`).
                if let Some((first, _)) = before.filter(|(_, before)| *before == zxid)
                    && is_repeated(source, first..offset, offset..end).map_err(&failed)?
                {
                    (before, offset) = (Some((offset, zxid)), end);
                    continue;
                }
                let found = Whole { log: start, offset, end, zxid, checksum };
                // An error that has no zxid of its own is not the record that a claim names.
                let is_borrowed = self.previous == Some(zxid);
                let contradicted = |claim: &&Claim| !is_borrowed && claim.is_contradicted(found);
                if let Some(claim) = self.claims.iter().find(contradicted) {
                    return Err(claim.contradicted(path, found).into());
                }
                let start = before.is_none().then_some(start);
                if self.admit(path, start, &record)? {
                    self.txns += 1;
                    each(&record)?;
                }
                (before, offset) = (Some((offset, zxid)), end);
            }
        } else {
            no_header(path, head)?
        };
        let ended = self.on_end(path, start, &mut window, source, stop);
        self.window = window;
        ended.map_err(|error| match error {
            OnEnd::Read(error) => failed(error),
            OnEnd::Replay(error) => error.into(),
        })
    }

    /// All that is known: what was read, or what the snapshot holds.
    fn known(&self) -> Zxid {
        self.previous.map_or(self.options.from, |previous| previous.max(self.options.from))
    }

    /// Whether a record goes on from what is known, and is news.
    fn admit(
        &mut self,
        path: &Path,
        start: Option<Zxid>,
        record: &Record<'_>,
    ) -> Result<bool, ReplayError> {
        let (offset, found) = (record.offset as u64, record.zxid());
        if start.is_some_and(|start| start != found) {
            return Err(ReplayError::Name { path: path.into(), offset, found });
        }
        // ZooKeeper 3.9 gives the error of a request that it cannot decode no zxid of its own.
        if self.previous == Some(found) && matches!(record.txn, Txn::Error { .. }) {
            return Ok(false);
        }
        if let Some(last) = self.previous.filter(|previous| found <= *previous) {
            return Err(ReplayError::Order { path: path.into(), offset, last, found });
        }
        let (from, last) = (self.options.from, self.known());
        if found <= from {
            self.previous = Some(found);
            self.ends.clear();
            self.sessions_before.note(SessionId(record.header.client_id));
            return Ok(false);
        }
        let is_next = found == last.next();
        // Only a standalone server writes the last number of an epoch, and it goes on with number zero
        // of the next. A leader ends before that number (ZOOKEEPER-1277).
        let begins_epoch = last.epoch() < found.epoch()
            && last.counter() != u32::MAX
            && found <= ZXID_MAX
            && found.counter() == 1
            && !self.skips(last, found);
        if !is_next && !begins_epoch {
            let (path, ended) = (path.into(), self.ended.take());
            return Err(ReplayError::Gap { path, offset, last, found, ended });
        }
        self.previous = Some(found);
        for end in self.ends.drain(..) {
            if !is_next {
                end.explain_by(Some(found))?;
            }
            if end.beyond != Beyond::Zeros {
                self.torn.push(end.into_cut());
            }
        }
        Ok(true)
    }

    /// Whether history is known to have had a transaction between these two.
    fn skips(&self, last: Zxid, next: Zxid) -> bool {
        let is_between = |zxid: Zxid| last < zxid && zxid < next;
        self.known_of.iter().any(|zxid| zxid.counter() != 0 && is_between(*zxid))
            || self.options.watermark.is_some_and(|watermark| {
                let Watermark { log, zxid, .. } = watermark;
                // Before the first record of a log it may be what a new leader's snapshot is named.
                let is_txn = zxid.counter() != 0 || log <= zxid;
                is_txn && is_between(zxid) || watermark.skipped_end(last, next).is_some()
            })
    }

    fn on_end<S: Source>(
        &mut self,
        path: &Path,
        start: Zxid,
        window: &mut Window,
        source: &mut S,
        stop: Stop,
    ) -> Result<(), OnEnd<S::Error>> {
        let known = self.known();
        let path = path.to_path_buf();
        let Stop { cause, .. } = stop;
        let offset = stop.offset as u64;
        if let Cause::Unreadable(malformed) = cause {
            return Err(ReplayError::Unreadable { path, offset, last: known, malformed }.into());
        }
        let own = self.options.watermark.filter(|watermark| watermark.log == start);
        let claimed = self.claims.iter().map(|claim| claim.watermark);
        let mut is_covered = false;
        for watermark in own.into_iter().chain(claimed.filter(|of| of.log == start)) {
            let Watermark { offset: synced, zxid, .. } = watermark;
            let is_below = offset < synced;
            let evidence = if cause == Cause::NoHeader {
                Some(Evidence::Begun { zxid: zxid.min(Zxid(start.0 - 1)) })
            } else if is_below
                && (known < zxid
                    || !is_named_record_there(watermark, window, source, stop.offset)
                        .map_err(OnEnd::Read)?)
            {
                Some(Evidence::Watermark { offset: synced, zxid })
            } else {
                None
            };
            if let Some(evidence) = evidence {
                let last = known;
                return Err(ReplayError::Damaged { path, offset, cause, last, evidence }.into());
            }
            is_covered |= is_below;
        }
        let beyond = beyond(window, source, stop.offset, known).map_err(OnEnd::Read)?;
        self.ended = Some((path.clone(), stop));
        if beyond != Beyond::Zeros || cause == Cause::NoHeader || is_covered {
            let is_bounded = own.is_some_and(|own| own.offset != UNBOUNDED);
            // What a snapshot holds was synced before it was taken, unless a quorum was quicker.
            let last = self.previous.unwrap_or(Zxid(start.0 - 1));
            let may_be_torn = self.is_snapshot_ahead || self.options.from <= last || !is_bounded;
            let unsynced = may_be_torn && own.is_some_and(|own| own.offset <= offset);
            let end =
                End { path, log: start, stop, known, beyond, unsynced, is_bounded, is_covered };
            #[cfg(feature = "mutants")]
            if self.ignores_evidence && unsynced {
                self.ends.push(End { beyond: Beyond::Scraps { end: source.len() }, ..end });
                return Ok(());
            }
            if let Some(evidence) = end.apart() {
                let End { path, .. } = end;
                let last = known;
                return Err(ReplayError::Damaged { path, offset, cause, last, evidence }.into());
            }
            self.ends.push(end);
        }
        Ok(())
    }

    /// After the last log: what history came to, if all of it is there.
    pub fn finish(mut self) -> Result<Replayed, ReplayError> {
        let last = self.known();
        let mut cuts = Vec::new();
        for end in self.ends.drain(..) {
            end.explain_by(None)?;
            if end.is_covered {
                // Nothing of this log is cut, the zeros behind it neither.
                self.ended = None;
                self.torn.push(end.into_cut());
            } else {
                cuts.push(end.into_cut());
            }
        }
        match self.options.watermark {
            Some(watermark) if last < watermark.zxid => Err(ReplayError::Lost { watermark, last }),
            _ => {
                let Replay { txns, ended, torn, sessions_before, .. } = self;
                let end = ended.map(|(path, stop)| (path, stop.offset as u64));
                Ok(Replayed { last, txns, end, cuts, torn, sessions_before })
            }
        }
    }
}

/// What can go wrong at a log's end.
enum OnEnd<E> {
    Read(E),
    Replay(ReplayError),
}

impl<E> From<ReplayError> for OnEnd<E> {
    fn from(error: ReplayError) -> OnEnd<E> {
        OnEnd::Replay(error)
    }
}

impl End {
    /// What proves that the end was durable once, whatever history goes on with.
    fn apart(&self) -> Option<Evidence> {
        match self.beyond {
            Beyond::Records { first, last, .. }
                if self.unsynced && self.is_bounded && first.offset + APART_BYTES < last.offset =>
            {
                Some(Evidence::Apart { first, last })
            }
            _ => None,
        }
    }

    /// Whether history may go on after this end in a later epoch, with `next`, or not at all. That
    /// it goes on with zxid+1 explains any end, and is not asked here.
    fn explain_by(&self, next: Option<Zxid>) -> Result<(), ReplayError> {
        let evidence = match (&self.beyond, next) {
            (Beyond::Records { first: Found { offset, zxid }, .. }, _)
                if !self.unsynced && next.is_none_or(|next| *zxid < next) =>
            {
                Evidence::Later { offset: *offset as u64, zxid: *zxid }
            }
            (_, Some(zxid)) if self.stop.cause == Cause::NoHeader => Evidence::Epoch { zxid },
            _ => return Ok(()),
        };
        let Stop { offset, cause } = self.stop;
        let (path, offset) = (self.path.clone(), offset as u64);
        Err(ReplayError::Damaged { path, offset, cause, last: self.known, evidence })
    }

    fn into_cut(self) -> Cut {
        let End { path, log, stop: Stop { offset, cause }, known: after, beyond, .. } = self;
        let (end, whole) = match beyond {
            Beyond::Zeros => (offset, None),
            Beyond::Scraps { end } => (end, None),
            Beyond::Records { end, first, last } => (end, Some((first, last))),
        };
        Cut { path, log, offset: offset as u64, cause, after, end: end as u64, whole }
    }
}

/// Hands over the records of a log, in order, until `each` has seen enough: `None`. Otherwise says where
/// they end.
pub fn each_record<S: Source>(
    source: &mut S,
    each: impl FnMut(&Record<'_>) -> ControlFlow<()>,
) -> Result<Option<Stop>, S::Error> {
    each_record_from(source, HEADER_BYTES, each)
}

/// The same, from the record on that begins at this byte.
pub fn each_record_from<S: Source>(
    source: &mut S,
    begin: usize,
    mut each: impl FnMut(&Record<'_>) -> ControlFlow<()>,
) -> Result<Option<Stop>, S::Error> {
    let mut window = Window::new(WINDOW_BYTES);
    if !has_header(window.view(source, 0, HEADER_BYTES)?) {
        return Ok(Some(Stop { offset: 0, cause: Cause::NoHeader }));
    }
    let mut offset = begin;
    loop {
        let rest = view_record(&mut window, source, offset)?;
        match rest.and_then(|rest| record_at(rest, offset)) {
            Err(cause) => return Ok(Some(Stop { offset, cause })),
            Ok(record) if each(&record).is_break() => return Ok(None),
            Ok(record) => offset = record.end(),
        }
    }
}

/// The last transaction of a log; `None` if it has none.
pub fn last_record<S: Source>(source: &mut S) -> Result<Option<Zxid>, S::Error> {
    let mut last = None;
    each_record(source, |record| {
        last = Some(record.zxid());
        ControlFlow::Continue(())
    })?;
    Ok(last)
}

/// Whether two stretches of a log are equal byte for byte.
fn is_repeated<S: Source>(
    source: &mut S,
    first: Range<usize>,
    second: Range<usize>,
) -> Result<bool, S::Error> {
    if first.len() != second.len() {
        return Ok(false);
    }
    let [mut one, mut other] = [Window::new(PROBE_BYTES), Window::new(PROBE_BYTES)];
    let mut at = 0;
    while at < first.len() {
        let one = one.view(source, first.start + at, 1)?;
        let other = other.view(source, second.start + at, 1)?;
        let count = one.len().min(other.len()).min(first.len() - at);
        if count == 0 || one[..count] != other[..count] {
            return Ok(false);
        }
        at += count;
    }
    Ok(true)
}

/// The end of a file without a log's header: a crash may leave one short, or part of it zero.
/// Anything else is some other file.
fn no_header(path: &Path, log: &[u8]) -> Result<Stop, ReplayError> {
    let header = &log[..log.len().min(HEADER_BYTES)];
    let magic = LOG_MAGIC.to_be_bytes();
    let common = header.iter().zip(magic).take_while(|(found, magic)| *found == magic).count();
    let is_torn = log.len() < HEADER_BYTES || header[common..].iter().all(|&byte| byte == 0);
    match log.first_chunk().map(|magic| u32::from_be_bytes(*magic)) {
        Some(magic) if !is_torn => Err(ReplayError::Magic { path: path.to_path_buf(), magic }),
        _ => Ok(Stop { offset: 0, cause: Cause::NoHeader }),
    }
}

/// Replays logs that are all in memory: name, zxid in the name, bytes; oldest first.
pub fn replay<'a, P: AsRef<Path>>(
    logs: impl IntoIterator<Item = (P, Zxid, &'a [u8])>,
    options: Options,
    mut each: impl FnMut(&Record<'_>),
) -> Result<Replayed, ReplayError> {
    let mut replay = Replay::new(options);
    for (path, start, log) in logs {
        replay.log(path.as_ref(), start, log, |record| {
            each(record);
            Ok::<(), ReplayError>(())
        })?;
    }
    replay.finish()
}

#[cfg(test)]
mod tests {
    use super::super::damage::{empty_log, history};
    use super::*;
    use crate::types::Epoch;

    const OPTIONS: Options = Options { from: Zxid::ZERO, watermark: None };

    /// Replays logs that are given with the zxid in their name.
    fn run(logs: &[(i64, Vec<u8>)], options: Options) -> Result<(Vec<i64>, Replayed), ReplayError> {
        let mut zxids = Vec::new();
        let named = logs.iter().map(|(start, log)| {
            let name = format!("log.{start:x}");
            (name, Zxid(*start), &log[..])
        });
        let replayed = replay(named, options, |record| zxids.push(record.header.zxid))?;
        Ok((zxids, replayed))
    }

    fn zxid(epoch: u32, counter: u32) -> i64 {
        Zxid::new(Epoch(epoch), counter).0
    }

    /// A log whose last record lacks its end.
    fn torn(zxids: std::ops::RangeInclusive<i64>) -> Vec<u8> {
        let mut log = history(zxids);
        log.truncate(log.len() - 7);
        log
    }

    /// A log with a flipped bit in the payload of its `index`th record.
    fn flipped(zxids: std::ops::RangeInclusive<i64>, index: usize) -> Vec<u8> {
        let mut log = history(zxids);
        let record = LogReader::new(&log).unwrap().nth(index).unwrap();
        let at = record.offset + PAYLOAD_OFFSET + 20;
        log[at] ^= 1;
        log
    }

    #[test]
    fn each_way_to_end_is_told_from_the_others() {
        let whole = history(1..=2);
        let record = LogReader::new(&whole).unwrap().nth(1).unwrap();
        let (start, end) = (record.offset, record.end());
        let length = start + LENGTH_OFFSET..start + PAYLOAD_OFFSET;
        let cause = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut log = whole.clone();
            log.extend_from_slice(&[0; 30]);
            change(&mut log);
            let mut reader = LogReader::new(&log).unwrap();
            let last = reader.by_ref().count();
            (last, reader.stop().unwrap().cause)
        };
        assert_eq!(cause(&|_| ()), (2, Cause::End));
        assert_eq!(cause(&|log| log.truncate(end + 11)), (2, Cause::End));
        assert_eq!(cause(&|log| log.truncate(start + 11)), (1, Cause::Cut));
        assert_eq!(cause(&|log| log.truncate(end - 1)), (1, Cause::Cut));
        assert_eq!(cause(&|log| log[length.clone()].fill(0)), (1, Cause::LengthMissing));
        assert_eq!(cause(&|log| log[start..end].fill(0)), (1, Cause::End));
        assert_eq!(cause(&|log| log[length.clone()].fill(0xff)), (1, Cause::Length(-1)));
        assert_eq!(cause(&|log| log[length.start] = 0x10), (1, Cause::Cut));
        assert_eq!(cause(&|log| log[end - 1] = 0), (1, Cause::EndMark));
        assert_eq!(cause(&|log| log[start + 3] = 1), (1, Cause::Checksum));
        assert_eq!(cause(&|log| log[end - 2] ^= 1), (1, Cause::Checksum));
    }

    #[test]
    fn a_whole_record_that_is_no_transaction_is_refused_wherever_it_is() {
        let mut log = history(1..=1);
        let header = TxnHeader { client_id: 0, cxid: 0, zxid: 2, time: 0, kind: 99 };
        txnlog::append_record(&mut log, |out| header.write(out));
        let offset = history(1..=1).len() as u64;
        let error = run(&[(1, log)], OPTIONS).unwrap_err();
        assert!(
            matches!(error, ReplayError::Unreadable { offset: o, .. } if o == offset),
            "{error}"
        );
    }

    #[test]
    fn a_check_on_its_own_is_handed_over() {
        // ZooKeeper 3.8 logs one, and cannot read it again (ZOOKEEPER-2623).
        let mut log = empty_log();
        let txn = Txn::Check { path: "/a".into(), version: 1 };
        let header = TxnHeader { client_id: 0, cxid: 0, zxid: 1, time: 0, kind: txn.kind() };
        txnlog::append_txn(&mut log, &header, &txn, None);
        let record = LogReader::new(&log).unwrap().next().unwrap();
        assert_eq!(record.txn, txn);
    }

    #[test]
    fn a_proposal_that_was_logged_twice_counts_once() {
        let second = &history(2..=2)[HEADER_BYTES..];
        let log = [&history(1..=2), second, &history(3..=3)[HEADER_BYTES..]].concat();
        assert_eq!(run(&[(1, log)], OPTIONS).unwrap().0, [1, 2, 3]);
        let log = [&history(1..=3), second].concat();
        let error = run(&[(1, log)], OPTIONS).unwrap_err();
        assert!(matches!(error, ReplayError::Order { last: Zxid(3), found: Zxid(2), .. }));
    }

    #[test]
    fn an_error_may_have_the_zxid_of_the_record_before_it() {
        let error = |log: &mut Vec<u8>, zxid| {
            let header = TxnHeader { client_id: 0, cxid: 0, zxid, time: 0, kind: code::ERROR };
            txnlog::append_txn(log, &header, &Txn::Error { err: -5 }, None);
        };
        let mut log = history(1..=2);
        error(&mut log, 2);
        error(&mut log, 2);
        log.extend_from_slice(&history(3..=3)[HEADER_BYTES..]);
        for from in 0..=3 {
            let options = Options { from: Zxid(from), ..OPTIONS };
            assert_eq!(run(&[(1, log.clone())], options).unwrap().0, Vec::from_iter(from + 1..=3));
        }
        error(&mut log, 2);
        let refused = run(&[(1, log)], OPTIONS).unwrap_err();
        assert!(matches!(refused, ReplayError::Order { last: Zxid(3), found: Zxid(2), .. }));
    }

    #[test]
    fn history_goes_on_from_log_to_log() {
        let logs = [(1, history(1..=3)), (4, history(4..=6)), (7, history(7..=7))];
        for from in 0..=7 {
            let options = Options { from: Zxid(from), ..OPTIONS };
            let (zxids, replayed) = run(&logs, options).unwrap();
            assert_eq!(zxids, Vec::from_iter(from + 1..=7));
            assert_eq!(replayed.txns, zxids.len() as u64);
        }
        // ZooKeeper accepts this, and serves 1, 2, 3, 5, 6.
        let error = run(&[(1, history(1..=3)), (5, history(5..=6))], OPTIONS).unwrap_err();
        assert_eq!(
            error.to_string(),
            "log.5: zxid 0x5 at byte 16 does not go on from zxid 0x3: transactions between are \
             missing (log.1 ends at byte 276: no record); nothing has been changed; \
             restore the data directory from a copy, or, as a member of an ensemble, empty it so \
             that this server fetches it anew"
        );
    }

    #[test]
    fn what_a_snapshot_holds_is_not_missed() {
        // Synchronised by a snapshot at 10, so 4 to 10 never were in a log here.
        let logs = [(1, torn(1..=4)), (11, history(11..=12))];
        for from in 10..=13 {
            let options = Options { from: Zxid(from), ..OPTIONS };
            assert_eq!(run(&logs, options).unwrap().0, Vec::from_iter(from + 1..=12));
        }
        let options = Options { from: Zxid(9), ..OPTIONS };
        assert!(matches!(run(&logs, options), Err(ReplayError::Gap { .. })));
    }

    #[test]
    fn a_new_epoch_begins_at_one() {
        let first = (1, history(1..=3));
        let later = zxid(2, 1);
        let (zxids, _) =
            run(&[first.clone(), (later, history(later..=later + 1))], OPTIONS).unwrap();
        assert_eq!(zxids, [1, 2, 3, later, later + 1]);
        let second = zxid(2, 2);
        let error = run(&[first, (second, history(second..=second))], OPTIONS).unwrap_err();
        assert!(matches!(error, ReplayError::Gap { .. }), "{error}");
        // The counter runs over where there is no election, standalone.
        let last = i64::from(u32::MAX);
        let options = Options { from: Zxid(last - 1), ..OPTIONS };
        assert_eq!(run(&[(last, history(last..=last + 2))], options).unwrap().0.len(), 3);
    }

    #[test]
    fn a_torn_tail_that_history_went_on_from_is_only_told() {
        let (zxids, replayed) = run(&[(1, torn(1..=4)), (4, history(4..=5))], OPTIONS).unwrap();
        assert_eq!(zxids, [1, 2, 3, 4, 5]);
        assert_eq!((replayed.torn.len(), replayed.cuts.len()), (1, 0));
        assert_eq!(replayed.torn[0].offset, history(1..=3).len() as u64);
        assert_eq!(replayed.torn[0].cause, Cause::Cut);
    }

    #[test]
    fn a_broken_end_of_an_epoch_is_torn_unless_something_whole_follows_it() {
        let later = (zxid(1, 1), history(zxid(1, 1)..=zxid(1, 1)));
        let (_, replayed) = run(&[(1, flipped(1..=4, 3)), later.clone()], OPTIONS).unwrap();
        assert_eq!(replayed.torn.len(), 1);
        let error = run(&[(1, flipped(1..=4, 2)), later], OPTIONS).unwrap_err();
        let evidence = Evidence::Later { offset: history(1..=3).len() as u64, zxid: Zxid(4) };
        assert!(
            matches!(error, ReplayError::Damaged { evidence: e, .. } if e == evidence),
            "{error}"
        );
    }

    #[test]
    fn the_end_of_an_epoch_that_was_synced_is_missed() {
        let start = zxid(1, 1);
        let logs = |end| [(1, history(1..=end)), (start, history(start..=start))];
        let mut watermark = Watermark::new(Zxid(start), Zxid(3));
        watermark.end_epoch(Zxid(3));
        let options = Options { watermark: Some(watermark), ..OPTIONS };
        assert!(run(&logs(3), options).is_ok());
        assert!(matches!(run(&logs(2), options), Err(ReplayError::Gap { .. })));
    }

    #[test]
    fn the_last_log_may_be_short_and_has_to_go() {
        for length in 0..HEADER_BYTES {
            let mut log = empty_log();
            log.truncate(length);
            let (zxids, replayed) = run(&[(1, history(1..=3)), (4, log.clone())], OPTIONS).unwrap();
            assert_eq!(zxids, [1, 2, 3]);
            let cause = Cause::NoHeader;
            let cut = Cut {
                path: "log.4".into(),
                log: Zxid(4),
                offset: 0,
                cause,
                after: Zxid(3),
                end: log.iter().rposition(|&byte| byte != 0).map_or(0, |last| last as u64 + 1),
                whole: None,
            };
            assert_eq!(replayed.cuts, [cut]);
            // The page of the header was lost, the allocated rest is there.
            log.resize(5000, 0);
            assert_eq!(run(&[(4, log)], OPTIONS).unwrap().1.cuts.len(), usize::from(length < 4));
        }
        let (_, replayed) = run(&[(1, history(1..=3)), (4, empty_log())], OPTIONS).unwrap();
        assert_eq!(replayed.cuts, [], "a header alone is a log");
    }

    #[test]
    fn a_short_log_in_the_middle_is_no_end_of_an_epoch() {
        let logs =
            [(1, history(1..=3)), (4, Vec::new()), (zxid(1, 1), history(zxid(1, 1)..=zxid(1, 1)))];
        let error = run(&logs, OPTIONS).unwrap_err();
        assert!(error.to_string().starts_with("log.4: damaged at byte 0 (no header)"), "{error}");
    }

    #[test]
    fn another_file_is_not_a_log() {
        let mut log = history(1..=3);
        log[3] ^= 1;
        assert!(matches!(
            run(&[(1, log)], OPTIONS),
            Err(ReplayError::Magic { magic: 0x5a4b_4c46, .. })
        ));
        let renamed = run(&[(2, history(1..=3))], OPTIONS);
        assert!(matches!(renamed, Err(ReplayError::Name { found: Zxid(1), .. })));
    }

    #[test]
    fn behind_the_watermark_any_pages_may_be_missing() {
        // Ten records synced, then one over many pages, then some more: every subset of the pages
        // behind the sync is lost.
        let mut log = history(1..=10);
        let synced = log.len();
        let header = TxnHeader { client_id: 0, cxid: 0, zxid: 11, time: 0, kind: code::SET_DATA };
        let data = vec![0xab; 5 * 512];
        let txn = Txn::SetData { path: "/a".into(), data: Some(&data), version: 1 };
        txnlog::append_txn(&mut log, &header, &txn, None);
        log.extend_from_slice(&history(12..=25)[HEADER_BYTES..]);
        let watermark = Watermark { offset: synced as u64, ..Watermark::new(Zxid(1), Zxid(10)) };
        let options = Options { watermark: Some(watermark), ..OPTIONS };
        let pages: Vec<_> = (synced..log.len()).step_by(512).collect();
        let mut whole = 0;
        for lost in 0..1_u32 << pages.len() {
            let mut image = log.clone();
            for (index, start) in pages.iter().enumerate().filter(|(i, _)| lost >> i & 1 == 1) {
                let end = pages.get(index + 1).copied().unwrap_or(log.len());
                image[*start..end].fill(0);
            }
            let (zxids, replayed) = run(&[(1, image)], options).unwrap();
            assert!(10 <= zxids.len());
            assert_eq!(zxids, Vec::from_iter(1..=zxids.len() as i64));
            whole += u32::from(replayed.cuts.is_empty() && zxids.len() == 25);
        }
        assert_eq!(whole, 1, "only the image without a loss is whole");
    }

    #[test]
    fn a_log_that_was_synced_is_missed() {
        let watermark = Watermark { offset: 300, ..Watermark::new(Zxid(4), Zxid(6)) };
        let options = Options { watermark: Some(watermark), ..OPTIONS };
        let error = run(&[(1, history(1..=3))], options).unwrap_err();
        assert_eq!(error, ReplayError::Lost { watermark, last: Zxid(3) });
        assert!(error.to_string().starts_with("transactions up to zxid 0x6 were synced to log.4"));
        let covered = Options { from: Zxid(6), ..options };
        assert_eq!(run(&[(1, history(1..=3))], covered).unwrap().1.last, Zxid(6));
    }

    #[test]
    fn damage_that_a_snapshot_covers_stays_as_it_is() {
        let synced = history(1..=5).len() as u64;
        let watermark = Watermark { offset: synced, ..Watermark::new(Zxid(1), Zxid(5)) };
        let run = |from, index| {
            let options = Options { from: Zxid(from), watermark: Some(watermark) };
            run(&[(1, flipped(1..=5, index))], options)
        };
        assert!(matches!(run(4, 2), Err(ReplayError::Damaged { .. })));
        let (_, replayed) = run(5, 2).unwrap();
        assert_eq!((replayed.last, replayed.cuts.len(), replayed.torn.len()), (Zxid(5), 0, 1));
        assert_eq!(replayed.end, None, "what the watermark names is behind the damage");
        // That record itself.
        for from in [5, 9] {
            let error = run(from, 4).unwrap_err();
            assert!(matches!(error, ReplayError::Damaged { .. }), "{error}");
        }
    }

    /// The watermark may be behind what was acknowledged. What lies between it and the snapshot, and
    /// behind that, is gone with the end of the file.
    #[test]
    fn a_log_that_is_cut_below_the_watermark_is_missed_whatever_a_snapshot_holds() {
        let log = history(1..=9);
        let synced = history(1..=5).len();
        let watermark = Watermark { offset: synced as u64, ..Watermark::new(Zxid(1), Zxid(5)) };
        for from in [5, 7, 20] {
            let options = Options { from: Zxid(from), watermark: Some(watermark) };
            for left in 0..log.len() {
                let mut image = log[..left].to_vec();
                let is_served = run(&[(1, image.clone())], options).is_ok();
                assert_eq!(is_served, synced <= left, "{left} bytes after {from}");
                image.resize(log.len() + 500, 0);
                // The last byte of a record is its mark, and of the header zeros.
                let is_served = run(&[(1, image)], options).is_ok();
                assert_eq!(is_served, synced <= left, "{left} bytes and zeros after {from}");
            }
        }
    }

    /// Records of one size, whoever wrote them.
    fn written_at(time: i64, zxids: std::ops::RangeInclusive<i64>, data: &[u8]) -> Vec<u8> {
        let mut log = empty_log();
        for zxid in zxids {
            let txn = Txn::SetData { path: "/a".into(), data: Some(data), version: 1 };
            let header = TxnHeader { client_id: 1, cxid: 1, zxid, time, kind: txn.kind() };
            txnlog::append_txn(&mut log, &header, &txn, None);
        }
        log
    }

    /// What a watermark says that was stored when `zxid` was the last of `log`.
    fn claim(log: &[u8], start: i64, zxid: i64) -> Claim {
        let last = LogReader::new(log).unwrap().find(|record| record.zxid() == Zxid(zxid)).unwrap();
        let (offset, record) = (last.end() as u64, &log[last.offset..]);
        let checksum = Some(txnlog::first_record_checksum(record));
        let watermark = Watermark { offset, checksum, ..Watermark::new(Zxid(start), Zxid(zxid)) };
        Claim { by: "marks".into(), watermark }
    }

    fn held_against(claim: &Claim, logs: &[(i64, Vec<u8>)]) -> Result<Replayed, ReplayError> {
        let mut replay = Replay::new(OPTIONS);
        replay.hold_against(claim.clone());
        for (start, log) in logs {
            let path = PathBuf::from(format!("log.{start:x}"));
            let each = |_: &Record<'_>| Ok::<(), ReplayError>(());
            let read = replay.log(&path, Zxid(*start), log, each);
            // By itself it is seen as well, where nobody reads the log for its records.
            if Zxid(*start) == claim.watermark.log {
                let checked = claim.check(&path, &mut log.as_slice()).unwrap();
                assert_eq!(checked.is_ok(), read.is_ok(), "{checked:?}, {read:?}");
            }
            read?;
        }
        replay.finish()
    }

    #[test]
    fn a_log_of_another_history_is_refused_however_whole_it_is() {
        let ours = written_at(1, 1..=9, b"data");
        let claim = claim(&ours, 1, 6);
        let foreign = |logs: &[(i64, Vec<u8>)]| {
            let error = held_against(&claim, logs).unwrap_err();
            assert!(matches!(error, ReplayError::Foreign { .. }), "{error}");
            let text = error.to_string();
            assert!(text.starts_with("log.") && text.contains("than marks"), "{text}");
        };
        assert!(held_against(&claim, &[(1, ours.clone())]).is_ok());
        // Records as long, of another time.
        foreign(&[(1, written_at(2, 1..=90, b"data"))]);
        // Of other lengths: none ends there, or another one does.
        foreign(&[(1, written_at(1, 1..=90, b"longer data"))]);
        let twice = written_at(1, 1..=1, &[b'd'; 67]);
        foreign(&[(1, [&twice[..], &written_at(1, 2..=90, b"data")[HEADER_BYTES..]].concat())]);
        // In another log.
        let newer = self::claim(&written_at(1, 4..=9, b"data"), 4, 6);
        let error = held_against(&newer, &[(1, written_at(1, 1..=90, b"data"))]).unwrap_err();
        assert!(matches!(error, ReplayError::Foreign { .. }), "{error}");
        // Without a checksum there is only the place to go by.
        let mut by_place = claim.clone();
        by_place.watermark.checksum = None;
        assert!(held_against(&by_place, &[(1, written_at(2, 1..=90, b"data"))]).is_ok());
        // Before the first record of a log, or without any sync, it names the last one before.
        let begun =
            Watermark { checksum: claim.watermark.checksum, ..Watermark::new(Zxid(7), Zxid(6)) };
        for offset in [UNBOUNDED, HEADER_BYTES as u64] {
            let claim = Claim { watermark: Watermark { offset, ..begun }, ..claim.clone() };
            let logs = |time| {
                let newer = written_at(time, 7..=9, b"data");
                [(1, written_at(time, 1..=6, b"data")), (7, newer)]
            };
            assert!(held_against(&claim, &logs(1)).is_ok());
            let error = held_against(&claim, &logs(2)).unwrap_err();
            assert!(matches!(error, ReplayError::Foreign { .. }), "{error}");
        }
    }

    /// ZooKeeper 3.9 goes on with the error of a request that it cannot decode.
    #[test]
    fn an_error_with_the_zxid_that_a_watermark_names_is_no_other_history() {
        let error = |log: &mut Vec<u8>| {
            let header = TxnHeader { client_id: 0, cxid: 0, zxid: 6, time: 0, kind: code::ERROR };
            txnlog::append_txn(log, &header, &Txn::Error { err: -5 }, None);
        };
        let ours = written_at(1, 1..=6, b"data");
        let (mut same, mut next) = (ours.clone(), empty_log());
        [&mut same, &mut next].into_iter().for_each(error);
        let claim = claim(&ours, 1, 6);
        assert_eq!(held_against(&claim, &[(1, same.clone())]).unwrap().txns, 6);
        assert_eq!(held_against(&claim, &[(1, ours.clone()), (6, next)]).unwrap().txns, 6);
        // The claim may name it as the last record before a log that has none yet.
        let checksum = claim.watermark.checksum;
        let begun = Watermark { checksum, ..Watermark::new(Zxid(7), Zxid(6)) };
        let begun = Claim { watermark: begun, ..claim };
        assert_eq!(held_against(&begun, &[(1, same)]).unwrap().txns, 6);
    }

    /// One standalone server counts on in one long: (e, ffffffff), (e+1, 0), (e+1, 1).
    #[test]
    fn after_the_last_number_of_an_epoch_its_successor_is_missed() {
        let last = i64::from(u32::MAX);
        let logs = |second: i64| {
            [(last - 1, history(last - 1..=last)), (second, history(second..=second + 2))]
        };
        let from = |zxid| Options { from: Zxid(zxid), ..OPTIONS };
        assert!(run(&logs(last + 1), from(last - 2)).is_ok());
        for options in [from(last - 2), from(last)] {
            let error = run(&logs(last + 2), options).unwrap_err();
            assert!(matches!(error, ReplayError::Gap { .. }), "{error}");
            let elected = zxid(7, 1);
            let error = run(&logs(elected), options).unwrap_err();
            assert!(matches!(error, ReplayError::Gap { .. }), "{error}");
        }
        // A new leader's snapshot, of a server that was one of an ensemble from there on.
        assert!(run(&logs(last + 2), from(last + 1)).is_ok());
        // Two are missing, and the watermark knows of the second, which has number zero.
        let two = [(last - 1, history(last - 1..=last - 1)), logs(last + 2)[1].clone()];
        let watermark = Watermark {
            offset: history(last..=last + 1).len() as u64,
            ..Watermark::new(Zxid(last), Zxid(last + 1))
        };
        let known = Options { watermark: Some(watermark), ..from(last - 2) };
        let error = run(&two, known).unwrap_err();
        assert!(matches!(error, ReplayError::Gap { .. }), "{error}");
        // An ensemble's leader ends before the last number, and so do its logs.
        assert!(run(&two, from(last - 2)).is_ok());
    }

    /// A log of records with a kibibyte of data each, and where each begins.
    fn kibibytes(count: i64) -> (Vec<u8>, Vec<usize>) {
        let (mut log, data, mut starts) = (empty_log(), vec![0xab; 1 << 10], Vec::new());
        for zxid in 1..=count {
            starts.push(log.len());
            let txn = Txn::SetData { path: "/a".into(), data: Some(&data), version: 1 };
            let header = TxnHeader { client_id: 0, cxid: 0, zxid, time: 0, kind: txn.kind() };
            txnlog::append_txn(&mut log, &header, &txn, None);
        }
        (log, starts)
    }

    /// A power cut has left a watermark that is behind what was acknowledged.
    #[test]
    fn behind_the_watermark_records_that_are_far_apart_are_not_torn() {
        let (log, starts) = kibibytes(4_000);
        let synced = starts[10];
        let watermark = Watermark { offset: synced as u64, ..Watermark::new(Zxid(1), Zxid(10)) };
        let options = Options { watermark: Some(watermark), ..OPTIONS };
        for broken in [10, 11, 1_000] {
            for (left, is_torn) in [(100, true), (960, true), (1_100, false), (2_000, false)] {
                let mut image = log[..starts[broken + left]].to_vec();
                image[starts[broken] + 100] ^= 1;
                image.resize(image.len() + 100_000, 0);
                match run(&[(1, image)], options) {
                    Ok((zxids, replayed)) => {
                        assert!(is_torn, "{left} whole records behind {broken}");
                        assert_eq!(zxids.len(), broken);
                        let [cut] = &replayed.cuts[..] else { panic!("one tail is torn") };
                        let (first, last) = cut.whole.unwrap();
                        assert_eq!(first.offset, starts[broken + 1]);
                        assert_eq!(last.zxid, Zxid((broken + left) as i64));
                        assert_eq!(cut.after, Zxid(broken as i64));
                        assert_eq!(cut.end as usize, starts[broken + left]);
                    }
                    Err(error) => {
                        assert!(!is_torn, "{left} whole records behind {broken}: {error}");
                        let ReplayError::Damaged { offset, evidence, .. } = error else {
                            panic!("{error}")
                        };
                        assert_eq!(offset as usize, starts[broken]);
                        assert!(matches!(evidence, Evidence::Apart { .. }), "{evidence}");
                    }
                }
            }
        }
    }

    /// `forceSync=no`, and a power cut.
    #[test]
    fn where_nothing_was_ever_synced_any_tail_may_be_torn() {
        let (log, starts) = kibibytes(4_000);
        let mut image = log;
        image[starts[10] + 100] ^= 1;
        let begun = Watermark::new(Zxid(1), Zxid::ZERO);
        let never_synced = Watermark { offset: UNBOUNDED, ..begun };
        let options = Options { watermark: Some(never_synced), ..OPTIONS };
        let (zxids, replayed) = run(&[(1, image.clone())], options).unwrap();
        assert_eq!((zxids.len(), replayed.cuts.len()), (10, 1));
        // One that is synced has only had no sync yet: the bound holds from its beginning.
        let error = run(&[(1, image)], Options { watermark: Some(begun), ..options }).unwrap_err();
        assert!(matches!(error, ReplayError::Damaged { .. }), "{error}");
    }

    #[test]
    fn a_log_that_was_begun_durably_is_not_empty() {
        let watermark = Watermark::new(Zxid(4), Zxid(3));
        let options = Options { watermark: Some(watermark), ..OPTIONS };
        for empty in [Vec::new(), vec![0; 5_000], b"ZKL".to_vec()] {
            let logs = [(1, history(1..=3)), (4, empty)];
            let error = run(&logs, options).unwrap_err();
            let begun = Evidence::Begun { zxid: Zxid(3) };
            assert!(
                matches!(&error, ReplayError::Damaged { evidence, .. } if *evidence == begun),
                "{error}"
            );
            // The watermark may be behind, so a snapshot within the log need not hold all of it.
            for from in [4, 9] {
                let covered = Options { from: Zxid(from), ..options };
                let error = run(&logs, covered).unwrap_err();
                assert!(
                    matches!(&error, ReplayError::Damaged { evidence, .. } if *evidence == begun),
                    "{error}"
                );
            }
        }
        assert!(run(&[(1, history(1..=3)), (4, empty_log())], options).is_ok());
    }

    #[test]
    fn an_epoch_does_not_begin_over_what_is_known_to_be_missing() {
        let later = zxid(2, 1);
        let (older, newer) = ((1, history(1..=3)), (later, history(later..=later)));
        let options = |last| {
            let watermark = Watermark::new(Zxid(1), Zxid(last));
            Options { watermark: Some(watermark), ..OPTIONS }
        };
        assert!(run(&[older.clone(), newer.clone()], options(3)).is_ok());
        let error = run(&[older.clone(), newer.clone()], options(4)).unwrap_err();
        assert!(matches!(error, ReplayError::Gap { .. }), "{error}");
        for (known, is_gap) in [(3, false), (5, true), (zxid(1, 7), true), (zxid(2, 0), false)] {
            let mut replay = Replay::new(OPTIONS);
            replay.expect(Zxid(known));
            let each = |_: &Record<'_>| Ok::<(), ReplayError>(());
            replay.log(Path::new("log.1"), Zxid(1), &older.1, each).unwrap();
            let newer = replay.log(Path::new("log.2"), Zxid(later), &newer.1, each);
            assert_eq!(matches!(newer, Err(ReplayError::Gap { .. })), is_gap, "{known:#x}");
        }
    }

    /// A file that notes how much of it is asked for at once.
    struct Metered<'a> {
        log: &'a [u8],
        longest: usize,
        total: usize,
    }

    impl Source for Metered<'_> {
        type Error = std::convert::Infallible;

        fn len(&self) -> usize {
            self.log.len()
        }

        fn read_at(&mut self, offset: usize, target: &mut [u8]) -> Result<usize, Self::Error> {
            self.longest = self.longest.max(target.len());
            self.total += target.len();
            (&mut &*self.log).read_at(offset, target)
        }
    }

    /// Its header is looked at once, not for each record: that would be another read each time.
    #[test]
    fn a_claim_reads_its_log_about_once() {
        let mut log = history(1..=1);
        let data = vec![7; 64 << 10];
        for zxid in 2..=(3 * WINDOW_BYTES / data.len()) as i64 {
            let txn = Txn::SetData { path: "/a".into(), data: Some(&data), version: 1 };
            let header = TxnHeader { client_id: 0, cxid: 0, zxid, time: 0, kind: txn.kind() };
            txnlog::append_txn(&mut log, &header, &txn, None);
        }
        let records = LogReader::new(&log).unwrap().count() as i64;
        let mut metered = Metered { log: &log, longest: 0, total: 0 };
        let checked = claim(&log, 1, records).check(Path::new("log.1"), &mut metered).unwrap();
        assert!(checked.is_ok(), "{checked:?}");
        assert!(metered.total <= 2 * log.len(), "{} bytes of {}", metered.total, log.len());
    }

    #[test]
    fn a_log_is_read_in_pieces_and_no_length_takes_memory_before_it_is_proven() {
        let mut log = history(1..=100);
        let mut zxid = 100;
        for bytes in [WINDOW_BYTES - 20_000, 10_000, 3 * WINDOW_BYTES, 10, WINDOW_BYTES - 150] {
            zxid += 1;
            let data = vec![zxid as u8; bytes];
            let txn = Txn::SetData { path: "/a".into(), data: Some(&data), version: 1 };
            let header = TxnHeader { client_id: 0, cxid: 0, zxid, time: 0, kind: txn.kind() };
            txnlog::append_txn(&mut log, &header, &txn, None);
        }
        let longest = LogReader::new(&log).unwrap().nth(102).unwrap();
        let (start, end) = (longest.offset, longest.end());
        log.extend_from_slice(&history(106..=110)[HEADER_BYTES..]);
        log.resize(log.len() + 5_000, 0);
        let read = |log: &[u8]| {
            let mut source = Metered { log, longest: 0, total: 0 };
            let mut replay = Replay::new(OPTIONS);
            let mut count = 0;
            let each = |_: &Record<'_>| {
                count += 1;
                Ok::<(), ReplayError>(())
            };
            let path = Path::new("log.1");
            let read = replay.read(path, Zxid(1), &mut source, |never| match never {}, each);
            read.and_then(|()| replay.finish()).map(|_| ()).map_err(|_| ()).unwrap_or_default();
            (count, source.longest)
        };
        let (count, most) = read(&log);
        assert_eq!(count, 110);
        assert!(3 * WINDOW_BYTES < most && most < 3 * WINDOW_BYTES + 100_000, "{most}");
        for at in [start + 3, start + 20, start + 9_000_000, end - 1] {
            let mut image = log.clone();
            image[at] ^= 1;
            let (count, most) = read(&image);
            assert_eq!((count, most <= WINDOW_BYTES), (102, true), "{most}");
        }
        // A proposal that was logged twice, and is longer than the window.
        let twice = [&log[..end], &log[start..]].concat();
        assert_eq!(read(&twice).0, 110);
    }

    #[test]
    fn what_a_snapshot_holds_was_synced_and_a_break_in_it_is_not_torn() {
        let synced = history(1..=5).len() as u64;
        let watermark = Watermark { offset: synced, ..Watermark::new(Zxid(1), Zxid(5)) };
        let options = Options { from: Zxid(8), watermark: Some(watermark) };
        let broken_at = |index| run(&[(1, flipped(1..=10, index))], options);
        let error = broken_at(6).unwrap_err();
        assert!(matches!(error, ReplayError::Damaged { .. }), "{error}");
        assert_eq!(broken_at(8).unwrap().1.last, Zxid(8));
        assert_eq!(broken_at(9).unwrap().1.last, Zxid(9));
    }

    #[test]
    fn a_search_for_what_follows_gives_up_on_the_safe_side() {
        // Each 44 bytes look like a record of a mebibyte but for the checksum.
        let mut log = history(1..=3);
        let mut bait = vec![0, 0, 0, 0, 1, 1, 1, 1];
        bait.extend_from_slice(&(44 * 23_000_u32 + 8).to_be_bytes());
        TxnHeader {
            client_id: 0,
            cxid: i32::from_be_bytes([END_MARK; 4]),
            zxid: 4,
            time: 0,
            kind: 5,
        }
        .write(&mut bait);
        assert_eq!(bait.len(), 44);
        log.extend(bait.iter().cycle().take(44 * 60_000));
        let error = run(&[(1, log)], OPTIONS).unwrap_err();
        assert!(
            matches!(error, ReplayError::Damaged { evidence: Evidence::Later { .. }, .. }),
            "{error}"
        );
    }
}
