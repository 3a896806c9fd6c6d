//! Decodes the values of endpoint slices, which a remote cluster may have made to harm.

use super::values::slice::ClusterEndpointSlice;
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use std::io::Read as _;

/// The first bytes of a zstd frame.
pub const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// The most bytes that are decompressed: a small value can become a large one. The Kubernetes API takes no larger objects.
pub const DECOMPRESSED_MAX: usize = 2 << 20;
/// The most endpoints, addresses, ports and labels of a slice, together. Each takes two bytes and more than a hundred times as
/// much memory. Kubernetes writes up to 1,000 endpoints with an address or two.
pub const ITEMS_MAX: usize = 20_000;

/// The endpoint slice in a value; `None` if the value has none, or becomes too large.
pub fn decode(value: &[u8]) -> Option<ClusterEndpointSlice> {
    decode_within(value, |_, _| Some(()))
}

/// As [`decode`], if `admits` returns something for the bytes and the items of the slice.
pub fn decode_within(value: &[u8], admits: impl FnOnce(usize, usize) -> Option<()>) -> Option<ClusterEndpointSlice> {
    if !value.starts_with(&ZSTD) {
        return None;
    }
    let mut bytes = Vec::new();
    let decoder = zstd::stream::read::Decoder::new(value).ok()?;
    decoder.take(DECOMPRESSED_MAX as u64 + 1).read_to_end(&mut bytes).ok()?;
    let items = (bytes.len() <= DECOMPRESSED_MAX).then(|| items(&bytes))??;
    admits(bytes.len(), items)?;
    ClusterEndpointSlice::decode(&*bytes).ok()
}

/// The number of parts of a slice, and of parts of these; `None` if there are too many, or if it is no message.
fn items(slice: &[u8]) -> Option<usize> {
    let mut items = 0;
    parts(slice, &mut |part| {
        items += 1;
        // A text is no message, and has no parts that count.
        let _ = parts(part, &mut |_| {
            items += 1;
            (items <= ITEMS_MAX).then_some(())
        });
        (items <= ITEMS_MAX).then_some(())
    })?;
    Some(items)
}

/// Calls `on` for each part of a message that has a length, until it returns `None`.
fn parts<'a>(mut message: &'a [u8], on: &mut dyn FnMut(&'a [u8]) -> Option<()>) -> Option<()> {
    while !message.is_empty() {
        let (tag, wire) = decode_key(&mut message).ok()?;
        if wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut message).ok()?).ok()?;
            let (part, rest) = message.split_at_checked(length)?;
            on(part)?;
            message = rest;
        } else {
            skip_field(wire, tag, &mut message, DecodeContext::default()).ok()?;
        }
    }
    Some(())
}
