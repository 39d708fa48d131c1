use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest. Displays as 64 lower-case hexadecimal digits; parses those, with or without `sha256:` before them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Digest([u8; 32]);

/// A text that is not a SHA-256 digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a digest of the form sha256:<64 lower-case hexadecimal digits>")]
pub struct ParseDigestError(String);

/// A digest in the making, of bytes that arrive in pieces.
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Digest {
        Digest(Sha256::digest(bytes).into())
    }

    /// Reads to the end and returns the digest of what was read, with its length in bytes.
    pub fn read(mut reader: impl Read) -> io::Result<(Digest, u64)> {
        let mut sha = Sha256::new();
        let length = io::copy(&mut reader, &mut sha)?;
        Ok((Digest(sha.finalize().into()), length))
    }

    /// Reads a digest as OCI documents have it: with its algorithm, which must be `sha256:`.
    pub fn from_oci(text: &str) -> Result<Digest, ParseDigestError> {
        if text.starts_with("sha256:") {
            text.parse()
        } else {
            Err(ParseDigestError::new(text))
        }
    }

    /// The digest's 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Hasher {
    /// Adds the next bytes.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// The digest of all of them.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

impl ParseDigestError {
    /// Keeps as much of the text as a message has room for.
    fn new(text: &str) -> ParseDigestError {
        ParseDigestError(text.chars().take(80).collect())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{self}")
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
        let mut digest = [0; 32];
        let well_formed = hex.len() == 64
            && digest
                .iter_mut()
                .zip(hex.chunks_exact(2))
                .all(|(byte, pair)| {
                    nibble(pair[0])
                        .zip(nibble(pair[1]))
                        .map(|(high, low)| *byte = high << 4 | low)
                        .is_some()
                });
        if well_formed {
            Ok(Digest(digest))
        } else {
            Err(ParseDigestError::new(text))
        }
    }
}

/// The value of a lower-case hexadecimal digit: OCI digests allow no upper case, so that one digest has one spelling.
fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

impl From<[u8; 32]> for Digest {
    fn from(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

impl TryFrom<String> for Digest {
    type Error = ParseDigestError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn digest_of_bytes_and_of_a_stream_agree_with_the_standard() {
        assert_eq!(Digest::of(b"abc").to_string(), ABC);
        let (digest, length) = Digest::read(&b"abc"[..]).unwrap();
        assert_eq!((digest.to_string().as_str(), length), (ABC, 3));
        let mut hasher = Hasher::default();
        for piece in ["a", "", "bc"] {
            hasher.update(piece.as_bytes());
        }
        assert_eq!(hasher.finish(), digest);
    }

    #[test]
    fn digest_text_round_trips_and_other_text_is_refused() {
        assert_eq!(ABC.parse(), Ok(Digest::of(b"abc")));
        assert_eq!(format!("sha256:{ABC}").parse(), Ok(Digest::of(b"abc")));
        let json = serde_json::to_string(&Digest::of(b"abc")).unwrap();
        assert_eq!(
            serde_json::from_str::<Digest>(&json).unwrap(),
            Digest::of(b"abc")
        );
        for bad in [
            "",
            "sha256:",
            "sha512:00",
            &ABC[1..],
            &ABC.to_uppercase(),
            &"é".repeat(32),
            &format!("{ABC}0"),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
            assert!(Digest::from_oci(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_digest_in_an_oci_document_has_its_algorithm() {
        assert_eq!(
            Digest::from_oci(&format!("sha256:{ABC}")),
            Ok(Digest::of(b"abc"))
        );
        let problem = Digest::from_oci(ABC).unwrap_err().to_string();
        assert!(problem.contains(ABC), "{problem}");
    }
}
