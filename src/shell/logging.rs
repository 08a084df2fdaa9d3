//! Log lines, in ZooKeeper's shape or as JSON.
//!
//! ```text
//! 2026-11-20 13:28:12,767 [myid:1] - INFO  [main:storage.replay@87] - message field=value
//! {"time":"2026-11-20T12:28:12.767Z","level":"INFO","myid":1,"thread":"main",...}
//! ```
//!
//! The first four columns are those of the pattern that ZooKeeper ships, for log collectors know
//! it; the time is local there and UTC in JSON. One event is one line, whatever its fields hold:
//! what a client sends cannot forge another. Fields whose names end in `password` print `***`.
//!
//! Warnings that repeat are folded: the first is logged at once, and then, once in a while, how
//! many there were. Lines are written by a thread of their own (`log_queue.rs`), so that no other
//! ever waits for whoever reads them.

#![expect(unsafe_code, reason = "only the C library knows the local time zone")]

use std::backtrace::{Backtrace, BacktraceStatus};
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::{self, Write};
use std::panic::PanicHookInfo;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crossbeam::channel;
use parking_lot::Mutex;
use tracing::callsite::Identifier;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber, error, info};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::log_queue::{Bounds, Kind, LogQueue, Output, Remarks};
use crate::config::{LogFormat, Logging, SECRET, is_secret};
use crate::pipeline::{AuditResult, Audited};
use crate::types::ServerId;

/// Sends all events of the process to standard output. To be called once, before the first event.
/// What it returns is to be logged: a level that was not understood.
pub fn start(logging: &Logging, server_id: Option<ServerId>) -> Result<(), String> {
    let (filter, outcome) = match EnvFilter::try_new(&logging.levels) {
        Ok(filter) => (filter, Ok(())),
        Err(error) => {
            (EnvFilter::new("info"), Err(format!("ringkeeper.log.level, taken as info: {error}")))
        }
    };
    let window = Duration::from_secs(logging.fold_seconds);
    let lines = Lines {
        format: logging.format,
        server_id,
        fold: (!window.is_zero()).then(|| Arc::new(Fold::new(window))),
    };
    let bounds =
        Bounds { plain_bytes: logging.queue_bytes, audit_bytes: logging.audit_queue_bytes };
    let queue = Output::standard().and_then(|out| LogQueue::start(bounds, lines.clone(), out));
    let queue = queue.map_err(|error| format!("nothing is logged: {error}"))?;
    let layer = tracing_subscriber::fmt::layer()
        .log_internal_errors(false)
        .event_format(lines)
        .with_writer(Queued(queue.clone()));
    let installed = tracing_subscriber::registry().with(filter).with(layer).try_init();
    let _ = QUEUE.set(queue);
    outcome.and(installed.map_err(|error| error.to_string()))
}

/// Where all lines go, once there is a log.
static QUEUE: OnceLock<LogQueue> = OnceLock::new();

/// How long the end of the process waits for what is still to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What follows are the last lines: what is only counted so far is said before them.
pub fn settle() {
    if let Some(queue) = QUEUE.get() {
        queue.settle();
    }
}

/// Waits until all that was logged is written, for a moment at most. To be called before the
/// process ends.
pub fn drain() {
    if let Some(queue) = QUEUE.get() {
        queue.drain(LAST_WORDS);
    }
}

/// Says something on standard error, where somebody reads it.
pub fn complain(line: &str) {
    let text = format!("{line}\n");
    let (written, hear) = channel::bounded(1);
    // A pipe that is full holds up that thread, and the end of the process ends it.
    let spawned = thread::Builder::new().name("complaint".to_owned()).spawn(move || {
        let _ = io::stderr().write_all(text.as_bytes());
        let _ = written.send(());
    });
    if spawned.is_ok() {
        let _ = hear.recv_timeout(LAST_WORDS);
    }
}

/// What is left to say of a panic, which is to end the process.
pub(crate) fn report_panic(panic: &PanicHookInfo<'_>) {
    let thread = thread::current();
    let name = thread.name().unwrap_or("unnamed");
    settle();
    error!("thread '{name}' {panic}");
    let backtrace = Backtrace::capture();
    let mut text = format!("thread '{name}' {panic}");
    if backtrace.status() == BacktraceStatus::Captured {
        text.push_str(&format!("\nstack backtrace:\n{backtrace}"));
    }
    complain(&text);
    drain();
}

