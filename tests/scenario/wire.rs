//! Requests from words, and replies into words.

use ringkeeper::jute::record::{Record as _, Text};
use ringkeeper::jute::{Reader, Write as _, frame};
use ringkeeper::record::data::{AclBytes, AclText, Stat};
use ringkeeper::record::op::code;
use ringkeeper::record::proto::{MULTI_END, MultiHeader, ReplyHeader, RequestHeader, WatcherEvent};

/// A request on its way: how its reply is to be read.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) op: i32,
    pub(crate) word: String,
}

/// The words of a request: `get /x watch`, `create /x data mode 1`, ...
pub(crate) struct Words<'a> {
    words: Vec<&'a str>,
    next: usize,
}

impl<'a> Words<'a> {
    pub(crate) fn new(text: &'a str) -> Words<'a> {
        Words { words: text.split_whitespace().collect(), next: 0 }
    }

    pub(crate) fn next(&mut self) -> Option<&'a str> {
        let word = self.words.get(self.next).copied();
        self.next += 1;
        word
    }

    pub(crate) fn require(&mut self, what: &str) -> Result<&'a str, String> {
        self.next().ok_or_else(|| format!("{what} is missing"))
    }

    /// Whether the word stands somewhere behind.
    pub(crate) fn has(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    /// What stands behind `word`.
    pub(crate) fn value_of(&self, word: &str) -> Option<&'a str> {
        let at = self.words.iter().position(|found| *found == word)?;
        self.words.get(at + 1).copied()
    }
}

/// A path or text: `null` and `""` are what they say, `%00` is a byte, `x*20` twenty times x.
fn put_text(out: &mut Vec<u8>, word: &str) {
    match word {
        "null" => return out.put_buffer(None),
        "\"\"" => return out.put_buffer(Some(b"")),
        _ => {}
    }
    if let Some((text, Ok(count))) = word.split_once('*').map(|(text, count)| (text, count.parse()))
    {
        return out.put_text(&text.repeat(count));
    }
    let mut pieces = word.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        bytes.push(u8::from_str_radix(&piece[..2], 16).unwrap());
        bytes.extend_from_slice(&piece.as_bytes()[2..]);
    }
    out.put_buffer(Some(&bytes));
}

pub(crate) fn number<T: std::str::FromStr>(word: &str) -> Result<T, String> {
    word.parse().map_err(|_| format!("{word} is not a number"))
}

/// `world:anyone:31,digest:user:hash:1`, the permissions last; `null` and `none` are lists too, and
/// `~` stands for a text that is null.
fn put_acl(out: &mut Vec<u8>, word: Option<&str>) -> Result<(), String> {
    let Some(word) = word else {
        AclBytes::OPEN.write(out);
        return Ok(());
    };
    if word == "null" {
        out.put_count(None);
        return Ok(());
    }
    let entries: Vec<&str> = word.split(',').filter(|entry| *entry != "none").collect();
    out.put_count(Some(entries.len()));
    for entry in entries {
        let (id, perms) = entry.rsplit_once(':').ok_or("an ACL is scheme:id:perms")?;
        let (scheme, id) = id.split_once(':').ok_or("an ACL is scheme:id:perms")?;
        out.put_i32(number(perms)?);
        for text in [scheme, id] {
            put_text(out, if text == "~" { "null" } else { text });
        }
    }
    Ok(())
}

