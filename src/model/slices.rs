//! Decodes the values of endpoint slices, which a remote cluster may have made to harm.

use super::values::slice::ClusterEndpointSlice;
use prost::Message as _;
use std::io::Read as _;

/// The first bytes of a zstd frame.
pub const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The most bytes that are decompressed: a small value can become a large one.
pub const DECOMPRESSED_MAX: u64 = 8 << 20;

/// The endpoint slice in a value; `None` if the value has none, or becomes too large.
pub fn decode(value: &[u8]) -> Option<ClusterEndpointSlice> {
    if !value.starts_with(&ZSTD) {
        return None;
    }
    let mut bytes = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(value).ok()?;
    decoder.take(DECOMPRESSED_MAX + 1).read_to_end(&mut bytes).ok()?;
    let fits = bytes.len() as u64 <= DECOMPRESSED_MAX;
    fits.then(|| ClusterEndpointSlice::decode(&*bytes).ok()).flatten()
}