/// Puts each line into the room for its kind.
struct Queued(LogQueue);

struct QueuedLine<'a> {
    queue: &'a LogQueue,
    kind: Kind,
}

impl<'a> MakeWriter<'a> for Queued {
    type Writer = QueuedLine<'a>;

    fn make_writer(&'a self) -> QueuedLine<'a> {
        QueuedLine { queue: &self.0, kind: Kind::Plain }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> QueuedLine<'a> {
        let kind = if metadata.target() == AUDIT { Kind::Audit } else { Kind::Plain };
        QueuedLine { queue: &self.0, kind }
    }
}

impl Write for QueuedLine<'_> {
    /// All of a line is written at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.queue.push(self.kind, line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where audit lines go to, for filters: `ringkeeper.log.level=info,audit=off`.
const AUDIT: &str = "audit";

/// Logs a line of the audit log, at the levels that ZooKeeper's have.
pub(crate) fn audit(audited: &Audited) {
    let Audited { result, line } = audited;
    if *result != AuditResult::Failure {
        info!(target: AUDIT, "{line}");
    } else {
        error!(target: AUDIT, "{line}");
    }
}

/// An event as a line.
#[derive(Clone)]
struct Lines {
    format: LogFormat,
    /// Of a member of an ensemble; a standalone server has none to show.
    server_id: Option<ServerId>,
    /// `None`: all lines are logged, however often they come.
    fold: Option<Arc<Fold>>,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let metadata = event.metadata();
        let thread = thread::current();
        let origin = Origin {
            level: *metadata.level(),
            thread: thread.name().unwrap_or("unnamed"),
            module: match metadata.target() {
                AUDIT => AUDIT,
                _ => metadata.module_path().unwrap_or_default(),
            },
            line: metadata.line().unwrap_or_default(),
        };
        let body = self.body(event);
        if *metadata.level() <= Level::WARN
            && metadata.target() != AUDIT
            && let Some(fold) = &self.fold
            && fold.folds(Instant::now(), metadata, &origin, &body)
        {
            // Nothing is written.
            return Ok(());
        }
        self.line(&mut writer, &origin, &body)
    }
}

/// Where an event was made.
struct Origin<'a> {
    level: Level,
    thread: &'a str,
    module: &'a str,
    line: u32,
}

impl Lines {
    /// What an event says, as it stands in a line.
    fn body(&self, event: &Event<'_>) -> String {
        match self.format {
            LogFormat::Text => {
                let has_tabs = event.metadata().target() == AUDIT;
                let mut fields =
                    TextFields { message: String::new(), rest: String::new(), has_tabs };
                event.record(&mut fields);
                fields.message + &fields.rest
            }
            LogFormat::Json => {
                let mut fields = JsonFields(String::new());
                event.record(&mut fields);
                fields.0
            }
        }
    }

    fn line(&self, writer: &mut dyn fmt::Write, origin: &Origin<'_>, body: &str) -> fmt::Result {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        match self.format {
            LogFormat::Text => self.text(writer, since_1970, origin, body),
            LogFormat::Json => self.json(writer, since_1970, origin, body),
        }
    }

    fn text(
        &self,
        writer: &mut dyn fmt::Write,
        since_1970: Duration,
        origin: &Origin<'_>,
        body: &str,
    ) -> fmt::Result {
        let time = Civil::local(since_1970);
        let Civil { year, month, day, hour, minute, second, millisecond } = time;
        write!(writer, "{year:04}-{month:02}-{day:02} ")?;
        write!(writer, "{hour:02}:{minute:02}:{second:02},{millisecond:03} [myid:")?;
        if let Some(id) = self.server_id {
            write!(writer, "{id}")?;
        }
        let Origin { level, thread, module, line } = origin;
        write!(writer, "] - {level:<5} [{thread}:")?;
        // The name of the package is the same on every line.
        let module = module.split_once("::").map_or(*module, |(_, module)| module);
        for (place, part) in module.split("::").enumerate() {
            write!(writer, "{}{part}", if place == 0 { "" } else { "." })?;
        }
        writeln!(writer, "@{line}] - {body}")
    }

    fn json(
        &self,
        writer: &mut dyn fmt::Write,
        since_1970: Duration,
        origin: &Origin<'_>,
        body: &str,
    ) -> fmt::Result {
        let time = Civil::utc(since_1970);
        let Civil { year, month, day, hour, minute, second, millisecond } = time;
        write!(writer, "{{\"time\":\"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:")?;
        let Origin { level, thread, module, line } = origin;
        write!(writer, "{second:02}.{millisecond:03}Z\",\"level\":\"{level}\"")?;
        if let Some(id) = self.server_id {
            write!(writer, ",\"myid\":{id}")?;
        }
        let (thread, module) = (quoted(thread), quoted(module));
        writeln!(writer, ",\"thread\":{thread},\"module\":{module},\"line\":{line}{body}}}")
    }

    /// A line of the writing thread's own.
    fn remark(&self, origin: &Origin<'_>, message: &str) -> String {
        let mut line = String::new();
        let body = match self.format {
            LogFormat::Text => message.to_owned(),
            LogFormat::Json => format!(",\"message\":{}", quoted(message)),
        };
        self.line(&mut line, origin, &body).expect("a string takes all");
        line
    }
}

