//! Log lines on their way out: a queue in memory, and the thread that writes it.
//!
//! ```text
//! any thread ──► room for it? ──► queue ──► log-writer ──► standard output
//!                     └─ no: counted, and said where the lines are missing
//! ```
//!
//! Whoever logs never waits: a pipe that nobody reads, a terminal that is stopped or a full disk
//! holds up the writing thread and no other. So the queue has an end, in bytes, and what finds no
//! room is dropped. Where lines are missing, a line says how many.
//!
//! Audit lines have room of their own, so that no flood of other lines can take it. They are
//! dropped only where they fill it themselves, and that is said as an audit line. (To keep each of
//! them, writes would have to wait for whoever reads the log.)
//!
//! When the process ends, `drain` waits until all is written, for a second at most: a pipe that is
//! stuck must not keep the process.
//!
//! Why not `tracing-appender`: its queue is bounded in lines instead of bytes and shared by all of
//! them, it does not say where lines are missing, and it cannot be emptied from a panic.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam::channel::{self, Receiver, RecvTimeoutError, Sender};

use super::sys;

/// Which room a line takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Audit,
}

/// How much may wait to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    pub(super) plain_bytes: usize,
    pub(super) audit_bytes: usize,
}

/// What a line takes besides its text.
const LINE_BYTES: usize = 64;
/// What is written at once.
const BATCH_BYTES: usize = 64 << 10;

enum Entry {
    Line {
        kind: Kind,
        text: Box<[u8]>,
        /// So many of its kind are missing before it.
        missing: u64,
    },
    /// What would be remarked later is to be said here.
    Settle,
    /// All before this is to be written, and then the other end is told.
    Drain(Sender<()>),
}

/// The end that lines are put into.
#[derive(Clone)]
pub(super) struct LogQueue {
    entries: Sender<Entry>,
    rooms: Arc<Rooms>,
}

struct Rooms {
    plain: Room,
    audit: Room,
}

struct Room {
    bytes_max: usize,
    bytes: AtomicUsize,
    /// How many lines were dropped since the last that was not.
    missing: AtomicU64,
}

impl Room {
    fn new(bytes_max: usize) -> Room {
        Room { bytes_max, bytes: AtomicUsize::new(0), missing: AtomicU64::new(0) }
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let fits = taken + bytes <= self.bytes_max;
        if !fits {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
        fits
    }
}

impl Rooms {
    fn of(&self, kind: Kind) -> &Room {
        match kind {
            Kind::Plain => &self.plain,
            Kind::Audit => &self.audit,
        }
    }
}

/// What the writing thread says of its own accord.
pub(super) trait Remarks: Send + 'static {
    /// A line about lines that are missing.
    fn missing(&self, kind: Kind, count: u64) -> String;

    /// Lines that are due by now, or all that would be due later.
    fn due(&self, at: Option<Instant>) -> Vec<String>;

    /// When the next of these is.
    fn next_due(&self) -> Option<Instant>;
}

impl LogQueue {
    /// Starts the thread, which writes to `out`.
    pub(super) fn start(
        bounds: Bounds,
        remarks: impl Remarks,
        out: impl Write + Send + 'static,
    ) -> io::Result<LogQueue> {
        let (entries, inbox) = channel::unbounded();
        let rooms = Arc::new(Rooms {
            plain: Room::new(bounds.plain_bytes),
            audit: Room::new(bounds.audit_bytes),
        });
        let writer = Writer {
            inbox,
            rooms: Arc::clone(&rooms),
            remarks,
            out,
            batch: Vec::new(),
            in_batch: Vec::new(),
        };
        // Signals that end the server are for the thread that waits for them.
        sys::without_stop_signals(|| {
            thread::Builder::new().name(WRITER_NAME.to_owned()).spawn(|| writer.run())
        })??;
        Ok(LogQueue { entries, rooms })
    }

