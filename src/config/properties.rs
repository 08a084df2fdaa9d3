//! The syntax of `zoo.cfg`: Java's properties.
//!
//! The bytes are ISO-8859-1, one character each. A logical line is one natural line, or several
//! joined by a backslash at the end; comments are never joined.
//!
//! ```text
//! line   blanks key [blanks] [ "=" | ":" ] [blanks] value
//! key    up to the first unescaped "=", ":" or blank
//! value  the rest; a "#" in it is data
//! \uXXXX a UTF-16 unit     \t \n \r \f as in C     \c any other c itself
//! ```
//!
//! After the documentation of `java.util.Properties.load`. Keys and values are trimmed, as
//! `QuorumPeerConfig.parseProperties` does with what it gets from there.

use std::collections::BTreeMap;

/// Keys and values of one file. Of a key that is given twice the last value counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Properties {
    entries: BTreeMap<String, Setting>,
}

/// A value and the line it stands on, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    pub value: String,
    /// Counted from 1; the first natural line of a joined one. 0: not from a file.
    pub line: usize,
}

/// A `\u` without four hexadecimal digits, the only thing the syntax refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("Malformed \\uxxxx encoding. (line {line})")]
pub struct Malformed {
    pub line: usize,
}

impl Properties {
    pub fn parse(bytes: &[u8]) -> Result<Properties, Malformed> {
        let mut properties = Properties::default();
        // A byte order mark is what an editor left, not part of the first key. Java keeps it
        // there, and the key is then nobody's.
        let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        let mut lines = natural_lines(text).zip(1..);
        while let Some((first, line)) = lines.next() {
            let first = skip_blanks(first);
            if matches!(first.first(), None | Some(b'#' | b'!')) {
                continue;
            }
            let mut logical = first.to_vec();
            while ends_in_odd_backslashes(&logical) {
                logical.pop();
                match lines.next() {
                    Some((next, _)) => logical.extend_from_slice(skip_blanks(next)),
                    None => break,
                }
            }
            let (key, value) = split(&logical);
            let malformed = |_: BrokenEscape| Malformed { line };
            let key = unescape(key).map_err(malformed)?;
            let value = unescape(value).map_err(malformed)?;
            properties.set(trim(&key), trim(&value), line);
        }
        Ok(properties)
    }

    pub fn set(&mut self, key: &str, value: &str, line: usize) {
        self.entries.insert(key.to_owned(), Setting { value: value.to_owned(), line });
    }

    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Setting> {
        self.entries.get(key)
    }

    #[must_use]
    pub fn value(&self, key: &str) -> Option<&str> {
        self.get(key).map(|setting| setting.value.as_str())
    }

    /// In order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Setting)> {
        self.entries.iter().map(|(key, setting)| (key.as_str(), setting))
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Properties {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Properties {
        let mut properties = Properties::default();
        for (key, value) in pairs {
            properties.set(key, value, 0);
        }
        properties
    }
}

/// Lines as `\n`, `\r` and `\r\n` end them.
fn natural_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = text.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
            rest = None;
            return Some(text);
        };
        let ending = if text[end..].starts_with(b"\r\n") { 2 } else { 1 };
        rest = Some(&text[end + ending..]);
        Some(&text[..end])
    })
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\x0c')
}

fn skip_blanks(line: &[u8]) -> &[u8] {
    let blanks = line.iter().take_while(|&&byte| is_blank(byte)).count();
    &line[blanks..]
}

fn ends_in_odd_backslashes(line: &[u8]) -> bool {
    line.iter().rev().take_while(|&&byte| byte == b'\\').count() % 2 == 1
}

/// Key and value of a logical line, both still escaped.
fn split(line: &[u8]) -> (&[u8], &[u8]) {
    let mut escaped = false;
    let ends_key = |&byte: &u8| {
        let ends = !escaped && (is_blank(byte) || matches!(byte, b'=' | b':'));
        escaped = !escaped && byte == b'\\';
        ends
    };
    let Some(end) = line.iter().position(ends_key) else {
        return (line, b"");
    };
    let (key, rest) = line.split_at(end);
    let rest = skip_blanks(rest);
    match rest.first() {
        Some(b'=' | b':') => (key, skip_blanks(&rest[1..])),
        _ => (key, rest),
    }
}

struct BrokenEscape;