impl Remarks for Lines {
    fn missing(&self, kind: Kind, count: u64) -> String {
        let (level, module, what) = match kind {
            Kind::Plain => (Level::WARN, module_path!(), "lines of the log"),
            Kind::Audit => (Level::ERROR, AUDIT, "audit lines"),
        };
        let origin = Origin { level, thread: "log-writer", module, line: line!() };
        self.remark(
            &origin,
            &format!(
                "{count} {what} are missing here: they came faster than they could be written"
            ),
        )
    }

    fn due(&self, at: Option<Instant>) -> Vec<String> {
        let Some(fold) = &self.fold else { return Vec::new() };
        let mut lines = Vec::new();
        for repeated in fold.due(at) {
            let Repeated { level, thread, module, line, body, count, seconds } = repeated;
            let origin = Origin { level, thread: &thread, module: &module, line };
            let body = match self.format {
                LogFormat::Text => format!("{body} ({count} more in the last {seconds} s)"),
                LogFormat::Json => format!("{body},\"repeated\":{count},\"seconds\":{seconds}"),
            };
            let mut text = String::new();
            self.line(&mut text, &origin, &body).expect("a string takes all");
            lines.push(text);
        }
        lines
    }

    fn next_due(&self) -> Option<Instant> {
        self.fold.as_ref()?.next_due()
    }
}

/// What was said lately, and how often since.
///
/// Nobody waits for the lock: who does not get it at once has its line logged.
struct Fold {
    window: Duration,
    said: Mutex<HashMap<(Identifier, String), Said>>,
}

/// So many different lines are remembered; more of them are logged each time.
const FOLDED_MAX: usize = 1024;

struct Said {
    level: Level,
    thread: String,
    module: String,
    line: u32,
    since: Instant,
    count: u64,
}

/// A line that was said again.
struct Repeated {
    level: Level,
    thread: String,
    module: String,
    line: u32,
    body: String,
    count: u64,
    seconds: u64,
}

impl Fold {
    fn new(window: Duration) -> Fold {
        Fold { window, said: Mutex::default() }
    }

    /// Whether a line is only counted: it was said a moment ago.
    fn folds(
        &self,
        now: Instant,
        metadata: &'static Metadata<'static>,
        origin: &Origin<'_>,
        body: &str,
    ) -> bool {
        let Some(mut said) = self.said.try_lock() else { return false };
        let key = (metadata.callsite(), body.to_owned());
        if let Some(before) = said.get_mut(&key) {
            before.count += 1;
            return true;
        }
        if said.len() < FOLDED_MAX {
            let Origin { level, thread, module, line } = *origin;
            let (thread, module) = (thread.to_owned(), module.to_owned());
            said.insert(key, Said { level, thread, module, line, since: now, count: 0 });
        }
        false
    }

    /// What was said again in the windows that are over by then; or in all.
    fn due(&self, at: Option<Instant>) -> Vec<Repeated> {
        let mut due = Vec::new();
        self.said.lock().retain(|(_, body), said| {
            if at.is_some_and(|at| at < said.since + self.window) {
                return true;
            }
            if said.count == 0 {
                return false;
            }
            let seconds = match at {
                Some(_) => self.window.as_secs(),
                None => said.since.elapsed().as_secs().max(1),
            };
            due.push(Repeated {
                level: said.level,
                thread: said.thread.clone(),
                module: said.module.clone(),
                line: said.line,
                body: body.clone(),
                count: said.count,
                seconds,
            });
            // It goes on being counted, for another while.
            said.since += self.window;
            said.count = 0;
            true
        });
        due
    }

