//! Every tunable: its name, unit, range, default, what it does and what it trades.
//!
//! One table. The parser reads by it, `ringkeeper knobs` prints it, and nothing else in the code
//! has a default of its own. A setting is written in `zoo.cfg` under its key; where it is also a
//! system property, `-D` sets that.
//!
//! | read as | property | bad value | who wins |
//! |---|---|---|---|
//! | file key | none | refused | the file |
//! | property | `zookeeper.` + key | the default, with a warning | the file over `-D` |
//! | bare property | the key itself | the default, with a warning | `-D` over the file |
//! | ours | the key itself | refused | `-D` over environment over the file |
//!
//! The first three are `QuorumPeerConfig.parseProperties`, which makes every key it does not know
//! a property `zookeeper.` + key; that a bare property may stand in the file at all is our
//! extension.

use std::fmt::Write as _;

/// One tunable with the type of its default.
pub struct Knob<T: 'static> {
    pub about: About,
    pub default: T,
}

/// What can be said of a tunable without its type.
pub struct About {
    /// The name in the file; one that ends in `*` stands for all that begin so.
    pub key: &'static str,
    pub reader: Reader,
    /// The name in ZooKeeper's documentation, where that is not the one that works there.
    pub alias: Option<&'static str>,
    pub unit: &'static str,
    pub range: Range,
    pub words: Words,
    pub doc: &'static str,
    /// What more of it buys, and what that costs.
    pub trades: &'static str,
    pub status: Status,
}

/// Where a setting is looked for, and how strictly it is read; see the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    File,
    Property,
    Bare,
    /// The prefixed property, and the bare one where that is absent.
    PrefixedOrBare,
    Ours,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    Any,
    Numbers(i64, i64),
    Choices(&'static [&'static str]),
}

/// The words of a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    TrueFalse,
    /// On for exactly this word, off for all else.
    OnOnly(&'static str),
    /// Off for exactly this word, on for all else.
    OffOnly(&'static str),
}

/// How far this version goes with a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Honoured,
    /// Means something in an ensemble only: read and checked.
    Ensemble,
    /// Accepted with a warning, without effect.
    NotYet,
    /// Accepted with a warning: it has no meaning outside a Java machine.
    JvmOnly,
}

/// A value that does not fit, and what a lenient reader takes instead.
#[derive(Clone, Debug, PartialEq)]
pub struct BadValue<R> {
    pub reason: String,
    pub instead: R,
}

/// What a knob can hold.
pub trait Value: Copy + Send + Sync + 'static {
    type Read;
    fn read(self) -> Self::Read;
    fn parse(self, about: &About, text: &str) -> Result<Self::Read, BadValue<Self::Read>>;
    /// As it would stand in a file; empty for none.
    fn text(self) -> String;
}

impl<T: Value> Knob<T> {
    pub fn parse(&self, text: &str) -> Result<T::Read, BadValue<T::Read>> {
        self.default.parse(&self.about, text)
    }

    const fn new(reader: Reader, key: &'static str, default: T) -> Knob<T> {
        let about = About {
            key,
            reader,
            alias: None,
            unit: "",
            range: Range::Any,
            words: Words::TrueFalse,
            doc: "",
            trades: "",
            status: Status::Honoured,
        };
        Knob { about, default }
    }

    const fn doc(mut self, doc: &'static str) -> Knob<T> {
        self.about.doc = doc;
        self
    }

    const fn alias(mut self, alias: &'static str) -> Knob<T> {
        self.about.alias = Some(alias);
        self
    }

    const fn unit(mut self, unit: &'static str) -> Knob<T> {
        self.about.unit = unit;
        self
    }

    const fn between(mut self, least: i64, most: i64) -> Knob<T> {
        self.about.range = Range::Numbers(least, most);
        self
    }

    const fn at_least(self, least: i64) -> Knob<T> {
        self.between(least, INT_MAX)
    }

    const fn port(self) -> Knob<T> {
        self.unit("port").between(0, 65_535)
    }

    const fn choices(mut self, choices: &'static [&'static str]) -> Knob<T> {
        self.about.range = Range::Choices(choices);
        self
    }

    const fn on_only(mut self, word: &'static str) -> Knob<T> {
        self.about.words = Words::OnOnly(word);
        self
    }

    const fn off_only(mut self, word: &'static str) -> Knob<T> {
        self.about.words = Words::OffOnly(word);
        self
    }

    const fn trades(mut self, trades: &'static str) -> Knob<T> {
        self.about.trades = trades;
        self
    }

    const fn ensemble(mut self) -> Knob<T> {
        self.about.status = Status::Ensemble;
        self
    }

    const fn not_yet(mut self) -> Knob<T> {
        self.about.status = Status::NotYet;
        self
    }

    const fn jvm_only(mut self) -> Knob<T> {
        self.about.status = Status::JvmOnly;
        self
    }
}

/// A knob of any type, for lists.
pub trait AnyKnob: Sync {
    fn about(&self) -> &About;
    fn default_text(&self) -> String;
    /// Whether this text is a value; the reason if not.
    fn check(&self, text: &str) -> Result<(), String>;
}

impl<T: Value> AnyKnob for Knob<T> {
    fn about(&self) -> &About {
        &self.about
    }

    fn default_text(&self) -> String {
        self.default.text()
    }

    fn check(&self, text: &str) -> Result<(), String> {
        self.parse(text).map(|_| ()).map_err(|bad| bad.reason)
    }
}

impl Value for i64 {
    type Read = i64;

    fn read(self) -> i64 {
        self
    }

    fn parse(self, about: &About, text: &str) -> Result<i64, BadValue<i64>> {
        let number = match about.reader {
            // Integer.parseInt
            Reader::File | Reader::Ours => text.parse::<i32>().ok().map(i64::from),
            Reader::Property | Reader::Bare | Reader::PrefixedOrBare => decode(text),
        };
        let Some(number) = number else {
            return Err(BadValue {
                reason: format!("For input string: \"{text}\""),
                instead: self,
            });
        };
        match about.range {
            Range::Numbers(least, most) if !(least <= number && number <= most) => {
                let reason = match about.unit {
                    "port" => format!("port out of range:{number}"),
                    _ => format!("{number} is not between {least} and {most}"),
                };
                Err(BadValue { reason, instead: number.clamp(least, most) })
            }
            _ => Ok(number),
        }
    }

    fn text(self) -> String {
        self.to_string()
    }
}

/// An integer as `Integer.getInteger` and `Long.getLong` read it: decimal, hexadecimal after
/// `0x` or `#`, octal after `0`.
fn decode(text: &str) -> Option<i64> {
    let (sign, digits) = match text.as_bytes().first()? {
        b'-' => ("-", &text[1..]),
        b'+' => ("", &text[1..]),
        _ => ("", text),
    };
    let hexadecimal = ["0x", "0X", "#"].iter().find_map(|prefix| digits.strip_prefix(prefix));
    let (digits, radix) = match (hexadecimal, digits.strip_prefix('0')) {
        (Some(digits), _) => (digits, 16),
        (None, Some(octal)) if !octal.is_empty() => (octal, 8),
        _ => (digits, 10),
    };
    // A second sign would be taken by from_str_radix.
    if !digits.starts_with(|c: char| c.is_ascii_hexdigit()) {
        return None;
    }
    i64::from_str_radix(&format!("{sign}{digits}"), radix).ok()
}

impl Value for Option<i64> {
    type Read = Option<i64>;

    fn read(self) -> Option<i64> {
        self
    }

