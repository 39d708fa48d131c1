use std::cell::Cell;
use std::io::{self, Read, Seek, SeekFrom};
use std::rc::Rc;

/// What a reader may still deliver, in bytes, shared between the reader and the loop that sets it.
///
/// The tar crate reads long names and extended headers into memory whatever their size: the loop allows little while
/// it asks for the next file, and more while it reads the file.
#[derive(Clone)]
pub(crate) struct Allowance(Rc<Cell<u64>>);

impl Allowance {
    pub fn new() -> Allowance {
        Allowance(Rc::new(Cell::new(0)))
    }

    pub fn get(&self) -> u64 {
        self.0.get()
    }

    pub fn set(&self, bytes: u64) {
        self.0.set(bytes);
    }
}

/// A reader that fails once its allowance is used up.
pub(crate) struct Metered<R> {
    pub inner: R,
    pub allowance: Allowance,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let allowed = self.allowance.get();
        if allowed == 0 && !buf.is_empty() {
            return Err(io::Error::other("more data than allowed"));
        }
        let wanted = buf
            .len()
            .min(usize::try_from(allowed).unwrap_or(usize::MAX));
        let count = self.inner.read(&mut buf[..wanted])?;
        self.allowance.set(allowed - count as u64);
        Ok(count)
    }
}

impl<R: Seek> Seek for Metered<R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}