    fn next_due(&self) -> Option<Instant> {
        self.said.lock().values().map(|said| said.since + self.window).min()
    }
}

/// `message`, then ` field=value` for each.
struct TextFields {
    message: String,
    rest: String,
    /// The message is an audit line, whose fields have tabs between them and none inside.
    has_tabs: bool,
}

impl TextFields {
    fn put(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let written = match field.name() {
            "message" => write!(OneLine(&mut self.message, self.has_tabs), "{value}"),
            name if is_secret(name) => write!(self.rest, " {name}={SECRET}"),
            name => write!(OneLine(&mut self.rest, false), " {name}={value}"),
        };
        written.expect("a string takes all");
    }
}

impl Visit for TextFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, format_args!("{value:?}"));
    }
}

/// Writes text with its control characters escaped; tabs not, where they are to be kept.
struct OneLine<'a>(&'a mut String, bool);

impl fmt::Write for OneLine<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for c in text.chars() {
            if c.is_control() && !(self.1 && c == '\t') {
                self.0.extend(c.escape_default());
            } else {
                self.0.push(c);
            }
        }
        Ok(())
    }
}

/// `,"field":value` for each, the message among them.
struct JsonFields(String);

impl JsonFields {
    fn put(&mut self, field: &Field, json: &str) {
        let name = quoted(field.name());
        let secret = quoted(SECRET);
        let json = if is_secret(field.name()) { &secret } else { json };
        write!(self.0, ",{name}:{json}").expect("a string takes all");
    }
}

impl Visit for JsonFields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, &value.to_string());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, &quoted(value));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, &quoted(&format!("{value:?}")));
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// A moment as a calendar and a clock show it.
#[derive(Debug, PartialEq, Eq)]
struct Civil {
    year: i32,
    month: i32,
    day: i32,
    hour: i32,
    minute: i32,
    second: i32,
    millisecond: u32,
}

impl Civil {
    /// In the time zone of `TZ`, or of the machine.
    fn local(since_1970: Duration) -> Civil {
        Civil::by(libc::localtime_r, since_1970)
    }

    fn utc(since_1970: Duration) -> Civil {
        Civil::by(libc::gmtime_r, since_1970)
    }

