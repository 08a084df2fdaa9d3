//! Jute, ZooKeeper's encoding: big-endian, no tags, no padding.
//!
//! ```text
//! bool 1 byte (any non-zero is true)    int 4    long 8
//! buffer, ustring   int length (-1 = null), bytes
//! vector            int count  (-1 = null, other negatives = empty), elements
//! record            its fields, one after the other
//! ```
//!
//! Reading borrows from the input and never allocates by an announced length: a length is held
//! against the bytes that are there. Writing appends to a `Vec<u8>`.
//!
//! After `BinaryInputArchive` and `BinaryOutputArchive`.

pub mod frame;
pub mod record;

use std::borrow::Cow;

/// Bytes that are not what they should be. Says where, counted from the start of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what} at byte {offset}")]
pub struct Malformed {
    pub offset: usize,
    pub what: &'static str,
}

/// The longest buffer or string a field may announce: `jute.maxbuffer` plus as much again.
pub const FIELD_BYTES_MAX: usize = 2 * 0xf_ffff;

/// Reads fields from the front of a byte slice.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    bytes: &'a [u8],
    offset: usize,
    field_bytes_max: usize,
}

impl<'a> Reader<'a> {
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Reader<'a> {
        Reader { bytes, offset: 0, field_bytes_max: FIELD_BYTES_MAX }
    }

    /// The same with another bound on the length of one field.
    #[must_use]
    pub fn with_field_bytes_max(bytes: &'a [u8], field_bytes_max: usize) -> Reader<'a> {
        Reader { bytes, offset: 0, field_bytes_max }
    }

    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// What is left to read.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        &self.bytes[self.offset..]
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.offset == self.bytes.len()
    }

    /// All bytes between two offsets of this reader.
    #[must_use]
    pub fn between(&self, start: usize, end: usize) -> &'a [u8] {
        &self.bytes[start..end]
    }

    #[must_use]
    pub fn malformed(&self, what: &'static str) -> Malformed {
        Malformed { offset: self.offset, what }
    }

    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        match self.rest().get(..count) {
            Some(taken) => {
                self.offset += count;
                Ok(taken)
            }
            None => Err(self.malformed(what)),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        Ok(self.take(N, what)?.try_into().expect("took N bytes"))
    }

    pub fn bool(&mut self) -> Result<bool, Malformed> {
        Ok(self.array::<1>("bool")?[0] != 0)
    }

    pub fn i32(&mut self) -> Result<i32, Malformed> {
        self.array("int").map(i32::from_be_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, Malformed> {
        self.array("long").map(i64::from_be_bytes)
    }

    /// A buffer; `None` is null, which is not the same as empty.
    pub fn buffer(&mut self) -> Result<Option<&'a [u8]>, Malformed> {
        let start = self.offset;
        let taken = match self.i32()? {
            -1 => return Ok(None),
            length => match usize::try_from(length) {
                Ok(length) if length <= self.field_bytes_max => self.take(length, "buffer"),
                _ => Err(self.malformed("length")),
            },
        };
        if taken.is_err() {
            self.offset = start;
        }
        taken.map(Some)
    }

    /// A string; `None` is null. Broken UTF-8 is read as `decode_lossy` says, never refused.
    pub fn text(&mut self) -> Result<Option<Cow<'a, str>>, Malformed> {
        Ok(self.buffer()?.map(decode_lossy))
    }

    /// A vector's count; `None` is null. A count says nothing about the bytes that follow:
    /// never allocate by it.
    pub fn count(&mut self) -> Result<Option<usize>, Malformed> {
        Ok(match self.i32()? {
            -1 => None,
            count => Some(usize::try_from(count).unwrap_or(0)),
        })
    }
}

/// What a record that begins with a text or a buffer has there, unchecked; empty where there is
/// no such thing.
#[must_use]
pub fn first_field(record: &[u8]) -> &[u8] {
    record
        .split_first_chunk()
        .and_then(|(length, rest)| rest.get(..u32::from_be_bytes(*length) as usize))
        .unwrap_or_default()
}