    /// Has a line written, if there is room for it.
    pub(super) fn push(&self, kind: Kind, text: &[u8]) {
        let room = self.rooms.of(kind);
        if !room.take(text.len() + LINE_BYTES) {
            room.missing.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let missing = match room.missing.load(Ordering::Relaxed) {
            0 => 0,
            _ => room.missing.swap(0, Ordering::Relaxed),
        };
        // The thread ends with the process only.
        let _ = self.entries.send(Entry::Line { kind, text: text.into(), missing });
    }

    /// Has all said here that would be remarked later: what follows are the last lines.
    pub(super) fn settle(&self) {
        let _ = self.entries.send(Entry::Settle);
    }

    /// Waits until all is written, or time is up.
    pub(super) fn drain(&self, patience: Duration) {
        if thread::current().name() == Some(WRITER_NAME) {
            // It would wait for itself.
            return;
        }
        let (written, hear) = channel::bounded(1);
        if self.entries.send(Entry::Drain(written)).is_ok() {
            let _ = hear.recv_timeout(patience);
        }
    }
}

const WRITER_NAME: &str = "log-writer";

struct Writer<R, W> {
    inbox: Receiver<Entry>,
    rooms: Arc<Rooms>,
    remarks: R,
    out: W,
    batch: Vec<u8>,
    in_batch: Vec<Batched>,
}

/// A line in the batch.
struct Batched {
    kind: Kind,
    /// What it takes of its room.
    bytes: usize,
    /// How many lines are lost with it: itself, or those that it says are missing.
    lines: u64,
}

impl<R: Remarks, W: Write> Writer<R, W> {
    fn run(mut self) {
        loop {
            let received = match self.remarks.next_due() {
                Some(at) => self.inbox.recv_deadline(at),
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let mut entry = match received {
                Ok(entry) => Some(entry),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            while let Some(taken) = entry {
                self.take(taken);
                if BATCH_BYTES <= self.batch.len() {
                    self.write();
                }
                entry = self.inbox.try_recv().ok();
            }
            // Nothing came behind the last that were dropped.
            for kind in [Kind::Plain, Kind::Audit] {
                let missing = self.rooms.of(kind).missing.swap(0, Ordering::Relaxed);
                self.say_missing(kind, missing);
            }
            self.say_due(Some(Instant::now()));
            self.write();
        }
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Line { kind, text, missing } => {
                self.say_missing(kind, missing);
                self.batch.extend_from_slice(&text);
                self.in_batch.push(Batched { kind, bytes: text.len() + LINE_BYTES, lines: 1 });
            }
            Entry::Settle => self.say_due(None),
            Entry::Drain(written) => {
                self.write();
                let _ = written.send(());
            }
        }
    }

    fn say_missing(&mut self, kind: Kind, count: u64) {
        if 0 < count {
            self.batch.extend_from_slice(self.remarks.missing(kind, count).as_bytes());
            self.in_batch.push(Batched { kind, bytes: 0, lines: count });
        }
    }

    fn say_due(&mut self, at: Option<Instant>) {
        for line in self.remarks.due(at) {
            self.batch.extend_from_slice(line.as_bytes());
        }
    }

    fn write(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        // A log that cannot be written (a full disk, a closed pipe) is no reason to end.
        let is_written = self.out.write_all(&self.batch).and_then(|()| self.out.flush()).is_ok();
        self.batch.clear();
        for Batched { kind, bytes, lines } in self.in_batch.drain(..) {
            let room = self.rooms.of(kind);
            room.bytes.fetch_sub(bytes, Ordering::Relaxed);
            if !is_written {
                room.missing.fetch_add(lines, Ordering::Relaxed);
            }
        }
    }
}

/// Standard output, without the lock and the buffer of the standard library.
pub(super) struct Output(File);

impl Output {
    pub(super) fn standard() -> io::Result<Output> {
        Ok(Output(File::from(io::stdout().as_fd().try_clone_to_owned()?)))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                // Whoever shares the pipe with us may have told it not to wait.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    sys::wait_writable(self.0.as_fd())?;
                }
                written => return written,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::sync::atomic::AtomicBool;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    #[derive(Default)]
    struct Few(AtomicBool);

    impl Remarks for Few {
        fn missing(&self, kind: Kind, count: u64) -> String {
            format!("{kind:?} without {count}\n")
        }