    fn by(
        convert: unsafe extern "C" fn(*const libc::time_t, *mut libc::tm) -> *mut libc::tm,
        since_1970: Duration,
    ) -> Civil {
        let seconds = libc::time_t::try_from(since_1970.as_secs()).unwrap_or(libc::time_t::MAX);
        // SAFETY: `tm` is numbers and a pointer, for all of which zero is a value.
        let mut tm: libc::tm = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live, aligned values of ours, which the call does not keep.
        // The C library reads the environment under a lock of its own; nothing in this process
        // writes it after the start. On failure (a year beyond its numbers) `tm` stays zero.
        unsafe { convert(&seconds, &mut tm) };
        Civil {
            year: tm.tm_year.saturating_add(1900),
            month: tm.tm_mon + 1,
            day: tm.tm_mday,
            hour: tm.tm_hour,
            minute: tm.tm_min,
            second: tm.tm_sec,
            millisecond: since_1970.subsec_millis(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is logged by these events.
    fn logged(format: LogFormat, server_id: Option<ServerId>, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let writer = sink.clone();
        let lines = tracing_subscriber::fmt::layer()
            .event_format(Lines { format, server_id, fold: None })
            .with_writer(move || writer.clone());
        let subscriber = tracing_subscriber::registry().with(lines);
        tracing::subscriber::with_default(subscriber, events);
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_line_has_the_columns_of_zookeepers_pattern() {
        let line = logged(LogFormat::Text, None, || {
            tracing::warn!(zxid = %"0x1", count = 3, name = "a b", "binding to port");
        });
        let (time, rest) = line.split_at(23);
        let shape: String =
            time.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        assert_eq!(shape, "9999-99-99 99:99:99,999");
        let (origin, message) = rest.split_once("] - binding").unwrap();
        assert!(origin.starts_with(" [myid:] - WARN  ["), "{origin}");
        let (_, place) = origin.rsplit_once("shell.logging.tests@").unwrap();
        assert!(place.parse::<u32>().is_ok(), "{origin}");
        assert_eq!(message, " to port zxid=0x1 count=3 name=a b\n");
    }

    #[test]
    fn the_number_of_an_ensembles_server_is_shown() {
        let line = logged(LogFormat::Text, Some(ServerId(7)), || tracing::info!("x"));
        assert!(line.contains(" [myid:7] - INFO  ["), "{line}");
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = logged(format, None, || {
                tracing::info!(path = "/a\n2026-11-20 forged", key = ?"\r", "x\u{1b}[2J");
            });
            assert_eq!(line.lines().count(), 1, "{line:?}");
            assert!(!line.trim_end().contains(char::is_control), "{line:?}");
        }
    }

    #[test]
    fn an_audit_line_keeps_its_tabs_and_nothing_else_that_is_no_text() {
        let audited =
            |result| Audited { result, line: "user=a\toperation=b\n\tresult=c".to_owned() };
        let line = logged(LogFormat::Text, None, || audit(&audited(AuditResult::Success)));
        let (origin, message) = line.split_once("] - user").unwrap();
        assert!(origin.contains("- INFO ") && origin.contains(":audit@"), "{origin}");
        assert_eq!(message, "=a\toperation=b\\n\tresult=c\n");
        let line = logged(LogFormat::Text, None, || audit(&audited(AuditResult::Failure)));
        assert!(line.contains("- ERROR "), "{line}");
    }

    #[test]
    fn passwords_are_not_logged() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let line = logged(format, None, || {
                tracing::info!(store_password = "secret1", Password = 1_234_567, "set");
            });
            assert!(!line.contains("secret1") && !line.contains("1234567"), "{line}");
            assert!(line.contains("***"), "{line}");
        }
    }

    #[test]
    fn json_keeps_the_kinds_of_values() {
        let line = logged(LogFormat::Json, Some(ServerId(2)), || {
            tracing::error!(zxid = 5_u64, ok = true, path = "/a\"b", "no");
        });
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "ERROR");
        assert_eq!(value["myid"], 2);
        assert_eq!(value["zxid"], 5);
        assert_eq!(value["ok"], true);
        assert_eq!(value["path"], "/a\"b");
        assert_eq!(value["message"], "no");
        assert!(value["time"].as_str().unwrap().ends_with('Z'));
    }

    #[test]
    fn warnings_that_repeat_are_counted_and_others_are_not_touched() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let fold = Some(Arc::new(Fold::new(Duration::from_secs(10))));
            let lines = Lines { format, server_id: None, fold };
            let sink = Sink::default();
            let writer = sink.clone();
            let layer = tracing_subscriber::fmt::layer()
                .event_format(lines.clone())
                .with_writer(move || writer.clone());
            let subscriber = tracing_subscriber::registry().with(layer);
            tracing::subscriber::with_default(subscriber, || {
                for number in 0..100 {
                    let from = number % 2;
                    tracing::warn!(from, "refused");
                    tracing::info!("told");
                }
                for _ in 0..3 {
                    audit(&Audited { result: AuditResult::Failure, line: "denied".to_owned() });
                }
            });
            let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
            let count = |word| text.matches(word).count();
            assert_eq!((count("refused"), count("told"), count("denied")), (2, 100, 3), "{text}");
            let next = lines.next_due().unwrap();
            assert!(lines.due(Some(next - Duration::from_millis(1))).is_empty());
            let later = lines.due(Some(next + Duration::from_secs(1)));
            assert_eq!(later.len(), 2);
            for line in later {
                let says = match format {
                    LogFormat::Text => "(49 more in the last 10 s)\n",
                    LogFormat::Json => ",\"repeated\":49,\"seconds\":10}\n",
                };
                assert!(line.contains("refused") && line.ends_with(says), "{line}");
            }
            // The next window, in which nothing comes.
            assert!(lines.due(Some(next + Duration::from_secs(12))).is_empty());
            assert_eq!(lines.next_due(), None);
        }
    }

    #[test]
    fn moments_are_dates() {
        let civil = Civil::utc(Duration::from_millis(1_795_181_292_767));
        let Civil { year, month, day, hour, minute, second, millisecond } = civil;
        assert_eq!((year, month, day), (2026, 11, 20));
        assert_eq!((hour, minute, second, millisecond), (13, 28, 12, 767));
        assert_eq!(Civil::utc(Duration::ZERO).year, 1970);
    }
}
