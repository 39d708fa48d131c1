use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{FORMAT, hex};

/// How thoroughly an artefact was optimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Tier {
    /// Not at all (O0): compiled in seconds, runs slower.
    Quick,
    /// Fully (O2): can take minutes.
    Full,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Quick => "quick",
            Self::Full => "full",
        })
    }
}

/// All that decides what the compiler makes of a module: same key, same artefact.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Key {
    /// sha256 of the module file's bytes.
    pub module: [u8; 32],
    /// Name and version of the engine, such as `wasmedge-0.17.1`.
    pub engine: String,
    /// The CPU's features, as [`cpu_features`] spells them: code for one CPU may be illegal on another.
    pub cpu: String,
    /// The optimisation.
    pub tier: Tier,
}

impl Key {
    /// The key of a module on this host. The first call in a process asks the CPU for its features (30 µs in a VM).
    pub fn new(module: [u8; 32], engine: &str, tier: Tier) -> Self {
        Self {
            module,
            engine: engine.into(),
            cpu: cpu_features(),
            tier,
        }
    }

    /// The entry's name: 64 hexadecimal digits, the same in every process and version that shares [`FORMAT`].
    pub fn file_name(&self) -> String {
        let mut sha = Sha256::new();
        sha.update(FORMAT.to_le_bytes());
        sha.update(self.module);
        sha.update([self.tier as u8]);
        for text in [&self.engine, &self.cpu] {
            // The length first, so that no two pairs of texts run together into the same bytes.
            sha.update((text.len() as u64).to_le_bytes());
            sha.update(text);
        }
        hex(&sha.finalize())
    }
}

/// A bit set of the named features that this CPU has and its kernel lets programs use.
macro_rules! detect {
    ($detected:ident: $($feature:tt)*) => {
        [$(std::arch::$detected!($feature)),*]
            .into_iter()
            .fold(0u128, |bits, has| bits << 1 | u128::from(has))
    };
}

/// Those features of this host's CPU that LLVM makes use of when it compiles for "the host", as
/// `<architecture>-<bit set in hexadecimal>`. A change of the lists is a change of [`FORMAT`].
pub fn cpu_features() -> String {
    #[cfg(target_arch = "x86_64")]
    let bits = detect!(is_x86_feature_detected:
        "sse3" "ssse3" "sse4.1" "sse4.2" "sse4a" "aes" "pclmulqdq" "sha" "popcnt" "lzcnt" "bmi1" "bmi2" "tbm" "adx"
        "movbe" "rdrand" "rdseed" "cmpxchg16b" "fxsr" "xsave" "xsaveopt" "xsavec" "xsaves" "rtm"
        "avx" "avx2" "fma" "f16c" "gfni" "vaes" "vpclmulqdq"
        "avxvnni" "avxifma" "avxneconvert" "avxvnniint8" "avxvnniint16" "sha512" "sm3" "sm4" "kl" "widekl"
        "avx512f" "avx512cd" "avx512bw" "avx512dq" "avx512vl" "avx512ifma" "avx512vbmi" "avx512vbmi2" "avx512vnni"
        "avx512bitalg" "avx512vpopcntdq" "avx512bf16" "avx512fp16" "avx512vp2intersect"
    );
    #[cfg(target_arch = "aarch64")]
    let bits = detect!(is_aarch64_feature_detected:
        "neon" "aes" "sha2" "sha3" "sm4" "crc" "lse" "lse2" "rdm" "rcpc" "rcpc2" "fp16" "fhm" "dotprod" "fcma"
        "jsconv" "frintts" "flagm" "dit" "sb" "ssbs" "bti" "paca" "pacg" "dpb" "dpb2" "bf16" "i8mm" "f32mm" "f64mm"
        "sve" "sve2" "sve2-aes" "sve2-bitperm" "sve2-sha3" "sve2-sm4" "mte" "rand"
    );
    format!("{}-{bits:x}", std::env::consts::ARCH)
}
