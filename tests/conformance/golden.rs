//! One whole conversation, byte for byte.
//!
//! What a run decides is masked by a name that stands for the same bytes wherever it occurs: `Z3`
//! a zxid (`Z4` not before `Z3`), `T1` a time, `ID` the session's id, `PW` the password that
//! follows from it. `C` is what the client sends and `S` what the server must send; `O` is what it
//! may send instead of the line before, always or in the releases before the one named. Lengths
//! are part of the bytes.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::client::{Incoming, PATIENCE, Wire};
use crate::target::Version;
use crate::trial::{Outcome, Stop, Trial};
use crate::wire::{framed, hex, session_password};

const CONVERSATION: &str = "
# connect
C 0000002d 00000000 0000000000000000 00002710 0000000000000000 00000010 00000000000000000000000000000000 00
S 00000025 00000000 00002710 ID 00000010 PW 00
# create
C 00000033 00000001 00000001 00000002 2f67 00000002 6869 00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65 00000000
S 00000016 00000001 Z2 00000000 00000002 2f67
# create2, sequential
C 00000034 00000002 0000000f 00000005 2f672f6e2d 00000000 00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65 00000002
S 00000067 00000002 Z3 00000000 0000000f 2f672f6e2d30303030303030303030 Z3 Z3 T2 T2 00000000 00000000 00000000 0000000000000000 00000000 00000000 Z3
# exists
C 0000000f 00000003 00000003 00000002 2f67 00
S 00000054 00000003 Z3 00000000 Z2 Z2 T1 T1 00000000 00000001 00000000 0000000000000000 00000002 00000001 Z3
# exists, absent, with a watch
C 0000000f 00000004 00000003 00000002 2f68 01
S 00000010 00000004 Z3 ffffff9b
# getData with a watch
C 0000000f 00000005 00000004 00000002 2f67 01
S 0000005a 00000005 Z3 00000000 00000002 6869 Z2 Z2 T1 T1 00000000 00000001 00000000 0000000000000000 00000002 00000001 Z3
# setData, with the event before the reply
C 00000018 00000006 00000005 00000002 2f67 00000002 796f 00000000
S 0000001e ffffffff Z4 00000000 00000003 00000003 00000002 2f67
O<3.9.0 0000001e ffffffff ffffffffffffffff 00000000 00000003 00000003 00000002 2f67
S 00000054 00000006 Z4 00000000 Z2 Z4 T1 T3 00000001 00000001 00000000 0000000000000000 00000002 00000001 Z3
# getChildren2
C 0000000f 00000007 0000000c 00000002 2f67 00
S 00000068 00000007 Z4 00000000 00000001 0000000c 6e2d30303030303030303030 Z2 Z4 T1 T3 00000001 00000001 00000000 0000000000000000 00000002 00000001 Z3
# getACL
C 0000000e 00000008 00000006 00000002 2f67
S 0000006f 00000008 Z4 00000000 00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65 Z2 Z4 T1 T3 00000001 00000001 00000000 0000000000000000 00000002 00000001 Z3
# multi: create /h, setData /g, check /g, delete /h
C 00000081 00000009 0000000e 00000001 00 ffffffff 00000002 2f68 00000000 00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65 00000000 00000005 00 ffffffff 00000002 2f67 00000001 78 00000001 0000000d 00 ffffffff 00000002 2f67 00000002 00000002 00 ffffffff 00000002 2f68 ffffffff ffffffff 01 ffffffff
S 0000001e ffffffff Z5 00000000 00000001 00000003 00000002 2f68
O<3.9.0 0000001e ffffffff ffffffffffffffff 00000000 00000001 00000003 00000002 2f68
S 00000087 00000009 Z5 00000000 00000001 00 00000000 00000002 2f68 00000005 00 00000000 Z2 Z5 T1 T4 00000002 00000001 00000000 0000000000000000 00000001 00000001 Z3 0000000d 00 00000000 00000002 00 00000000 ffffffff 01 ffffffff
# multi that fails: create /h, delete /nope, setData /g
C 00000070 0000000a 0000000e 00000001 00 ffffffff 00000002 2f68 00000000 00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65 00000000 00000002 00 ffffffff 00000005 2f6e6f7065 ffffffff 00000005 00 ffffffff 00000002 2f67 00000000 ffffffff ffffffff 01 ffffffff
S 00000040 0000000a Z6 00000000 ffffffff 00 00000000 00000000 ffffffff 00 ffffff9b ffffff9b ffffffff 00 fffffffe fffffffe ffffffff 01 ffffffff
# multiRead: getData /g, getChildren /g, getData /nope
C 00000044 0000000b 00000016 00000004 00 ffffffff 00000002 2f67 00 00000008 00 ffffffff 00000002 2f67 00 00000004 00 ffffffff 00000005 2f6e6f7065 00 ffffffff 01 ffffffff
S 00000095 0000000b Z6 00000000 00000004 00 00000000 00000001 78 Z2 Z5 T1 T4 00000002 00000001 00000000 0000000000000000 00000001 00000001 Z3 00000008 00 00000000 00000001 0000000c 6e2d30303030303030303030 ffffffff 00 ffffff9b ffffff9b ffffffff 01 ffffffff
# addWatch, recursive
C 00000012 0000000c 0000006a 00000002 2f67 00000001
S 00000014 0000000c Z6 00000000 00000000
# removeWatches, recursive
C 00000012 0000000d 00000012 00000002 2f67 00000005
S 00000010 0000000d Z6 00000000
O<3.9.0 00000010 0000000d Z6 fffffffb
# setWatches, with the event before the reply
C 0000002b fffffff8 00000065 0000000000000000 00000001 00000002 2f67 00000001 00000005 2f6e6f7065 00000000
S 0000001e ffffffff ffffffffffffffff 00000000 00000003 00000003 00000002 2f67
S 00000010 fffffff8 Z6 00000000
# auth
C 00000021 fffffffc 00000064 00000000 00000006 646967657374 00000007 757365723a7077
S 00000010 fffffffc 0000000000000000 00000000
# whoAmI, in either order
C 00000008 0000000e 0000006b
S 00000039 0000000e Z6 00000000 00000002 00000006 646967657374 00000004 75736572 00000002 6970 00000009 3132372e302e302e31
O 00000039 0000000e Z6 00000000 00000002 00000002 6970 00000009 3132372e302e302e31 00000006 646967657374 00000004 75736572
# sync
C 0000000e 0000000f 00000009 00000002 2f67
S 00000016 0000000f Z6 00000000 00000002 2f67
# ping
C 00000008 fffffffe 0000000b
S 00000010 fffffffe Z6 00000000
# closeSession
C 00000008 00000010 fffffff5
S 00000010 00000010 Z7 00000000
";