/// One operation's code and body, as they stand alone and in a multi.
fn operation(words: &mut Words<'_>, out: &mut Vec<u8>) -> Result<i32, String> {
    let word = words.require("an operation")?;
    let watch = words.has("watch");
    Ok(match word {
        "create" | "create2" | "container" | "ttl" => {
            put_text(out, words.require("a path")?);
            match words.next() {
                None | Some("null" | "mode" | "acl" | "for") => out.put_buffer(None),
                Some(data) => put_text(out, data),
            }
            put_acl(out, words.value_of("acl"))?;
            let mode = words.value_of("mode").map_or(Ok(0), number)?;
            out.put_i32(mode);
            match word {
                "create" => code::CREATE,
                "create2" => code::CREATE2,
                "container" => code::CREATE_CONTAINER,
                _ => {
                    out.put_i64(words.value_of("for").map_or(Ok(1000), number)?);
                    code::CREATE_TTL
                }
            }
        }
        "delete" | "check" => {
            put_text(out, words.require("a path")?);
            out.put_i32(words.next().map_or(Ok(-1), number)?);
            if word == "delete" { code::DELETE } else { code::CHECK }
        }
        "set" => {
            put_text(out, words.require("a path")?);
            put_text(out, words.require("data")?);
            out.put_i32(words.next().map_or(Ok(-1), number)?);
            code::SET_DATA
        }
        "setacl" => {
            put_text(out, words.require("a path")?);
            put_acl(out, words.next())?;
            out.put_i32(words.next().map_or(Ok(-1), number)?);
            code::SET_ACL
        }
        "exists" | "get" | "children" | "children2" => {
            put_text(out, words.require("a path")?);
            out.put_bool(watch);
            match word {
                "exists" => code::EXISTS,
                "get" => code::GET_DATA,
                "children" => code::GET_CHILDREN,
                _ => code::GET_CHILDREN2,
            }
        }
        "acl" | "count" | "ephemerals" | "sync" => {
            put_text(out, words.require("a path")?);
            match word {
                "acl" => code::GET_ACL,
                "count" => code::GET_ALL_CHILDREN_NUMBER,
                "ephemerals" => code::GET_EPHEMERALS,
                _ => code::SYNC,
            }
        }
        "auth" => {
            out.put_i32(0);
            put_text(out, words.require("a scheme")?);
            put_text(out, words.require("data")?);
            code::AUTH
        }
        "sasl" => {
            put_text(out, words.require("a token")?);
            code::SASL
        }
        "ping" => code::PING,
        "whoami" => code::WHO_AM_I,
        "close" => code::CLOSE_SESSION,
        "addwatch" | "checkwatch" | "removewatch" => {
            put_text(out, words.require("a path")?);
            out.put_i32(number(words.require("a mode")?)?);
            match word {
                "addwatch" => code::ADD_WATCH,
                "checkwatch" => code::CHECK_WATCHES,
                _ => code::REMOVE_WATCHES,
            }
        }
        "setwatches" | "setwatches2" => {
            out.put_i64(number(words.require("a zxid")?)?);
            let lists = ["data", "exist", "child", "persistent", "recursive"];
            let with_persistent = word == "setwatches2";
            for list in &lists[..if with_persistent { 5 } else { 3 }] {
                let paths = words.value_of(list).unwrap_or_default();
                let paths: Vec<&str> = paths.split(',').filter(|path| !path.is_empty()).collect();
                out.put_count(Some(paths.len()));
                paths.iter().for_each(|path| put_text(out, path));
            }
            if with_persistent { code::SET_WATCHES2 } else { code::SET_WATCHES }
        }
        "reconfig" => {
            for _ in ["joining", "leaving", "members"] {
                put_text(out, words.next().unwrap_or("null"));
            }
            out.put_i64(-1);
            code::RECONFIG
        }
        "op" => number(words.require("an opcode")?)?,
        _ => return Err(format!("{word} is no operation")),
    })
}

/// A request's frame, and how its reply is to be read.
pub(crate) fn request(text: &str, xid: i32, out: &mut Vec<u8>) -> Result<Sent, String> {
    let mut body = Vec::new();
    let mut words = Words::new(text);
    let (op, word) = match words.words.first().copied() {
        Some(word @ ("multi" | "multiread")) => {
            for part in text.trim().trim_start_matches(word).split('|') {
                if part.trim().is_empty() {
                    continue;
                }
                let mut one = Vec::new();
                let kind = operation(&mut Words::new(part), &mut one)?;
                MultiHeader { kind, done: false, err: -1 }.write(&mut body);
                body.extend_from_slice(&one);
            }
            MULTI_END.write(&mut body);
            (if word == "multi" { code::MULTI } else { code::MULTI_READ }, word)
        }
        Some(word) => {
            let op = operation(&mut words, &mut body)?;
            if let Some(cut) = words.value_of("cut") {
                body.truncate(number(cut)?);
            }
            (op, word)
        }
        None => return Err("a request is missing".to_owned()),
    };
    let xid = match op {
        code::PING => -2,
        code::AUTH => -4,
        code::SET_WATCHES | code::SET_WATCHES2 => -8,
        _ => xid,
    };
    frame::write(out, |out| {
        RequestHeader { xid, op }.write(out);
        out.extend_from_slice(&body);
    });
    Ok(Sent { op, word: word.to_owned() })
}

