//! Length-prefixed frames, cut from the front of a growing buffer.

/// What the front of a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front<'a> {
    /// The body of a whole frame; it takes `body.len() + 4` bytes of the buffer.
    Frame { body: &'a [u8] },
    /// Not all of a frame yet; it will take `bytes` in all, its prefix included.
    Incomplete { bytes: usize },
    /// A prefix that announces a negative length or one above the limit.
    BadLength(i32),
}

pub const PREFIX_BYTES: usize = 4;

/// The first frame of `buffer`, of at most `body_bytes_max` (ZooKeeper's `jute.maxbuffer`,
/// inclusive).
#[must_use]
pub fn cut(buffer: &[u8], body_bytes_max: usize) -> Front<'_> {
    let Some((prefix, rest)) = buffer.split_first_chunk::<PREFIX_BYTES>() else {
        return Front::Incomplete { bytes: PREFIX_BYTES };
    };
    let length = i32::from_be_bytes(*prefix);
    match usize::try_from(length) {
        Ok(body_bytes) if body_bytes <= body_bytes_max => match rest.get(..body_bytes) {
            Some(body) => Front::Frame { body },
            None => Front::Incomplete { bytes: PREFIX_BYTES + body_bytes },
        },
        _ => Front::BadLength(length),
    }
}

/// A frame whose length does not fit into its prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a frame of 2 GiB or more")]
pub struct TooLong;

/// The prefix of a frame whose body has so many bytes.
pub fn prefix(body_bytes: usize) -> Result<[u8; PREFIX_BYTES], TooLong> {
    i32::try_from(body_bytes).map(i32::to_be_bytes).map_err(|_| TooLong)
}

/// Writes a frame: `body` appends to `out`, then the length before it is filled in. Gives the
/// length. Where that does not fit into the prefix, `out` is as it was.
pub fn try_write(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) -> Result<usize, TooLong> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_BYTES]);
    body(out);
    let length = out.len() - start - PREFIX_BYTES;
    match prefix(length) {
        Ok(prefix) => out[start..start + PREFIX_BYTES].copy_from_slice(&prefix),
        Err(error) => {
            out.truncate(start);
            return Err(error);
        }
    }
    Ok(length)
}

/// Writes a frame of which the caller knows that it is below 2 GiB.
pub fn write(out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    try_write(out, body).expect("a frame below 2 GiB");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_cut_once_it_is_whole() {
        let mut buffer = Vec::new();
        write(&mut buffer, |out| out.extend_from_slice(b"body"));
        buffer.extend_from_slice(b"next");
        assert_eq!(cut(&buffer, 4), Front::Frame { body: b"body" });
        assert_eq!(cut(&buffer[..7], 4), Front::Incomplete { bytes: 8 });
        assert_eq!(cut(&buffer[..3], 4), Front::Incomplete { bytes: 4 });
        assert_eq!(cut(&buffer, 3), Front::BadLength(4));
        assert_eq!(cut(&(-5i32).to_be_bytes(), 3), Front::BadLength(-5));
    }

    #[test]
    fn a_length_beyond_the_prefix_is_an_error() {
        assert_eq!(prefix(i32::MAX as usize), Ok([0x7f, 0xff, 0xff, 0xff]));
        assert_eq!(prefix(i32::MAX as usize + 1), Err(TooLong));
    }
}