fn unescape(text: &[u8]) -> Result<String, BrokenEscape> {
    // UTF-16, as in Java: two `\u` may be the halves of one character.
    let mut units = Vec::with_capacity(text.len());
    let mut rest = text.iter().copied();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            units.push(u16::from(byte));
            continue;
        }
        match rest.next() {
            Some(b'u') => {
                let mut unit = 0;
                for _ in 0..4 {
                    let digit = rest.next().and_then(|byte| char::from(byte).to_digit(16));
                    unit = unit << 4 | digit.ok_or(BrokenEscape)?;
                }
                units.push(u16::try_from(unit).expect("four hexadecimal digits"));
            }
            Some(b't') => units.push(u16::from(b'\t')),
            Some(b'n') => units.push(u16::from(b'\n')),
            Some(b'r') => units.push(u16::from(b'\r')),
            Some(b'f') => units.push(0x0c),
            Some(other) => units.push(u16::from(other)),
            // The backslash before the end of the file.
            None => {}
        }
    }
    Ok(String::from_utf16_lossy(&units))
}

/// Java's `String.trim`: all that is not above a blank goes, control characters too.
fn trim(text: &str) -> &str {
    text.trim_matches(|c| c <= ' ')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn check(text: &str, expected: &[(&str, &str)]) {
        let parsed = Properties::parse(text.as_bytes()).unwrap();
        let parsed: Vec<_> = parsed.iter().map(|(key, s)| (key, s.value.as_str())).collect();
        assert_eq!(parsed, expected, "{text:?}");
    }

    #[test]
    fn equals_sign_colon_and_blank_separate_alike() {
        for line in [
            "tickTime 2000",
            "tickTime:2000",
            "tickTime = 2000",
            "tickTime=2000",
            " \t\x0ctickTime\t:\t2000",
            "tickTime=2000   ",
        ] {
            check(line, &[("tickTime", "2000")]);
        }
        check("server.1 = h:2888:3888", &[("server.1", "h:2888:3888")]);
        check("4lw.commands.whitelist: *", &[("4lw.commands.whitelist", "*")]);
        check("a = = b", &[("a", "= b")]);
        check("a\\=b=c", &[("a=b", "c")]);
        check("alone", &[("alone", "")]);
        check("=value", &[("", "value")]);
    }

    #[test]
    fn comments_are_whole_lines_and_never_continued() {
        check("# a=1\\\nb=2", &[("b", "2")]);
        check("  ! a=1\nb=2", &[("b", "2")]);
        check("clientPort=2181 # x", &[("clientPort", "2181 # x")]);
        check("a=1\\\n# b", &[("a", "1# b")]);
    }

    #[test]
    fn lines_end_and_continue_as_in_java() {
        check("a=1\rb=2\r\nc=3\n\nd=4", &[("a", "1"), ("b", "2"), ("c", "3"), ("d", "4")]);
        check("a=1\\\n   2\\\r\n\t3", &[("a", "123")]);
        check("a=1\\\\\nb=2", &[("a", "1\\"), ("b", "2")]);
        check("a=1\\", &[("a", "1")]);
        check("a=1\\\n\nb=2", &[("a", "1"), ("b", "2")]);
    }

    #[test]
    fn escapes_are_resolved_in_keys_and_values() {
        check(r"a\tb=c\u0041\n", &[("a\tb", "cA")]);
        check(r"a=\ud83d\ude00", &[("a", "\u{1f600}")]);
        check(r"dir=C:\zk", &[("dir", "C:zk")]);
        assert_eq!(Properties::parse(b"a=1\nfoo=\\u12G4"), Err(Malformed { line: 2 }));
        assert_eq!(Properties::parse(b"foo=\\u12"), Err(Malformed { line: 1 }));
    }

    #[test]
    fn bytes_are_latin_1_and_a_byte_order_mark_is_skipped() {
        let parsed = Properties::parse(b"\xef\xbb\xbfa=\xe9").unwrap();
        assert_eq!(parsed.value("a"), Some("é"));
    }

    #[test]
    fn the_last_of_equal_keys_wins_and_says_its_line() {
        let parsed = Properties::parse(b"a=1\n# c\nb=2\na=3").unwrap();
        assert_eq!(parsed.get("a"), Some(&Setting { value: "3".into(), line: 4 }));
    }

    proptest! {
        #[test]
        fn any_bytes_are_properties_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = Properties::parse(&bytes);
        }

        /// The same with the characters that mean something, which random bytes rarely hit.
        #[test]
        fn any_syntax_is_properties_or_refused(text in "[\\\\=: #!u0-9a-f\t\r\n]{0,80}") {
            let _ = Properties::parse(text.as_bytes());
        }

        #[test]
        fn what_is_written_escaped_is_read_back(
            key in "[a-zA-Z0-9.=: \\\\]{1,20}",
            value in "[!-~][ -~]{0,20}[!-~]",
        ) {
            let escape = |text: &str| text.chars().fold(String::new(), |mut line, c| {
                if !c.is_ascii_alphanumeric() { line.push('\\'); }
                line.push(c);
                line
            });
            let line = format!("{}={}", escape(&key), escape(&value));
            let parsed = Properties::parse(line.as_bytes()).unwrap();
            prop_assert_eq!(parsed.value(trim(&key)), Some(value.as_str()));
        }
    }
}
