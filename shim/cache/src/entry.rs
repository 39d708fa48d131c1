//! The form of an entry's file: payload ‖ description ‖ sha256 of both ‖ length of the description ‖ magic.
//!
//! The description is behind the payload so that an artefact is a plain ELF file to dlopen, and in the same file so
//! that an entry is written, replaced and removed by one rename or unlink.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slipway_protocol::Facts;

use crate::{Error, Key, MAX_ORIGIN_BYTES, cut, hex};

const MAGIC: [u8; 8] = *b"slipway\x01";
const SHA_BYTES: usize = 32;
const FOOTER_BYTES: usize = SHA_BYTES + size_of::<u32>() + MAGIC.len();
/// Bound of the description.
const MAX_META_BYTES: usize = 1024;
/// Bytes hashed or copied at a time.
const CHUNK_BYTES: usize = 128 << 10;

/// What an entry says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// What it was made of, by what and for what.
    pub key: Key,
    /// When, in seconds since 1970.
    pub created: u64,
    /// What the module was called where it was met first, for people.
    pub origin: String,
}

impl Meta {
    pub(crate) fn now(key: &Key, origin: &str) -> Self {
        let created = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        Self {
            key: key.clone(),
            created,
            origin: cut(origin, MAX_ORIGIN_BYTES).into(),
        }
    }

    /// sha256 of the module, as 64 hexadecimal digits.
    pub fn module(&self) -> String {
        hex(&self.key.module)
    }

    /// The description as bytes: this, then the facts, which entries of [`FORMAT`](crate::FORMAT) 1 lack.
    pub(crate) fn encode(&self, facts: &Facts) -> Result<Vec<u8>, Error> {
        let bytes = postcard::to_stdvec(&(self, facts)).unwrap_or_default();
        if bytes.is_empty() || bytes.len() > MAX_META_BYTES {
            let (size, limit) = (bytes.len() as u64, MAX_META_BYTES as u64);
            return Err(Error::TooLarge {
                what: "description of the artefact",
                size,
                limit,
            });
        }
        Ok(bytes)
    }
}

/// Bytes of the entry of a payload.
pub(crate) fn sealed_bytes(payload: u64, meta: &[u8]) -> u64 {
    payload + (meta.len() + FOOTER_BYTES) as u64
}

/// Writes an entry: all that `payload` gives, which must be `bytes` bytes, then the rest.
pub(crate) fn seal(
    out: &mut impl Write,
    payload: impl Read,
    bytes: u64,
    meta: &[u8],
) -> io::Result<()> {
    let mut sha = Sha256::new();
    let mut payload = payload.take(bytes);
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut left = bytes;
    while left > 0 {
        let read = payload.read(&mut chunk)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        sha.update(&chunk[..read]);
        out.write_all(&chunk[..read])?;
        left -= read as u64;
    }
    sha.update(meta);
    out.write_all(meta)?;
    out.write_all(&sha.finalize())?;
    out.write_all(&(meta.len() as u32).to_le_bytes())?;
    out.write_all(&MAGIC)
}

/// An entry whose end was read, but not yet hashed.
pub(crate) struct Sealed {
    pub meta: Meta,
    /// `None` in an entry of an older version.
    pub facts: Option<Facts>,
    /// Bytes of the payload.
    pub payload: u64,
    /// Bytes of payload and description, which the checksum is of.
    covered: u64,
    sha: [u8; SHA_BYTES],
}

/// Reads the description of an entry of `size` bytes; the error says what is wrong with it.
pub(crate) fn read(file: &File, size: u64) -> Result<Sealed, String> {
    let mut tail = [0; MAX_META_BYTES + FOOTER_BYTES];
    let length = tail.len().min(usize::try_from(size).unwrap_or(usize::MAX));
    let tail = &mut tail[..length];
    file.read_exact_at(tail, size - length as u64)
        .map_err(|e| format!("its end cannot be read: {e}"))?;
    let parse = || {
        let (rest, magic) = tail.split_last_chunk::<{ MAGIC.len() }>()?;
        let (rest, meta_bytes) = rest.split_last_chunk()?;
        let (rest, sha) = rest.split_last_chunk::<SHA_BYTES>()?;
        let meta_bytes = u32::from_le_bytes(*meta_bytes) as usize;
        let start = rest
            .len()
            .checked_sub(meta_bytes)
            .filter(|_| *magic == MAGIC)?;
        let (meta, facts) = postcard::take_from_bytes(&rest[start..]).ok()?;
        let covered = size - FOOTER_BYTES as u64;
        Some(Sealed {
            meta,
            facts: postcard::from_bytes(facts).ok(),
            payload: covered - meta_bytes as u64,
            covered,
            sha: *sha,
        })
    };
    parse().ok_or_else(|| "its description is missing or damaged".into())
}

/// Compares an entry with its checksum; the error says what is wrong with it.
pub(crate) fn verify(file: &File, sealed: &Sealed) -> Result<(), String> {
    let mut sha = Sha256::new();
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    while at < sealed.covered {
        let want = chunk
            .len()
            .min(usize::try_from(sealed.covered - at).unwrap_or(usize::MAX));
        let chunk = &mut chunk[..want];
        file.read_exact_at(chunk, at)
            .map_err(|e| format!("it cannot be read at byte {at}: {e}"))?;
        sha.update(&*chunk);
        at += want as u64;
    }
    if sha.finalize().as_slice() == sealed.sha {
        Ok(())
    } else {
        Err("its bytes do not match their checksum".into())
    }
}