/// A reply or event in words. Out of the stat only what tells states apart: times are not shown.
pub(crate) fn reply(header: ReplyHeader, sent: &Sent, body: &mut Reader<'_>) -> String {
    let ReplyHeader { xid, zxid, err } = header;
    let mut text = format!("{xid} {} zxid {zxid:#x}", sent.word);
    if err != 0 {
        text.push_str(&format!(" error {err}"));
    }
    if !body.is_empty() {
        match result(sent.op, body) {
            Some(result) => text.push_str(&format!(" {result}")),
            None => text.push_str(&format!(" unreadable at {}", body.offset())),
        }
    }
    if !body.is_empty() {
        text.push_str(&format!(" and {} bytes more", body.rest().len()));
    }
    text
}

fn result(op: i32, body: &mut Reader<'_>) -> Option<String> {
    Some(match op {
        code::CREATE | code::SYNC => shown(body)?,
        code::CREATE2 | code::CREATE_CONTAINER | code::CREATE_TTL => {
            format!("{} {}", shown(body)?, stat(body)?)
        }
        code::GET_DATA => format!("{} {}", shown(body)?, stat(body)?),
        code::EXISTS | code::SET_DATA | code::SET_ACL => stat(body)?,
        code::GET_CHILDREN | code::GET_EPHEMERALS => texts(body)?,
        code::GET_CHILDREN2 => format!("{} {}", texts(body)?, stat(body)?),
        code::GET_ALL_CHILDREN_NUMBER | code::ADD_WATCH => body.i32().ok()?.to_string(),
        code::GET_ACL => {
            let acl: Option<Vec<AclText<'_>>> = Option::read(body).ok()?;
            let acl: Vec<String> = acl?
                .into_iter()
                .map(|AclText { perms, id }| {
                    format!("{}:{}:{perms}", id.scheme.unwrap(), id.id.unwrap())
                })
                .collect();
            format!("[{}] {}", acl.join(" "), stat(body)?)
        }
        code::SASL => shown(body)?,
        code::WHO_AM_I => {
            let mut ids = Vec::new();
            for _ in 0..body.count().ok()?? {
                ids.push(format!("{}:{}", shown(body)?, shown(body)?));
            }
            ids.sort();
            ids.join(" ")
        }
        code::MULTI | code::MULTI_READ => {
            let mut results = Vec::new();
            loop {
                let MultiHeader { kind, done, err: _ } = MultiHeader::read(body).ok()?;
                if done {
                    break;
                }
                results.push(match kind {
                    code::ERROR => format!("error {}", body.i32().ok()?),
                    code::DELETE | code::CHECK => "ok".to_owned(),
                    _ => result(kind, body)?,
                });
            }
            format!("({})", results.join(" | "))
        }
        _ => return None,
    })
}

fn shown(body: &mut Reader<'_>) -> Option<String> {
    let text: Text<'_> = body.text().ok()?;
    Some(match text.as_deref() {
        None => "null".to_owned(),
        Some("") => "\"\"".to_owned(),
        Some(text) => text.to_owned(),
    })
}

fn texts(body: &mut Reader<'_>) -> Option<String> {
    let mut texts = Vec::new();
    for _ in 0..body.count().ok()?? {
        texts.push(shown(body)?);
    }
    texts.sort();
    Some(format!("[{}]", texts.join(" ")))
}

fn stat(body: &mut Reader<'_>) -> Option<String> {
    let stat = Stat::read(body).ok()?;
    let mut text = format!(
        "c {:#x} m {:#x} p {:#x} v {} {} {} children {}",
        stat.czxid,
        stat.mzxid,
        stat.pzxid,
        stat.version,
        stat.cversion,
        stat.aversion,
        stat.num_children
    );
    if stat.ephemeral_owner != 0 {
        text.push_str(" ephemeral");
    }
    Some(text)
}

pub(crate) fn event(header: ReplyHeader, body: &mut Reader<'_>) -> String {
    let event = WatcherEvent::read(body).unwrap();
    let kind = match event.kind {
        1 => "created",
        2 => "deleted",
        3 => "data changed",
        4 => "children changed",
        _ => "unknown",
    };
    assert_eq!((header.err, event.state), (0, 3));
    let zxid = match header.zxid {
        -1 => "now".to_owned(),
        zxid => format!("zxid {zxid:#x}"),
    };
    format!("event {kind} {} {zxid}", event.path.unwrap())
}
