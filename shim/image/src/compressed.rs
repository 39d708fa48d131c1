//! What builders compress: layers of files, by their media type, and modules, which have no media type that says so.

use std::io::{self, BufRead, BufReader, Read, Write};

use flate2::read::MultiGzDecoder;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use slipway_module::{Compression, MAX_MODULE_BYTES};

use crate::ImageError;

/// A reader of what `compressed` unpacks to.
pub(crate) fn decoder<'r>(how: Compression, compressed: impl Read + 'r) -> Box<dyn Read + 'r> {
    match how {
        Compression::Gzip => Box::new(MultiGzDecoder::new(compressed)),
        Compression::Zstd => Box::new(Zstd::new(BufReader::new(compressed))),
    }
}

/// A module's layer on its way to `out`: written through as it arrives, or where it is compressed held until its end, and
/// unpacked by [`ModuleWriter::finish`].
#[derive(Debug)]
pub struct ModuleWriter<W> {
    out: W,
    held: Vec<u8>,
    plain: bool,
}

impl<W: Write> ModuleWriter<W> {
    /// Writes to `out`.
    pub fn new(out: W) -> ModuleWriter<W> {
        ModuleWriter {
            out,
            held: Vec::new(),
            plain: false,
        }
    }

    /// After the last byte of the layer.
    ///
    /// # Errors
    /// [`ImageError::Compressed`], [`ImageError::Io`]; what `out` has is of no use then.
    pub fn finish(mut self) -> Result<(), ImageError> {
        let written = ImageError::io("writing the module");
        let Some(how) = Compression::sniff(&self.held) else {
            return self.out.write_all(&self.held).map_err(written);
        };
        let damaged = |reason: String| ImageError::Compressed { how, reason };
        let mut reader = decoder(how, self.held.as_slice());
        let mut buffer = [0; 64 << 10];
        let mut unpacked = 0;
        loop {
            let count = reader
                .read(&mut buffer)
                .map_err(|e| damaged(e.to_string()))?;
            if count == 0 {
                return Ok(());
            }
            unpacked += count as u64;
            if unpacked > MAX_MODULE_BYTES {
                return Err(damaged(format!(
                    "it has more than the {MAX_MODULE_BYTES} bytes allowed for a module"
                )));
            }
            if let Err(e) = self.out.write_all(&buffer[..count]) {
                return Err(written(e));
            }
        }
    }
}

impl<W: Write> Write for ModuleWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.plain {
            return self.out.write(bytes);
        }
        self.held.extend_from_slice(bytes);
        let known = self.held.len() >= Compression::SNIFF_BYTES;
        if known && Compression::sniff(&self.held).is_none() {
            self.plain = true;
            self.out.write_all(&std::mem::take(&mut self.held))?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Zstandard's frames, one after the other. Its window is memory: larger ones than a module's bound are refused.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    fn new(source: R) -> Zstd<R> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_MODULE_BYTES);
        Zstd {
            source,
            decoder,
            in_frame: false,
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.decoder.read(buf)?;
            if count > 0 || buf.is_empty() {
                return Ok(count);
            }
            if self.in_frame && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder
                    .decode_blocks(&mut self.source, one)
                    .map_err(io::Error::other)?;
                continue;
            }
            if self.source.fill_buf()?.is_empty() {
                return Ok(0);
            }
            self.in_frame = match self.decoder.init(&mut self.source) {
                Ok(()) => true,
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let mut skipped = self.source.by_ref().take(length.into());
                    io::copy(&mut skipped, &mut io::sink())?;
                    false
                }
                Err(e) => return Err(io::Error::other(e)),
            };
        }
    }
}