/// Text as Java reads it, and better: a surrogate pair in two three-byte sequences (as Java
/// writes characters above U+FFFF) is that character; anything else that is not UTF-8 is U+FFFD.
#[must_use]
pub fn decode_lossy(bytes: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(bytes) {
        Ok(text) => Cow::Borrowed(text),
        Err(_) => Cow::Owned(decode_surrogates(bytes)),
    }
}

fn decode_surrogates(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    loop {
        match std::str::from_utf8(rest) {
            Ok(valid) => {
                text.push_str(valid);
                return text;
            }
            Err(error) => {
                let (valid, broken) = rest.split_at(error.valid_up_to());
                text.push_str(&String::from_utf8_lossy(valid));
                if let [0xed, high @ 0xa0..=0xaf, h, 0xed, low @ 0xb0..=0xbf, l, ..] = *broken
                    && h & 0xc0 == 0x80
                    && l & 0xc0 == 0x80
                {
                    let unit = |second: u8, third: u8| {
                        0xd000 | u32::from(second & 0x3f) << 6 | u32::from(third & 0x3f)
                    };
                    let code = 0x10000 + ((unit(high, h) - 0xd800) << 10) + (unit(low, l) - 0xdc00);
                    text.push(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
                    rest = &broken[6..];
                } else {
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &broken[error.error_len().unwrap_or(broken.len())..];
                }
            }
        }
    }
}

/// Appends fields to a byte vector.
pub trait Write {
    fn put_bool(&mut self, value: bool);
    fn put_i32(&mut self, value: i32);
    fn put_i64(&mut self, value: i64);
    fn put_buffer(&mut self, value: Option<&[u8]>);
    fn put_text(&mut self, value: &str);
    /// A vector's count, or null.
    fn put_count(&mut self, count: Option<usize>);
}

impl Write for Vec<u8> {
    fn put_bool(&mut self, value: bool) {
        self.push(u8::from(value));
    }

    fn put_i32(&mut self, value: i32) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_i64(&mut self, value: i64) {
        self.extend_from_slice(&value.to_be_bytes());
    }

    fn put_buffer(&mut self, value: Option<&[u8]>) {
        match value {
            Some(bytes) => {
                self.put_count(Some(bytes.len()));
                self.extend_from_slice(bytes);
            }
            None => self.put_i32(-1),
        }
    }

    fn put_text(&mut self, value: &str) {
        self.put_buffer(Some(value.as_bytes()));
    }

    fn put_count(&mut self, count: Option<usize>) {
        self.put_i32(match count {
            Some(count) => i32::try_from(count).expect("lengths stay below 2 GiB"),
            None => -1,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_field_is_there_or_empty() {
        let mut record = Vec::new();
        record.put_buffer(Some(b"/a"));
        record.put_i32(7);
        assert_eq!(first_field(&record), b"/a");
        assert_eq!(first_field(&record[..5]), b"");
        assert_eq!(first_field(&record[..3]), b"");
        assert_eq!(first_field(&[0xff; 20]), b"");
    }

    #[test]
    fn null_and_empty_buffers_differ() {
        let mut out = Vec::new();
        out.put_buffer(None);
        out.put_buffer(Some(b""));
        let mut reader = Reader::new(&out);
        assert_eq!(reader.buffer(), Ok(None));
        assert_eq!(reader.buffer(), Ok(Some(&b""[..])));
        assert!(reader.is_empty());
    }

    #[test]
    fn an_announced_length_is_held_against_the_bytes_that_are_there() {
        for length in [i32::MAX, 5, -2, i32::MIN] {
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.extend_from_slice(b"four");
            assert!(Reader::new(&bytes).buffer().is_err(), "length {length}");
        }
    }

    #[test]
    fn surrogate_pairs_are_one_character_and_rubbish_is_replaced() {
        assert_eq!(decode_lossy(b"\xed\xa0\xbd\xed\xb8\x80"), "\u{1f600}");
        assert_eq!(decode_lossy("\u{1f600}".as_bytes()), "\u{1f600}");
        assert_eq!(decode_lossy(b"a\xffb"), "a\u{fffd}b");
        assert_eq!(decode_lossy(b"a\xed\xa0"), "a\u{fffd}\u{fffd}");
    }
}