    fn parse(self, about: &About, text: &str) -> Result<Option<i64>, BadValue<Option<i64>>> {
        0_i64
            .parse(about, text)
            .map(Some)
            .map_err(|bad| BadValue { reason: bad.reason, instead: self })
    }

    fn text(self) -> String {
        self.map(|number| number.to_string()).unwrap_or_default()
    }
}

impl Value for f64 {
    type Read = f64;

    fn read(self) -> f64 {
        self
    }

    fn parse(self, _about: &About, text: &str) -> Result<f64, BadValue<f64>> {
        match text.trim().parse() {
            Ok(number) if f64::is_finite(number) => Ok(number),
            _ => Err(BadValue { reason: format!("For input string: \"{text}\""), instead: self }),
        }
    }

    fn text(self) -> String {
        self.to_string()
    }
}

impl Value for bool {
    type Read = bool;

    fn read(self) -> bool {
        self
    }

    fn parse(self, about: &About, text: &str) -> Result<bool, BadValue<bool>> {
        let key = about.key;
        match about.words {
            Words::TrueFalse if text.eq_ignore_ascii_case("true") => Ok(true),
            Words::TrueFalse if text.eq_ignore_ascii_case("false") => Ok(false),
            Words::TrueFalse => Err(BadValue {
                reason: format!("Invalid option {text} for {key}. Choose 'true' or 'false.'"),
                // Boolean.parseBoolean: all that is not true is false, whatever the default.
                instead: false,
            }),
            Words::OnOnly(word) | Words::OffOnly(word) if text == word => {
                Ok(matches!(about.words, Words::OnOnly(_)))
            }
            Words::OnOnly(word) => Err(BadValue {
                reason: format!("{key} is on for exactly '{word}', so '{text}' leaves it off"),
                instead: false,
            }),
            Words::OffOnly(word) => match text {
                "yes" => Ok(true),
                _ => Err(BadValue {
                    reason: format!("{key} is off for exactly '{word}', so '{text}' leaves it on"),
                    instead: true,
                }),
            },
        }
    }

    fn text(self) -> String {
        self.to_string()
    }
}

impl Value for Option<&'static str> {
    type Read = Option<String>;

    fn read(self) -> Option<String> {
        self.map(str::to_owned)
    }

    fn parse(self, _about: &About, text: &str) -> Result<Option<String>, BadValue<Option<String>>> {
        Ok(Some(text.to_owned()))
    }

    fn text(self) -> String {
        self.unwrap_or_default().to_owned()
    }
}

impl Value for &'static str {
    type Read = String;

    fn read(self) -> String {
        self.to_owned()
    }

    fn parse(self, about: &About, text: &str) -> Result<String, BadValue<String>> {
        match about.range {
            Range::Choices(choices) if !choices.contains(&text) => Err(BadValue {
                reason: format!("\"{text}\" is not one of {}", choices.join(", ")),
                instead: self.to_owned(),
            }),
            _ => Ok(text.to_owned()),
        }
    }

    fn text(self) -> String {
        self.to_owned()
    }
}

impl About {
    /// Whether a setting of this name, in a file, is this one.
    #[must_use]
    pub fn is_named(&self, key: &str) -> bool {
        match self.key.strip_suffix('*') {
            Some(prefix) => key.starts_with(prefix),
            None => self.key == key || self.alias == Some(key),
        }
    }

    /// The system properties that set it, the one that counts first.
    #[must_use]
    pub fn properties(&self) -> Vec<String> {
        let prefixed = || format!("{PREFIX}{}", self.key);
        match self.reader {
            Reader::File => Vec::new(),
            Reader::Property => vec![prefixed()],
            Reader::Bare | Reader::Ours => vec![self.key.to_owned()],
            Reader::PrefixedOrBare => vec![prefixed(), self.key.to_owned()],
        }
    }

    /// Default, unit, range and other names, in one line.
    fn outline(&self, default: &str) -> String {
        let mut line = format!("default {}", if default.is_empty() { "none" } else { default });
        if !self.unit.is_empty() {
            let _ = write!(line, " {}", self.unit);
        }
        match self.range {
            Range::Any => {}
            Range::Numbers(least, INT_MAX) => {
                let _ = write!(line, ", at least {least}");
            }
            Range::Numbers(least, most) => {
                let _ = write!(line, ", {least} to {most}");
            }
            Range::Choices(choices) => {
                let choices = choices.iter().filter(|choice| !choice.is_empty());
                let choices: Vec<&str> = choices.copied().collect();
                let _ = write!(line, ", one of {}", choices.join(", "));
            }
        }
        match self.words {
            Words::TrueFalse => {}
            Words::OnOnly(word) => {
                let _ = write!(line, ", on for exactly '{word}'");
            }
            Words::OffOnly(word) => {
                let _ = write!(line, ", off for exactly '{word}'");
            }
        }
        let properties = self.properties();
        if !properties.is_empty() {
            let _ = write!(line, "; property {}", properties.join(" or "));
        }
        if let Some(variable) = self.environment() {
            let _ = write!(line, "; environment {variable}");
        }
        line
    }

    /// The environment variable that sets it: ours have one.
    #[must_use]
    pub fn environment(&self) -> Option<String> {
        match self.reader {
            Reader::Ours => Some(self.key.to_uppercase().replace('.', "_")),
            _ => None,
        }
    }
}

/// What a setting of the file gets in front to be a system property.
pub const PREFIX: &str = "zookeeper.";

/// The knob a setting of the file belongs to. A whole name counts before the beginning of one.
#[must_use]
pub fn find(key: &str) -> Option<&'static dyn AnyKnob> {
    let named = |family: bool| {
        ALL.iter().find(move |knob| {
            knob.about().key.ends_with('*') == family && knob.about().is_named(key)
        })
    };
    named(false).or_else(|| named(true)).copied()
}

/// The table as a page to read, for `ringkeeper knobs`.
#[must_use]
pub fn documentation() -> String {
    let mut page = String::from(
        "Every setting, by its key in zoo.cfg. A property is set by -Dname=value as well, on the\n\
         command line or in SERVER_JVMFLAGS or JVMFLAGS.\n",
    );
    for knob in ALL {
        let about = knob.about();
        let _ = write!(page, "\n{}", about.key);
        if let Some(alias) = about.alias {
            let _ = write!(page, " (also {alias})");
        }
        page.push('\n');
        wrap(&about.outline(&knob.default_text()), &mut page);
        let note = match about.status {
            Status::Honoured => "",
            Status::Ensemble => "Read and checked; counts in an ensemble only.",
            Status::NotYet => "Not supported yet: accepted with a warning.",
            Status::JvmOnly => "Of the Java machine only: accepted with a warning.",
        };
        for text in [about.doc.trim(), about.trades, note] {
            wrap(text, &mut page);
        }
    }
    page
}