/// What the names stand for so far.
type Names = BTreeMap<String, Vec<u8>>;

pub(crate) fn conversation(t: &mut Trial<'_>) -> Outcome {
    let mut wire = t.wire()?;
    let mut names = Names::new();
    let mut lines = CONVERSATION.lines().peekable();
    let mut topic = "";
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("# ") {
            topic = text;
        } else if let Some(bytes) = line.strip_prefix("C ") {
            wire.send(&plain(bytes)?)?;
        } else if let Some(pattern) = line.strip_prefix("S ") {
            let mut allowed = vec![pattern];
            while let Some(other) = lines.next_if(|line| line.starts_with('O')) {
                let (condition, pattern) = other.split_at(other.find(' ').unwrap_or(0));
                if applies(t, condition)? {
                    // In front: what it says is plain where the line before has a name.
                    allowed.insert(0, pattern);
                }
            }
            hears(&mut wire, &mut names, topic, &allowed)?;
        }
    }
    t.ends("the conversation", &mut wire)?;
    let zxids: Vec<_> =
        names.iter().filter(|(name, _)| name.starts_with('Z')).map(|(_, zxid)| zxid).collect();
    t.that("zxids do not go down", zxids.is_sorted());
    Ok(())
}

/// Whether an `O` line counts for this target: `O<3.9.0` does before 3.9.0.
fn applies(t: &Trial<'_>, condition: &str) -> Result<bool, Stop> {
    let Some(release) = condition.strip_prefix("O<") else { return Ok(true) };
    let numbers: Vec<u32> = release.split('.').filter_map(|n| n.parse().ok()).collect();
    match numbers[..] {
        [major, minor, patch] => Ok(!t.since(&[(major, minor, patch) as Version])),
        _ => Err(Stop::new(format!("no release: {condition}"))),
    }
}

/// Wants the next frame to be one of `allowed`.
fn hears(wire: &mut Wire, names: &mut Names, topic: &str, allowed: &[&str]) -> Outcome {
    let frame = match wire.receive(Instant::now() + PATIENCE)? {
        Incoming::Frame(payload) => framed(&payload),
        Incoming::Closed => return Err(Stop::new(format!("{topic}: the server closed"))),
    };
    for pattern in allowed {
        if let Some(bound) = matched(names, pattern, &frame)? {
            *names = bound;
            return Ok(());
        }
    }
    let names: Vec<String> = names.iter().map(|(n, bytes)| format!("{n}={}", hex(bytes))).collect();
    Err(Stop::new(format!(
        "{topic}\n    expected {}\n    actual   {}\n    where    {}",
        allowed.join("\n    or       "),
        hex(&frame),
        names.join(", ")
    )))
}

/// The names after `frame` was read as `pattern`, if it can be.
fn matched(names: &Names, pattern: &str, frame: &[u8]) -> Result<Option<Names>, Stop> {
    let mut names = names.clone();
    let mut rest = frame;
    for token in pattern.split_whitespace() {
        let expected = match names.get(token) {
            Some(bytes) => bytes.clone(),
            None if token.starts_with(['Z', 'T', 'I']) => {
                let Some(bytes) = rest.get(..8) else { return Ok(None) };
                names.insert(token.to_owned(), bytes.to_vec());
                bytes.to_vec()
            }
            None if token == "PW" => {
                let id = names.get("ID").ok_or_else(|| Stop::new("PW before ID"))?;
                let id: [u8; 8] = id[..].try_into().map_err(|_| Stop::new("ID is short"))?;
                session_password(i64::from_be_bytes(id)).to_vec()
            }
            None => plain(token)?,
        };
        match rest.strip_prefix(&expected[..]) {
            Some(behind) => rest = behind,
            None => return Ok(None),
        }
    }
    Ok(rest.is_empty().then_some(names))
}

/// Bytes from hexadecimal digits, blanks between them or not.
fn plain(text: &str) -> Result<Vec<u8>, Stop> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|i| digits.get(i..i + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok()))
        .collect::<Option<Vec<u8>>>()
        .ok_or_else(|| Stop::new(format!("not hexadecimal: {text}")))
}
