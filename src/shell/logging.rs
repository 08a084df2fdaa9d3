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

#![expect(unsafe_code, reason = "only the C library knows the local time zone")]

use std::fmt::{self, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, error, info};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

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
    let lines = tracing_subscriber::fmt::layer()
        // A log that cannot be written (a full disk, a closed pipe) is no reason to end.
        .log_internal_errors(false)
        .event_format(Lines { format: logging.format, server_id })
        .with_writer(std::io::stdout);
    let installed = tracing_subscriber::registry().with(filter).with(lines).try_init();
    outcome.and(installed.map_err(|error| error.to_string()))
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
struct Lines {
    format: LogFormat,
    /// Of a member of an ensemble; a standalone server has none to show.
    server_id: Option<ServerId>,
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
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let thread = std::thread::current();
        let origin = Origin {
            level: *event.metadata().level(),
            thread: thread.name().unwrap_or("unnamed"),
            module: match event.metadata().target() {
                AUDIT => AUDIT,
                _ => event.metadata().module_path().unwrap_or_default(),
            },
            line: event.metadata().line().unwrap_or_default(),
        };
        match self.format {
            LogFormat::Text => self.text(&mut writer, since_1970, &origin, event),
            LogFormat::Json => self.json(&mut writer, since_1970, &origin, event),
        }
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
    fn text(
        &self,
        writer: &mut Writer<'_>,
        since_1970: Duration,
        origin: &Origin<'_>,
        event: &Event<'_>,
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
        write!(writer, "@{line}] - ")?;
        let has_tabs = event.metadata().target() == AUDIT;
        let mut fields = TextFields { message: String::new(), rest: String::new(), has_tabs };
        event.record(&mut fields);
        writeln!(writer, "{}{}", fields.message, fields.rest)
    }

    fn json(
        &self,
        writer: &mut Writer<'_>,
        since_1970: Duration,
        origin: &Origin<'_>,
        event: &Event<'_>,
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
        write!(writer, ",\"thread\":{thread},\"module\":{module},\"line\":{line}")?;
        let mut fields = JsonFields(String::new());
        event.record(&mut fields);
        writeln!(writer, "{}}}", fields.0)
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

    impl io::Write for Sink {
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
            .event_format(Lines { format, server_id })
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
    fn moments_are_dates() {
        let civil = Civil::utc(Duration::from_millis(1_795_181_292_767));
        let Civil { year, month, day, hour, minute, second, millisecond } = civil;
        assert_eq!((year, month, day), (2026, 11, 20));
        assert_eq!((hour, minute, second, millisecond), (13, 28, 12, 767));
        assert_eq!(Civil::utc(Duration::ZERO).year, 1970);
    }
}