/// Appends a paragraph, indented, in lines of a readable length.
fn wrap(text: &str, page: &mut String) {
    const COLUMNS: usize = 96;
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && COLUMNS < 4 + line.len() + 1 + word.len() {
            let _ = writeln!(page, "    {line}");
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() {
        let _ = writeln!(page, "    {line}");
    }
}

/// The largest number Java's `int` holds.
const INT_MAX: i64 = i32::MAX as i64;
const DAY_MS: i64 = 24 * 60 * 60 * 1000;

const fn file<T: Value>(key: &'static str, default: T) -> Knob<T> {
    Knob::new(Reader::File, key, default)
}

const fn property<T: Value>(key: &'static str, default: T) -> Knob<T> {
    Knob::new(Reader::Property, key, default)
}

const fn bare<T: Value>(key: &'static str, default: T) -> Knob<T> {
    Knob::new(Reader::Bare, key, default)
}

const fn prefixed_or_bare<T: Value>(key: &'static str, default: T) -> Knob<T> {
    Knob::new(Reader::PrefixedOrBare, key, default)
}

const fn ours<T: Value>(key: &'static str, default: T) -> Knob<T> {
    Knob::new(Reader::Ours, key, default)
}

/// A setting without a default.
type Text = Option<&'static str>;
type Unset = Option<i64>;

const NONE: Text = None;
const UNSET: Unset = None;

/// The doc comment is the documentation that is printed.
macro_rules! knobs {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $knob:expr;)+) => {
        $($(#[doc = $doc])+ pub static $name: Knob<$type> = $knob.doc(concat!($($doc),+));)+

        /// The whole table, in the order of the source.
        pub static ALL: &[&dyn AnyKnob] = &[$(&$name),+];
    };
}

// Where the data is, and where clients come in.
knobs! {
    /// Where snapshots live, in version-2 below it, and the transaction logs unless dataLogDir
    /// says otherwise. Required in a file.
    DATA_DIR: Text = file("dataDir", NONE);
    /// Where the transaction logs live, in version-2 below it. Default: dataDir.
    DATA_LOG_DIR: Text = file("dataLogDir", NONE)
        .trades("A device of its own keeps snapshots from delaying the log, which every write waits for.");
    /// Where clients connect. Without it there is no plain listener, unless the server's own line
    /// of the ensemble names one.
    CLIENT_PORT: Unset = file("clientPort", UNSET).port();
    /// The address clientPort is bound to. Default: every address.
    CLIENT_PORT_ADDRESS: Text = file("clientPortAddress", NONE);
    /// Where clients connect with TLS. A server that sets it is refused until TLS is supported.
    SECURE_CLIENT_PORT: Unset = file("secureClientPort", UNSET).port();
    /// The address secureClientPort is bound to. Default: every address.
    SECURE_CLIENT_PORT_ADDRESS: Text = file("secureClientPortAddress", NONE);
    /// Connections the kernel keeps for us until they are accepted; -1 for 4096. net.core.somaxconn bounds it.
    CLIENT_PORT_LISTEN_BACKLOG: i64 = file("clientPortListenBacklog", -1).unit("connections")
        .trades("More survive a burst of connects; each costs kernel memory while it waits.");
    /// Whether idle client sockets are probed by the kernel.
    CLIENT_TCP_KEEP_ALIVE: bool = property("clientTcpKeepAlive", false);
    /// Accepted class names are those of ZooKeeper's NIO and Netty factories; both mean the same
    /// server here.
    SERVER_CNXN_FACTORY: &'static str = property(
        "serverCnxnFactory", "org.apache.zookeeper.server.NIOServerCnxnFactory");

    // Sessions and connections.

    /// The unit of time: session limits and those of the ensemble are counted in it.
    TICK_TIME: i64 = file("tickTime", 3000).unit("ms").at_least(1)
        .trades("Shorter finds dead clients sooner, and takes slow ones for dead sooner.");
    /// The shortest session timeout a client may ask for. Default (-1): twice tickTime.
    MIN_SESSION_TIMEOUT: i64 = file("minSessionTimeout", -1).unit("ms").at_least(-1);
    /// The longest session timeout a client may ask for. Default (-1): twenty times tickTime.
    MAX_SESSION_TIMEOUT: i64 = file("maxSessionTimeout", -1).unit("ms").at_least(-1);
    /// Connections one client address may hold; 0 for no limit.
    MAX_CLIENT_CNXNS: i64 = file("maxClientCnxns", 60).unit("connections");
    /// Connections in all; 0 for no limit.
    MAX_CNXNS: i64 = property("maxCnxns", 0).unit("connections").at_least(0);
    /// How long a connection may live without having asked for a session.
    SESSIONLESS_CNXN_TIMEOUT: i64 = property("nio.sessionlessCnxnTimeout", 10_000).unit("ms").at_least(1);
    /// The longest packet taken from a client, and the longest buffer in a record.
    JUTE_MAXBUFFER: i64 = bare("jute.maxbuffer", 0xf_ffff).unit("bytes").between(1024, INT_MAX)
        .trades("More admits larger znodes; one request may then hold that much memory. Must be equal on all servers and clients.");
    /// How much longer a record written by a server may be than jute.maxbuffer. Default (-1): as
    /// long again.
    JUTE_MAXBUFFER_EXTRASIZE: i64 = property("jute.maxbuffer.extrasize", -1).unit("bytes").at_least(-1);
    /// The four-letter words that are answered, separated by commas; * for all. srvr always is.
    FOUR_LETTER_WORDS: &'static str = property("4lw.commands.whitelist", "");
    /// Lets clients read on a server of an ensemble that has found no leader for two seconds and a
    /// tick, those that ask for no more; and answers isro.
    READ_ONLY_MODE: bool = bare("readonlymode.enabled", false);

    // The transaction log.

    /// yes: a write is on the disk before it is answered. no: it may be lost on power failure.
    FORCE_SYNC: bool = property("forceSync", true).off_only("no")
        .trades("no saves the sync, and with it the promise that an answered write survives.");
    /// A sync slower than this is warned about.
    FSYNC_WARNING_THRESHOLD: i64 = prefixed_or_bare("fsync.warningthresholdms", 1000).unit("ms").at_least(0);
    /// The log grows by this much at a time; 0 for not ahead at all.
    PRE_ALLOC_SIZE: i64 = property("preAllocSize", 65_536).unit("KB").between(0, 4 << 20)
        .trades("Larger steps mean fewer pauses to grow a file; each log holds that much of the disk.");
    /// A new log is begun at this size; below 1 for never.
    TXN_LOG_SIZE_LIMIT: i64 = property("txnLogSizeLimitInKb", -1).unit("KB");
    /// How long writes may gather before they are synced together.
    FLUSH_DELAY: i64 = property("flushDelay", 0).unit("ms").between(0, 60_000)
        .trades("Longer makes fewer syncs of more writes, and every write slower by up to as much.");
    /// How long the log waits for one more write before it syncs what it has. Default (-1): a
    /// third of flushDelay.
    MAX_WRITE_QUEUE_POLL_TIME: i64 = property("maxWriteQueuePollTime", -1).unit("ms").between(-1, 60_000);
    /// So many writes are waited for at most, where flushDelay says to wait. A sync takes all that
    /// there are, however many.
    MAX_BATCH_SIZE: i64 = property("maxBatchSize", 1000).unit("writes").at_least(1)
        .trades("More makes fewer syncs; the first of a batch waits for the last.");

    // Snapshots.

    /// A snapshot is taken when this many transactions were logged since the last, or at random
    /// down to half as many, so that servers do not all take theirs at once. Where neither this nor
    /// snapSizeLimitInKb is set, one that is larger than the log since the last waits until it is
    /// not, or that log has 4 GiB.
    SNAP_COUNT: i64 = property("snapCount", 100_000).unit("transactions").at_least(2)
        .trades("More means fewer snapshots, and more to replay at start.");
    /// The same by the size of the log since the last snapshot; below 1 for no such limit.
    SNAP_SIZE_LIMIT: i64 = property("snapSizeLimitInKb", 4_194_304).unit("KB");
    /// How snapshots are compressed; empty for not at all. Every kind is read.
    SNAPSHOT_COMPRESSION: &'static str = property("snapshot.compression.method", "")
        .choices(&["", "gz", "snappy"])
        .trades("gz is smallest and slowest, snappy costs little of both.");
    /// Allows a data directory with logs and without any snapshot.
    SNAPSHOT_TRUST_EMPTY: bool = property("snapshot.trust.empty", false)
        .trades("true lets a server start that may have lost its snapshot, and with it data.");
    /// Ends a snapshot with the zxid it holds.
    SERIALIZE_LAST_PROCESSED_ZXID: bool = property("serializeLastProcessedZxid.enabled", true);
    /// Snapshots, with the logs they need, that purging leaves.
    SNAP_RETAIN_COUNT: i64 = file("autopurge.snapRetainCount", 3).unit("snapshots");
    /// How often old snapshots and logs are purged, in hours, or with ms, s, m, h or d behind the
    /// number; 0 for never.
    PURGE_INTERVAL: &'static str = file("autopurge.purgeInterval", "0");
    /// false: a data directory that is missing ends the start.
    DATADIR_AUTOCREATE: bool = property("datadir.autocreate", true);
    /// false: a server with an empty database joins without a vote until it has the data.
    DB_AUTOCREATE: bool = property("db.autocreate", true);
    /// Keeps the running digest of the tree, writes it to logs and snapshots, checks it on replay.
    DIGEST_ENABLED: bool = property("digest.enabled", true)
        .trades("Costs a hash for each changed znode; finds a tree that went its own way.");
    /// What a start does when the tree is not the one whose digest was written: refuse, or warn and
    /// serve what there is, as ZooKeeper does. See also digest.enabled.
    DIGEST_MISMATCH: &'static str = ours("ringkeeper.digestMismatch", "refuse").choices(&["refuse", "warn"])
        .trades("warn gets a server up whose data is damaged, and has clients see, and ensembles copy, what is wrong.");
    /// Logs the ephemeral znodes that a closing session takes with it.
    CLOSE_SESSION_TXN: bool = property("closeSessionTxn.enabled", true);

    // Znodes.

    /// Allows znodes with a time to live.
    EXTENDED_TYPES: bool = property("extendedTypesEnabled", false);
    /// Takes znodes that 3.5.3 wrote with a time to live for such, where extendedTypesEnabled is on.
    EMULATE_353_TTL: bool = property("emulate353TTLNodes", false)
        .trades("Without, they pass for ephemerals of sessions that are gone, and are removed at the start; with, so \
                 do ephemerals of servers with an id above 127 for znodes with a time to live.");
    /// How often empty containers and expired znodes are looked for.
    CONTAINER_CHECK_INTERVAL: i64 = bare("znode.container.checkIntervalMs", 60_000).unit("ms").at_least(1);
    /// How many of them are removed in a minute at most.
    CONTAINER_MAX_PER_MINUTE: i64 = bare("znode.container.maxPerMinute", 10_000).unit("znodes").between(1, 60_000);
    /// A container that never had a child is removed after this; 0 for never.
    CONTAINER_MAX_NEVER_USED: i64 = bare("znode.container.maxNeverUsedIntervalMs", 300_000).unit("ms").at_least(0);
    /// Refuses writes over a quota instead of only warning about them.
    ENFORCE_QUOTA: bool = property("enforceQuota", false);

    // Who may do what.

    /// yes: no access control list is checked.
    SKIP_ACL: bool = property("skipACL", false).on_only("yes");
    /// Allows the digest scheme.
    DIGEST_AUTH: bool = property("DigestAuthenticationProvider.enabled", true);
    /// user:hash of the user who may do everything.
    SUPER_DIGEST: Text = property("DigestAuthenticationProvider.superDigest", NONE);
    /// The hash of the digest scheme. Must be the one the stored lists were made with.
    DIGEST_ALGORITHM: &'static str = property("DigestAuthenticationProvider.digestAlg", "SHA1");
    /// Refuses every request of a connection that has not authenticated.
    ENFORCE_AUTH: bool = property("enforce.auth.enabled", false);
    /// The schemes that count as having authenticated, separated by commas.
    ENFORCE_AUTH_SCHEMES: &'static str = property("enforce.auth.schemes", "");
    /// The same as enforce.auth.enabled with the scheme sasl.
    SESSION_REQUIRE_SASL: bool = property("sessionRequireClientSASLAuth", false).not_yet();
    /// Class names of further authentication schemes.
    AUTH_PROVIDERS: Text = property("authProvider.*", NONE);
    /// Allows reconfig, which changes the ensemble while it runs.
    RECONFIG_ENABLED: bool = file("reconfigEnabled", false);

    // How much may be under way.

    /// Requests under way before connections stop being read.
    GLOBAL_OUTSTANDING_LIMIT: i64 = property("globalOutstandingLimit", 1000).unit("requests").at_least(1)
        .trades("More keeps deep pipelines full; each request under way holds its memory.");
    /// Requests in the pipeline before further ones wait in front of it; 0 for no limit.
    REQUEST_THROTTLE_LIMIT: i64 = property("request_throttle_max_requests", 0)
        .alias("requestThrottleLimit").unit("requests").at_least(0);
    /// How long the first of them waits before it looks again.
    REQUEST_THROTTLE_STALL_TIME: i64 = property("request_throttle_stall_time", 100)
        .alias("requestThrottleStallTime").unit("ms").at_least(1);
    /// Drops requests there whose connection is gone or whose client has given up.
    REQUEST_THROTTLE_DROP_STALE: bool = property("request_throttle_drop_stale", true)
        .alias("requestThrottleDropStale");
    /// Takes a request for stale when it waited longer than its session's timeout.
    REQUEST_STALE_LATENCY: bool = property("request_stale_latency_check", false)
        .alias("requestStaleLatencyCheck");
    /// Takes a request for stale when its connection is closed.
    REQUEST_STALE_CONNECTION: bool = property("request_stale_connection_check", true)
        .alias("requestStaleConnectionCheck");
    /// A request that waited longer than this is answered with an error; 0 for never.
    THROTTLED_OP_WAIT_TIME: i64 = property("throttled_op_wait_time", 0)
        .alias("throttledOpWaitTime").unit("ms").at_least(0);
    /// Sessions that may begin at once before connecting ones are refused; 0 for no limit.
    CONNECTION_THROTTLE_TOKENS: i64 = property("connection_throttle_tokens", 0)
        .alias("connectionMaxTokens").unit("tokens").at_least(0);
    /// How often tokens come back.
    CONNECTION_THROTTLE_FILL_TIME: i64 = property("connection_throttle_fill_time", 1)
        .alias("connectionTokenFillTime").unit("ms").at_least(1);
    /// How many tokens come back at a time.
    CONNECTION_THROTTLE_FILL_COUNT: i64 = property("connection_throttle_fill_count", 1)
        .alias("connectionTokenFillCount").unit("tokens").at_least(0);
    /// How often the probability of refusing at random is adapted; -1 for never refusing so.
    CONNECTION_THROTTLE_FREEZE_TIME: i64 = property("connection_throttle_freeze_time", -1)
        .alias("connectionFreezeTime").unit("ms").at_least(-1);
    /// By how much that probability rises when no token is left.
    CONNECTION_THROTTLE_DROP_INCREASE: f64 = property("connection_throttle_drop_increase", 0.02)
        .alias("connectionDropIncrease");
    /// By how much it falls when enough are left.
    CONNECTION_THROTTLE_DROP_DECREASE: f64 = property("connection_throttle_drop_decrease", 0.002)
        .alias("connectionDropDecrease");
    /// The part of the tokens that may be missing for that to be enough.
    CONNECTION_THROTTLE_DECREASE_RATIO: f64 = property("connection_throttle_decrease_ratio", 0.0)
        .alias("connectionDecreaseRatio");
    /// Takes more tokens for a new session than for one that is renewed.
    CONNECTION_THROTTLE_WEIGHT_ENABLED: bool = property("connection_throttle_weight_enabled", false);
    /// Tokens a new session takes, if weighed.
    CONNECTION_THROTTLE_GLOBAL_WEIGHT: i64 =
        property("connection_throttle_global_session_weight", 3).unit("tokens").at_least(1);
    /// Tokens a new local session takes, if weighed.
    CONNECTION_THROTTLE_LOCAL_WEIGHT: i64 =
        property("connection_throttle_local_session_weight", 1).unit("tokens").at_least(1);
    /// Tokens a renewed session takes, if weighed.
    CONNECTION_THROTTLE_RENEW_WEIGHT: i64 =
        property("connection_throttle_renew_session_weight", 2).unit("tokens").at_least(1);
    /// A request longer than this counts as large; -1 for none.
    LARGE_REQUEST_THRESHOLD: i64 = property("largeRequestThreshold", -1).unit("bytes").at_least(-1);
    /// Bytes of large requests under way before the connection of a further one is closed.
    LARGE_REQUEST_MAX_BYTES: i64 = property("largeRequestMaxBytes", 104_857_600).unit("bytes").at_least(0);

    // How the server runs: ours.

    /// Cores that serve clients; 0 for all but the one that orders writes.
    SHARDS: i64 = ours("ringkeeper.shards", 0).unit("cores").between(0, 1024)
        .trades("More serve more reads at once; each holds memory of its own and wakes on every batch of writes.");
    /// Whether threads stay on one CPU each. auto: where there are CPUs enough.
    PIN: &'static str = ours("ringkeeper.pin", "auto").choices(&["auto", "true", "false"])
        .trades("true keeps caches warm on a machine of our own; on a shared one it ties us to busy CPUs.");
    /// How long a core with nothing to do looks for work before it sleeps.
    SPIN: i64 = ours("ringkeeper.spinMicros", 0).unit("us").between(0, 10_000)
        .trades("More saves the wake-up from each answer's latency, and burns a CPU while idle.");
    /// How clients are read from. auto: the kernel fills our buffers, from Linux 6.1 on. plain: it says what can be read, from 5.13 on.
    RING: &'static str = ours("ringkeeper.ring", "auto").choices(&["auto", "plain"])
        .trades("plain costs a system call more for each read, and some memory less.");
    /// What a connection may send while its requests wait; beyond, it is not read from.
    INPUT_BYTES_MAX: i64 = ours("ringkeeper.connection.inputBytesMax", 128 << 10).unit("bytes").between(4096, 1 << 30)
        .trades("More lets a client send further ahead; each that does may hold so much memory.");
    /// With so much of its answers unread by a client, its further requests wait.
    OUTPUT_BYTES_MAX: i64 = ours("ringkeeper.connection.outputBytesMax", 1 << 20).unit("bytes").between(4096, 1 << 30)
        .trades("More keeps a slow line busy with large answers; each slow client may hold so much memory.");
    /// With so much unread in watch events, a client is disconnected: events cannot wait. Answers
    /// do not count. At least ringkeeper.connection.outputBytesMax.
    OUTPUT_BYTES_CEILING: i64 = ours("ringkeeper.connection.outputBytesCeiling", 64 << 20)
        .unit("bytes").between(4096, 1 << 30)
        .trades("More forgives a client with very many watches a longer pause; each may hold so much memory.");
    /// The longest answer to one request, and never less than four times jute.maxbuffer. What would
    /// be longer is answered by the error -5 (MarshallingError), or by a line that says so where a
    /// four-letter word asks.
    ANSWER_BYTES_MAX: i64 = ours("ringkeeper.connection.answerBytesMax", 256 << 20)
        .unit("bytes").between(2 << 20, 1 << 30)
        .trades("More lets clients list more children at once, whose jute.maxbuffer has room for it; each may hold so much memory.");
    /// How much memory all connections together may hold: events and answers that their clients have
    /// not read, and answers that are being made. Above this, the server closes those connections
    /// that have held the most for the longest time. Each core may always use an equal part. If the
    /// other cores hold more than their parts at that moment, the bound is exceeded until they have
    /// closed connections. At least ringkeeper.connection.answerBytesMax.
    ANSWERS_BYTES_MAX: i64 = ours("ringkeeper.answersBytesMax", 1 << 30)
        .unit("bytes").between(2 << 20, INT_MAX)
        .trades("More serves more large answers to slow clients at once; so much memory may be held by clients that do not read.");
    /// How many paths one connection may watch. A request that would set one more fails with
    /// -125 (QuotaExceeded).
    CONNECTION_WATCHES_MAX: i64 = ours("ringkeeper.connection.watchesMax", 2_000_000)
        .unit("watches").between(1, INT_MAX)
        .trades("More lets one client watch more; each watch holds about 100 bytes and its path.");
    /// The same of all connections together.
    WATCHES_MAX: i64 = ours("ringkeeper.watchesMax", 20_000_000)
        .unit("watches").between(1, INT_MAX)
        .trades("More lets all clients watch more; each watch holds about 100 bytes and its path.");
    /// What a connection is answered in one turn of its core before others come. A single answer
    /// may be longer, and then waits for several turns only where it is gathered from much.
    CONNECTION_TURN_BYTES: i64 = ours("ringkeeper.connection.turnBytes", 64 << 10)
        .unit("bytes").between(4096, 1 << 30)
        .trades("More serves one busy connection faster; others wait for longer behind it.");
    /// The same in steps: a child listed, a path looked up or a watch set is one, a request is
    /// two. A step takes about a quarter of a microsecond.
    CONNECTION_TURN_STEPS: i64 = ours("ringkeeper.connection.turnSteps", 512)
        .unit("steps").between(4, 1 << 30)
        .trades("More serves one busy connection faster; others wait for longer behind it.");
    /// What all connections of a core together are answered in one turn; whoever asks after that is
    /// served in the next.
    TURN_BYTES: i64 = ours("ringkeeper.turnBytes", 512 << 10).unit("bytes").between(4096, 1 << 30)
        .trades("More wastes less time between turns; clients that ask for little wait for longer.");
    /// The same in steps, as for a connection.
    TURN_STEPS: i64 = ours("ringkeeper.turnSteps", 8192).unit("steps").between(4, 1 << 30)
        .trades("More wastes less time between turns; clients that ask for little wait for longer.");
    /// What the identities may take that a connection gathers by auth packets, one for each. An auth
    /// packet beyond fails, and ends the connection.
    AUTH_BYTES_MAX: i64 = ours("ringkeeper.connection.authBytesMax", 64 << 10).unit("bytes").between(1024, 1 << 30)
        .trades("More admits clients that are hundreds of users at once; all of them are looked at for each check of an ACL.");
    /// How long after a snapshot that could not be written the next is tried.
    SNAPSHOT_RETRY: i64 = ours("ringkeeper.snapshot.retryMs", 60_000).unit("ms").between(1, DAY_MS)
        .trades("Sooner has one soon after a full disk has room again; each try writes what there is room for.");
    /// Who writes a snapshot's file past the page cache: the background thread itself, in turns with
    /// encoding, or an executor of glommio while the thread encodes what comes next. The files are the
    /// same.
    SNAPSHOT_BACK_END: &'static str = ours("ringkeeper.snapshot.backEnd", "direct").choices(&["direct", "glommio"])
        .trades("glommio shortens a snapshot where the disk is slower than encoding and a CPU is free; it costs 4 MiB and some threads meanwhile, and more in flight ahead of a sync of the log. With less than 512 KiB of lockable memory, or where the file system knows no direct writes, it is direct.");
    /// How the transaction log reaches the disk: stored into a mapped file and synced, or written
    /// past the page cache into blocks that were zeroed ahead. The files are the same. With
    /// forceSync=no it is mapped.
    TXN_LOG_BACK_END: &'static str = ours("ringkeeper.txnLog.backEnd", "direct").choices(&["direct", "mapped"])
        .trades("direct has the shorter syncs and writes every block of the log twice, the first time ahead of need; where the file system knows no direct writes, it is mapped.");
    /// The shape of log lines: ZooKeeper's text, or an object of JSON each.
    LOG_FORMAT: &'static str = ours("ringkeeper.log.format", "text").choices(&["text", "json"]);
    /// Logs who changed what: a line for each write, at INFO, or ERROR where it was refused, with the
    /// module audit.
    AUDIT_ENABLE: bool = property("audit.enable", false)
        .trades("Costs a line of the log for each write.");
    /// The least level that is logged, or levels by module as in info,ringkeeper::storage=debug.
    LOG_LEVEL: &'static str = ours("ringkeeper.log.level", "info")
        .trades("debug and below cost time on every request.");
    /// How many bytes of log lines may wait to be written. What finds no room is dropped, and a line
    /// says how many lines are missing.
    LOG_QUEUE_BYTES: i64 = ours("ringkeeper.log.queueBytes", 4 << 20).unit("bytes").between(4096, 1 << 30)
        .trades("More outlasts a longer stop of whatever reads the log; less is less memory. No thread ever waits for it.");
    /// How many bytes of audit lines may wait to be written, apart from all other lines, which cannot
    /// take their room. What finds none is dropped, and an audit line says how many are missing.
    AUDIT_QUEUE_BYTES: i64 = ours("ringkeeper.audit.queueBytes", 16 << 20).unit("bytes").between(4096, 1 << 30)
        .trades("More outlasts a longer stop of whatever reads the log; less is less memory. No write ever waits for it.");
    /// For how long warnings and errors that say the same as one before are counted instead of
    /// logged; then a line says how many there were. Zero: each is logged.
    LOG_FOLD: i64 = ours("ringkeeper.log.foldSeconds", 10).unit("s").between(0, 86_400)
        .trades("More is a shorter log; less tells sooner how often something happens.");
    /// How long `ringkeeper start` waits for the server to answer before it leaves it alone.
    START_TIMEOUT: i64 = ours("ringkeeper.control.startTimeoutMs", 60_000).unit("ms").between(0, DAY_MS);
    /// How long `ringkeeper stop` waits for the server to end before it reports a failure.
    STOP_TIMEOUT: i64 = ours("ringkeeper.control.stopTimeoutMs", 60_000).unit("ms").between(0, DAY_MS);
    /// How long `ringkeeper status` waits for the answer.
    STATUS_TIMEOUT: i64 = ours("ringkeeper.control.statusTimeoutMs", 5_000).unit("ms").between(1, DAY_MS);

    // The ensemble.

    /// A server of the ensemble: host:quorumPort:electionPort[:role][;[host:]clientPort].
    SERVERS: Text = file("server.*", NONE).ensemble();
    /// A group of servers for hierarchical quorums: their numbers, separated by colons.
    GROUPS: Text = file("group*", NONE).ensemble();
    /// The weight of a server in its group.
    WEIGHTS: Text = file("weight*", NONE).ensemble();
    /// The file that holds the servers, for ensembles that change while they run.
    DYNAMIC_CONFIG_FILE: Text = file("dynamicConfigFile", NONE).ensemble();
    /// true: one server alone runs standalone. false: it is an ensemble of one.
    STANDALONE_ENABLED: bool = file("standaloneEnabled", true).ensemble();
    /// How long a follower may take to connect and synchronize. Required in an ensemble.
    INIT_LIMIT: i64 = file("initLimit", 0).unit("ticks").at_least(0).ensemble();
    /// How long leader and follower may be silent. Required in an ensemble.
    SYNC_LIMIT: i64 = file("syncLimit", 0).unit("ticks").at_least(0).ensemble();
    /// How long one call of a leader may go unanswered. Default (0): syncLimit, or initLimit if that
    /// is less.
    CONNECT_LIMIT: i64 = file("connectToLearnerMasterLimit", 0).unit("ticks").at_least(0).ensemble();
    /// How a leader is elected; only 3 exists.
    ELECTION_ALG: i64 = file("electionAlg", 3).ensemble();
    /// The role of this server; the one in its line of the ensemble wins.
    PEER_TYPE: Text = file("peerType", NONE).ensemble();
    /// Binds the quorum and election ports on every address.
    QUORUM_LISTEN_ON_ALL_IPS: bool = file("quorumListenOnAllIPs", false).ensemble();
    /// Lets an observer keep logs and snapshots.
    SYNC_ENABLED: bool = file("syncEnabled", true).ensemble();
    /// The same; wins over syncEnabled.
    OBSERVER_SYNC_ENABLED: bool = property("observer.syncEnabled", true).ensemble();
    /// Where followers serve observers; below 1 for nowhere.
    OBSERVER_MASTER_PORT: i64 = file("observerMasterPort", 0).between(-INT_MAX, 65_535).ensemble();
    /// Allows several addresses for one server.
    MULTI_ADDRESS: bool = file("multiAddress.enabled", false).ensemble();
    /// How long an address is tried to see whether it is reachable.
    MULTI_ADDRESS_CHECK_TIMEOUT: i64 = file("multiAddress.reachabilityCheckTimeoutMs", 1000).unit("ms").ensemble();
    /// Whether addresses are tried at all.
    MULTI_ADDRESS_CHECK: bool = file("multiAddress.reachabilityCheckEnabled", true).ensemble();
    /// Sessions that only the server they were made on knows.
    LOCAL_SESSIONS: bool = file("localSessionsEnabled", false).ensemble();
    /// Makes a local session known to all when it wants an ephemeral znode.
    LOCAL_SESSIONS_UPGRADING: bool = file("localSessionsUpgradingEnabled", false).ensemble();
    /// A file that decides between two servers.
    ORACLE_PATH: Text = file("oraclePath", NONE).ensemble();
    /// TLS between servers.
    SSL_QUORUM: bool = file("sslQuorum", false).ensemble();
    /// Takes TLS and plain connections on the ports between servers.
    PORT_UNIFICATION: bool = file("portUnification", false).ensemble();
    /// Follows changes of the key and trust stores between servers.
    SSL_QUORUM_RELOAD: bool = file("sslQuorumReloadCertFiles", false).ensemble();
    /// SASL between servers.
    QUORUM_SASL: bool = file("quorum.auth.enableSasl", false).ensemble();
    /// Refuses to join a leader without it.
    QUORUM_SASL_LEARNER: bool = file("quorum.auth.learnerRequireSasl", false).ensemble();
    /// Refuses a learner without it.
    QUORUM_SASL_SERVER: bool = file("quorum.auth.serverRequireSasl", false).ensemble();
    /// The rest of SASL between servers: sections and principals.
    QUORUM_SASL_REST: Text = file("quorum.auth.*", NONE).ensemble();
    /// no: the leader serves no clients.
    LEADER_SERVES: bool = property("leaderServes", true).off_only("no").ensemble();
    /// How long a connection for votes may take.
    CNX_TIMEOUT: i64 = property("cnxTimeout", 5000).unit("ms").ensemble();
    /// How long a new connection to the quorum or election port may take to say which server it
    /// is of. Default (-1): syncLimit.
    QUORUM_CNXN_TIMEOUT: i64 = property("quorumCnxnTimeoutMs", -1).unit("ms").ensemble();
    /// How often binding the election port is tried; 0 for ever.
    ELECTION_PORT_BIND_RETRY: i64 = property("electionPortBindRetry", 3).unit("times").ensemble();
    /// What may wait to be sent to one server; beyond, its connection is closed, and it has to
    /// synchronize again.
    LINK_QUEUE_BYTES_MAX: i64 = ours("ringkeeper.link.queueBytesMax", 256 << 20)
        .unit("bytes").between(1 << 20, 1 << 40)
        .trades("More lets a learner lag further, as while it loads a snapshot; the lag is held in memory, once for all.")
        .ensemble();
    /// How much a server of an ensemble may have taken to its log that is not synced yet. Beyond, it takes
    /// no proposal of its leader, and as leader no request.
    UNSYNCED_BYTES_MAX: i64 = ours("ringkeeper.txnLog.unsyncedBytesMax", 64 << 20)
        .unit("bytes").between(4096, 1 << 40)
        .trades("More rides out a longer pause of the disk before anybody waits for it; so much memory may be held, two or three times.")
        .ensemble();
    /// How much a server that joins takes from its leader while it loads the leader's snapshot or
    /// waits for its own disk. Beyond, it does not read from the leader, whose own log keeps the rest.
    RECEIVED_BYTES_MAX: i64 = ours("ringkeeper.learner.receivedBytesMax", 16 << 20)
        .unit("bytes").between(4096, 1 << 32)
        .trades("More has less to catch up with when the snapshot is loaded; so much memory is held meanwhile.")
        .ensemble();
    /// What is kept in memory of committed transactions, besides commitLogCount.
    COMMITTED_LOG_BYTES_MAX: i64 = ours("ringkeeper.commitLogBytesMax", 64 << 20)
        .unit("bytes").between(0, 1 << 40)
        .trades("More synchronizes a server from memory that has missed large transactions; from the log it takes longer.")
        .ensemble();
    /// Whether the kernel probes connections between servers.
    TCP_KEEP_ALIVE: bool = property("tcpKeepAlive", false).ensemble();
    /// Sends small packets of the leader at once.
    LEADER_NODELAY: bool = bare("leader.nodelay", true).ensemble();
    /// Sends small packets of followers at once.
    FOLLOWER_NODELAY: bool = bare("follower.nodelay", true).ensemble();
    /// The first pause before votes are sent again.
    MIN_NOTIFICATION: i64 = property("fastleader.minNotificationInterval", 200).unit("ms").ensemble();
    /// The longest such pause. Servers that vote do not tell who looks for them that there is a leader
    /// now: who looks asks again. Longer pauses send less while there is none, and find it later.
    MAX_NOTIFICATION: i64 = property("fastleader.maxNotificationInterval", 4_000).unit("ms").ensemble();
    /// How long a leader waits for its epoch to be agreed. Default (-1): initLimit.
    MAX_TIME_TO_WAIT_FOR_EPOCH: i64 = property("leader.maxTimeToWaitForEpoch", -1)
        .alias("maxTimeToWaitForEpoch").unit("ms").ensemble();
    /// Learners that may be sent a snapshot at once.
    MAX_SNAP_SYNCS: i64 = property("leader.maxConcurrentSnapSyncs", 10)
        .alias("maxConcurrentSnapSyncs").unit("learners").ensemble();
    /// Learners that may be sent a history at once.
    MAX_DIFF_SYNCS: i64 = property("leader.maxConcurrentDiffSyncs", 100)
        .alias("maxConcurrentDiffSyncs").unit("learners").ensemble();
    /// One ACK in this many is timed.
    ACK_LOGGING_FREQUENCY: i64 = property("leader.ackLoggingFrequency", 1000).unit("ACKs").ensemble();
    /// The pause before a learner tries its leader again.
    LEADER_CONNECT_DELAY: i64 = property("leaderConnectDelayDuringRetryMs", 100).unit("ms").ensemble();
    /// An observer waits up to this before it reconnects.
    OBSERVER_RECONNECT_DELAY: i64 = property("observer.reconnectDelayMs", 0).unit("ms").ensemble();
    /// An observer waits up to this before it looks for the leader.
    OBSERVER_ELECTION_DELAY: i64 = property("observer.election.DelayMs", 200).unit("ms").ensemble();
    /// Proposals a follower keeps for its observers.
    OBSERVER_MASTER_SIZE_LIMIT: i64 = property("observerMaster.sizeLimit", 33_554_432).unit("bytes").ensemble();
    /// Committed transactions kept in memory for learners that lag. As many of the last ones in the
    /// log can be taken back after a start without reading all anew: more of them keep more old
    /// versions of znodes until this server serves.
    COMMIT_LOG_COUNT: i64 = property("commitLogCount", 500).unit("transactions").at_least(500).ensemble();
    /// A history from the log may be sent while it is shorter than this part of a snapshot.
    SNAPSHOT_SIZE_FACTOR: f64 = property("snapshotSizeFactor", 0.33).ensemble();
    /// Sends learners a snapshot always.
    FORCE_SNAPSHOT_SYNC: bool = property("forceSnapshotSync", false).ensemble();
    /// Checks access before a request is forwarded to the leader.
    EAGER_ACL_CHECK: bool = property("enableEagerACLCheck", false).ensemble();
    /// Resolves quorum hosts to their canonical names for Kerberos.
    CANONICALIZE_HOST_NAMES: bool = property("kerberos.canonicalizeHostNames", false).ensemble();
    /// Logs the last packets of a learner when it goes.
    MESSAGE_TRACKER: Text = property("messageTracker.*", NONE).ensemble();

    // Not supported yet.

    /// The HTTP server for administration. Until it is supported its port is only tried.
    ADMIN_ENABLE: bool = property("admin.enableServer", false).not_yet();
    /// The address it is bound to.
    ADMIN_ADDRESS: &'static str = property("admin.serverAddress", "0.0.0.0").not_yet();
    /// The port it is bound to.
    ADMIN_PORT: i64 = property("admin.serverPort", 8080).port().not_yet();
    /// The path its commands begin with.
    ADMIN_URL: &'static str = property("admin.commandURL", "/commands").not_yet();
    /// The rest of its settings.
    ADMIN_REST: Text = property("admin.*", NONE).not_yet();
    /// Where metrics go besides mntr. ZooKeeper's three class names are known.
    METRICS_PROVIDER: &'static str = file(
        "metricsProvider.className", "org.apache.zookeeper.metrics.impl.DefaultMetricsProvider");
    /// Settings of that provider.
    METRICS_PROVIDER_REST: Text = file("metricsProvider.*", NONE).not_yet();
    /// TLS for clients and between servers.
    SSL: Text = property("ssl.*", NONE).not_yet();
    /// Takes TLS on the plain client port too.
    CLIENT_PORT_UNIFICATION: bool = property("client.portUnification", false).not_yet();
    /// Follows changes of the key and trust stores for clients.
    CLIENT_CERT_RELOAD: bool = property("client.certReload", false).not_yet();
    /// Java's rules for certified cryptography.
    FIPS_MODE: bool = property("fips-mode", true).not_yet();
    /// The file that configures SASL.
    SASL_CONFIG: Text = bare("java.security.auth.login.config", NONE).not_yet();
    /// The section of it for this server.
    SASL_SERVER_CONFIG: &'static str = property("sasl.serverconfig", "Server").not_yet();
    /// Lets a client go on that failed to authenticate by SASL.
    ALLOW_SASL_FAILED: bool = property("allowSaslFailedClients", false).not_yet();
    /// The certificate subject that may do everything.
    X509_SUPER_USER: Text = property("X509AuthenticationProvider.superUser", NONE).not_yet();
    /// The SASL users that may do everything.
    SASL_SUPER_USER: Text = property("superUser*", NONE).not_yet();
    /// Names for the scheme ensemble.
    ENSEMBLE_AUTH_NAME: Text = property("ensembleAuthName", NONE).not_yet();
    /// Takes the client's address from a proxy's header, for the HTTP server.
    IP_FORWARDED_FOR: bool = property("IPAuthenticationProvider.usexforwardedfor", false).not_yet();
    /// Details of Kerberos.
    KERBEROS: Text = property("kerberos.*", NONE).not_yet();
    /// How principals become names.
    AUTH_TO_LOCAL: Text = property("security.auth_to_local", NONE).not_yet();
    /// Closes connections while more handshakes of TLS than this are under way.
    OUTSTANDING_HANDSHAKES: i64 = property("netty.server.outstandingHandshake.limit", -1)
        .alias("outstandingHandshake.limit").unit("handshakes").not_yet();
    /// Closes connections before their handshake while not serving.
    EARLY_DROP_HANDSHAKES: bool = property("netty.server.earlyDropSecureConnectionHandshakes", false).not_yet();
    /// Statistics of requests by path.
    PATH_STATS: Text = property("pathStats.*", NONE).not_yet();
    /// Watches for a server that stands still.
    PAUSE_MONITOR: bool = file("jvm.pause.monitor", false).not_yet();
    /// A stall longer than this is logged.
    PAUSE_INFO: i64 = file("jvm.pause.info-threshold.ms", 1000).unit("ms").not_yet();
    /// A stall longer than this is warned about.
    PAUSE_WARN: i64 = file("jvm.pause.warn-threshold.ms", 10_000).unit("ms").not_yet();
    /// How often that is looked at.
    PAUSE_SLEEP: i64 = file("jvm.pause.sleep.time.ms", 500).unit("ms").not_yet();

    // The Java machine's own.

    /// Threads for SASL between servers.
    QUORUM_CNXN_THREADS: i64 = file("quorum.cnxn.threads.size", 20).unit("threads").jvm_only();
    /// Threads that watch sockets; shards are set by ringkeeper.shards.
    NIO_SELECTOR_THREADS: Unset = property("nio.numSelectorThreads", UNSET).unit("threads").jvm_only();
    /// Threads that serve sockets; shards are set by ringkeeper.shards.
    NIO_WORKER_THREADS: Unset = property("nio.numWorkerThreads", UNSET).unit("threads").jvm_only();
    /// Buffers outside the heap.
    NIO_DIRECT_BUFFER: Unset = property("nio.directBufferBytes", UNSET).unit("bytes").jvm_only();
    /// How long its threads may take to end.
    NIO_SHUTDOWN: Unset = property("nio.shutdownTimeout", UNSET).unit("ms").jvm_only();
    /// Flow control of Netty.
    NETTY_FLOW_CONTROL: bool = property("netty.advancedFlowControl.enabled", false)
        .alias("advancedFlowControlEnabled").jvm_only();
    /// Caches of encoded replies: there is none to size here.
    RESPONSE_CACHE: i64 = property("maxResponseCacheSize", 400).unit("entries").jvm_only();
    /// The same for lists of children.
    CHILDREN_CACHE: i64 = property("maxGetChildrenResponseCacheSize", 400).unit("entries").jvm_only();
    /// Which class keeps the watches.
    WATCH_MANAGER: Text = property("watchManagerName", NONE).jvm_only();
    /// How dead watches are swept.
    WATCHER_CLEAN: Text = property("watcherClean*", NONE).jvm_only();
    /// How many may wait for that.
    DEAD_WATCHERS: Unset = property("maxInProcessingDeadWatchers", UNSET).jvm_only();
    /// A cache of that class.
    BIT_HASH_CACHE: Unset = property("bitHashCacheSize", UNSET).jvm_only();
    /// The first size of a buffer.
    INT_BUFFER: Unset = property("intBufferStartingSizeBytes", UNSET).unit("bytes").jvm_only();
    /// Threads of the commit processor.
    COMMIT_PROCESSOR: Text = property("commitProcessor.*", NONE).jvm_only();
    /// How long a throttled request may delay the end.
    THROTTLER_SHUTDOWN: Unset = property("request_throttler.shutdownTimeout", UNSET).unit("ms").jvm_only();
    /// A thread of the leader that closes sockets.
    LEADER_CLOSE_ASYNC: bool = prefixed_or_bare("leader.closeSocketAsync", false).jvm_only();
    /// The same of a learner.
    LEARNER_CLOSE_ASYNC: bool = prefixed_or_bare("learner.closeSocketAsync", false).jvm_only();
    /// A thread of a learner that sends.
    LEARNER_SEND_ASYNC: bool = prefixed_or_bare("learner.asyncSending", false).jvm_only();
    /// How the leader's processors are chained.
    FORWARD_LEARNER_REQUESTS: Text = property("forward_learner_requests_to_commit_processor_disabled", NONE).jvm_only();
    /// How a follower's processors are chained.
    FOLLOWER_SKIP: Text = property("follower.skipLearnerRequestToNextProcessor", NONE).jvm_only();
    /// Which class writes the audit log.
    AUDIT_CLASS: Text = property("audit.impl.class", NONE).jvm_only();
    /// Management by JMX.
    JMX: Text = property("jmx.*", NONE).jvm_only();
    /// Where its log goes: ours goes to standard output.
    JVM_LOG: Text = property("log.*", NONE).jvm_only();
    /// What its log shows: see ringkeeper.log.level.
    JVM_LOG_THRESHOLD: Text = property("console.threshold", NONE).jvm_only();
    /// The same.
    JVM_ROOT_LOGGER: Text = property("root.logger", NONE).jvm_only();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_belongs_to_one_knob() {
        let mut names = BTreeSet::new();
        for knob in ALL {
            let about = knob.about();
            for name in [Some(about.key), about.alias].into_iter().flatten() {
                assert!(names.insert(name), "{name} is in the table twice");
            }
            let found = find(&about.key.replace('*', "something")).unwrap();
            assert_eq!(found.about().key, about.key);
        }
    }

    #[test]
    fn every_default_is_a_value_of_its_own_knob() {
        for knob in ALL {
            let (key, default) = (knob.about().key, knob.default_text());
            let is_word = matches!(knob.about().words, Words::TrueFalse);
            if !default.is_empty() && is_word {
                assert_eq!(knob.check(&default), Ok(()), "{key}");
            }
        }
    }

    #[test]
    fn every_knob_is_documented_by_a_sentence() {
        let page = documentation();
        for knob in ALL {
            let about = knob.about();
            assert!(about.doc.trim().ends_with('.'), "{}: {:?}", about.key, about.doc);
            assert!(page.contains(&format!("\n{}", about.key)), "{}", about.key);
        }
        assert!(page.lines().all(|line| line.len() <= 120), "a line is too long");
    }

    #[test]
    fn integers_of_properties_are_decoded_as_in_java() {
        for (text, number) in [
            ("12", Some(12)),
            ("-12", Some(-12)),
            ("+12", Some(12)),
            ("0x1F", Some(31)),
            ("#1f", Some(31)),
            ("-0X10", Some(-16)),
            ("010", Some(8)),
            ("0", Some(0)),
            ("09", None),
            ("", None),
            ("-", None),
            ("+-5", None),
            ("0x-5", None),
            (" 5", None),
            ("5 ", None),
            ("é5", None),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
        ] {
            assert_eq!(decode(text), number, "{text:?}");
        }
    }
}