        fn due(&self, at: Option<Instant>) -> Vec<String> {
            let is_last = at.is_none() && !self.0.swap(true, Ordering::Relaxed);
            is_last.then(|| "due\n".to_owned()).into_iter().collect()
        }

        fn next_due(&self) -> Option<Instant> {
            None
        }
    }

    /// A queue into a pipe, and its other end.
    fn begun(bounds: Bounds) -> (LogQueue, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        (LogQueue::start(bounds, Few::default(), writer).unwrap(), reader)
    }

    const SMALL: Bounds = Bounds { plain_bytes: 20_000, audit_bytes: 10_000 };

    fn text_of(queue: LogQueue, mut reader: io::PipeReader) -> String {
        let read = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        queue.drain(PATIENCE);
        drop(queue);
        read.join().unwrap()
    }

    #[test]
    fn lines_leave_in_their_order_and_the_last_is_not_lost() {
        let (queue, reader) = begun(SMALL);
        for number in 0..100 {
            let kind = if number % 3 == 0 { Kind::Audit } else { Kind::Plain };
            queue.push(kind, format!("{number}\n").as_bytes());
        }
        queue.settle();
        queue.push(Kind::Plain, b"last\n");
        let text = text_of(queue, reader);
        let expected: String = (0..100).map(|number| format!("{number}\n")).collect();
        assert_eq!(text, expected + "due\nlast\n");
    }

    #[test]
    fn nobody_waits_for_a_pipe_that_is_not_read_and_what_is_missing_is_counted() {
        const LINES: u64 = 20_000;
        let (queue, reader) = begun(SMALL);
        let began = Instant::now();
        for number in 0..LINES {
            queue.push(Kind::Plain, format!("line {number:06}\n").as_bytes());
        }
        assert!(began.elapsed() < PATIENCE);
        let drained = Instant::now();
        queue.drain(Duration::from_millis(10));
        assert!(drained.elapsed() < PATIENCE, "a stuck pipe keeps nobody");
        let text = text_of(queue, reader);
        let (mut next, mut missing) = (0, 0);
        for line in text.lines() {
            if let Some(number) = line.strip_prefix("line ") {
                assert_eq!(number.parse(), Ok(next), "what is missing is said before what follows");
                next += 1;
            } else if let Some(count) = line.strip_prefix("Plain without ") {
                let count: u64 = count.parse().unwrap();
                (next, missing) = (next + count, missing + count);
            }
        }
        assert_eq!(next, LINES);
        assert!(0 < missing && missing < LINES);
    }

    #[test]
    fn a_flood_takes_no_room_from_audit_lines() {
        let (queue, reader) = begun(SMALL);
        let flood = vec![b'x'; 1000];
        for number in 0..50 {
            for _ in 0..100 {
                queue.push(Kind::Plain, &flood);
            }
            queue.push(Kind::Audit, format!("audited {number}\n").as_bytes());
        }
        for _ in 0..20 {
            queue.push(Kind::Audit, &flood);
        }
        let text = text_of(queue, reader);
        for number in 0..50 {
            assert_eq!(text.matches(&format!("audited {number}\n")).count(), 1, "{number}");
        }
        assert!(text.contains("Plain without "));
        assert!(text.contains("Audit without "), "their own flood is said");
    }

    struct Broken(Arc<AtomicBool>, io::PipeWriter);

    impl Write for Broken {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.load(Ordering::Relaxed) {
                true => Err(io::ErrorKind::StorageFull.into()),
                false => self.1.write(bytes),
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_could_not_be_written_is_counted_too() {
        let (reader, writer) = io::pipe().unwrap();
        let is_full = Arc::new(AtomicBool::new(true));
        let out = Broken(Arc::clone(&is_full), writer);
        let queue = LogQueue::start(SMALL, Few::default(), out).unwrap();
        queue.push(Kind::Plain, b"1\n");
        queue.push(Kind::Plain, b"2\n");
        queue.drain(PATIENCE);
        is_full.store(false, Ordering::Relaxed);
        queue.push(Kind::Plain, b"3\n");
        let text = text_of(queue, reader);
        assert!(text == "Plain without 2\n3\n" || text == "3\nPlain without 2\n", "{text}");
    }
}
