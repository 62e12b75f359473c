//! Draws that can be repeated: the same key draws the same number for the same seed, on every gateway.

use sha2::{Digest, Sha256};

/// The seed of what has this name; `ordinal` tells those of one name apart.
#[must_use]
pub fn seed(name: &str, ordinal: u32) -> u64 {
    let digest = Sha256::new().chain_update(name).chain_update([0]).chain_update(ordinal.to_be_bytes());
    let digest: [u8; 32] = digest.finalize().into();
    let (seed, _) = digest.split_first_chunk().expect("32 bytes hold 8");
    u64::from_be_bytes(*seed)
}

/// FNV-1a, which is the same everywhere and quick for short keys; [`mix`] does the rest.
#[must_use]
pub fn hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The finaliser of SplitMix64: every bit of the result depends on every bit given.
#[must_use]
pub const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Strictly between 0 and 1.
#[must_use]
pub fn fraction(bits: u64) -> f64 {
    const STEP: f64 = 1.0 / (1_u64 << 52) as f64;
    #[expect(clippy::cast_precision_loss, reason = "52 bits fit")]
    let whole = (bits >> 12) as f64;
    (whole + 0.5) * STEP
}
