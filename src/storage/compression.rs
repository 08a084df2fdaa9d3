//! gzip and snappy around a snapshot. What is compressed is the whole of it, so its checksums are
//! over what comes out here.
//!
//! ```text
//! snappy = 82 "SNAPPY" 00, int version 1, int compatible version 1, block*
//! block  = int length, byte raw[length]        raw snappy of at most 32 KiB, as written by default
//! ```
//!
//! That is the stream of snappy-java (`SnappyOutputStream`), not the official framing.

use std::io::{self, Read, Write};

use flate2::read::GzDecoder;
use flate2::write::GzEncoder;

use super::Compression;

/// What the name of a snapshot promises, undone.
pub enum Decoder<R> {
    Plain(R),
    Gzip(GzDecoder<R>),
    Snappy(SnappyReader<R>),
}

impl<R: Read> Decoder<R> {
    pub fn new(source: R, compression: Compression) -> Decoder<R> {
        match compression {
            Compression::None => Decoder::Plain(source),
            Compression::Gzip => Decoder::Gzip(GzDecoder::new(source)),
            Compression::Snappy => Decoder::Snappy(SnappyReader::new(source)),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        match self {
            Decoder::Plain(source) => source.read(target),
            Decoder::Gzip(source) => source.read(target),
            Decoder::Snappy(source) => source.read(target),
        }
    }
}

/// What the name of a snapshot will promise. `finish` writes what is still inside.
pub enum Encoder<W: Write> {
    Plain(W),
    Gzip(GzEncoder<W>),
    Snappy(Box<SnappyWriter<W>>),
}

impl<W: Write> Encoder<W> {
    pub fn new(out: W, compression: Compression) -> Encoder<W> {
        match compression {
            Compression::None => Encoder::Plain(out),
            Compression::Gzip => Encoder::Gzip(GzEncoder::new(out, flate2::Compression::default())),
            Compression::Snappy => Encoder::Snappy(Box::new(SnappyWriter::new(out))),
        }
    }

    pub fn finish(self) -> io::Result<W> {
        match self {
            Encoder::Plain(out) => Ok(out),
            Encoder::Gzip(encoder) => encoder.finish(),
            Encoder::Snappy(writer) => writer.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Encoder::Plain(out) => out.write(bytes),
            Encoder::Gzip(encoder) => encoder.write(bytes),
            Encoder::Snappy(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Encoder::Plain(out) => out.flush(),
            Encoder::Gzip(encoder) => encoder.flush(),
            Encoder::Snappy(writer) => writer.flush(),
        }
    }
}

/// The first 16 bytes: magic, version, the oldest version that can read it.
const SNAPPY_HEADER: [u8; 16] = *b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";
/// What snappy-java puts into a block unless told otherwise.
const BLOCK_BYTES: usize = 32 << 10;
/// The longest block we take: others may write with another size of block.
const BLOCK_BYTES_MAX: usize = 1 << 20;

/// Writes snappy-java's stream.
pub struct SnappyWriter<W> {
    out: W,
    encoder: snap::raw::Encoder,
    /// Not yet compressed; never longer than a block.
    block: Vec<u8>,
    compressed: Vec<u8>,
    has_header: bool,
}

impl<W: Write> SnappyWriter<W> {
    pub fn new(out: W) -> SnappyWriter<W> {
        SnappyWriter {
            out,
            encoder: snap::raw::Encoder::new(),
            block: Vec::with_capacity(BLOCK_BYTES),
            compressed: vec![0; 4 + snap::raw::max_compress_len(BLOCK_BYTES)],
            has_header: false,
        }
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.flush_block()?;
        Ok(self.out)
    }

    fn flush_block(&mut self) -> io::Result<()> {
        if !self.has_header {
            self.out.write_all(&SNAPPY_HEADER)?;
            self.has_header = true;
        }
        if self.block.is_empty() {
            return Ok(());
        }
        let (length, raw) = self.compressed.split_at_mut(4);
        let bytes = self.encoder.compress(&self.block, raw)?;
        length.copy_from_slice(&i32::try_from(bytes).expect("a block is small").to_be_bytes());
        self.out.write_all(&self.compressed[..4 + bytes])?;
        self.block.clear();
        Ok(())
    }
}

impl<W: Write> Write for SnappyWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() == BLOCK_BYTES {
            self.flush_block()?;
        }
        let taken = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_block()?;
        self.out.flush()
    }
}

/// Reads snappy-java's stream, several in a row as well.
pub struct SnappyReader<R> {
    source: R,
    decoder: snap::raw::Decoder,
    compressed: Vec<u8>,
    block: Vec<u8>,
    /// How much of the block has been handed out.
    taken: usize,
    has_header: bool,
}

impl<R: Read> SnappyReader<R> {
    pub fn new(source: R) -> SnappyReader<R> {
        SnappyReader {
            source,
            decoder: snap::raw::Decoder::new(),
            compressed: Vec::new(),
            block: Vec::new(),
            taken: 0,
            has_header: false,
        }
    }

    /// Reads exactly `bytes` bytes into `compressed`, which grows only as they arrive.
    fn fill(&mut self, bytes: usize) -> io::Result<()> {
        self.compressed.clear();
        let read = (&mut self.source).take(bytes as u64).read_to_end(&mut self.compressed)?;
        if read == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Brings in the next block; false at the end of the stream.
    fn next_block(&mut self) -> io::Result<bool> {
        if !self.has_header {
            self.fill(SNAPPY_HEADER.len())?;
            // The versions say how to write, and there has been only one.
            if self.compressed[..8] != SNAPPY_HEADER[..8] {
                return Err(invalid("not a snappy-java stream"));
            }
            self.has_header = true;
        }
        match self.fill(4) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return if self.compressed.is_empty() { Ok(false) } else { Err(error) };
            }
            filled => filled?,
        }
        if self.compressed == SNAPPY_HEADER[..4] {
            // Another stream begins: its header counts as an empty block.
            self.fill(SNAPPY_HEADER.len() - 4)?;
            self.block.clear();
            self.taken = 0;
            return Ok(true);
        }
        let length = self.compressed.first_chunk().map(|length| i32::from_be_bytes(*length));
        match length.map(usize::try_from) {
            Some(Ok(length)) if length <= snap::raw::max_compress_len(BLOCK_BYTES_MAX) => {
                self.fill(length)?;
            }
            _ => return Err(invalid("a snappy block of an impossible length")),
        }
        let bytes = snap::raw::decompress_len(&self.compressed)?;
        if BLOCK_BYTES_MAX < bytes {
            return Err(invalid("a snappy block of more than a mebibyte"));
        }
        self.block.resize(bytes, 0);
        self.decoder.decompress(&self.compressed, &mut self.block)?;
        self.taken = 0;
        Ok(true)
    }
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

impl<R: Read> Read for SnappyReader<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.block.len() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let bytes = target.len().min(self.block.len() - self.taken);
        target[..bytes].copy_from_slice(&self.block[self.taken..self.taken + bytes]);
        self.taken += bytes;
        Ok(bytes)
    }
}
