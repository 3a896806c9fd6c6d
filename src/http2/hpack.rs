//! The compression of header fields (HPACK, RFC 7541).

mod decode;
mod encode;
mod huffman;
mod table;

pub(super) use decode::{Decoder, Malformed};
pub(super) use encode::{Encoder, request};
pub(super) use table::Name;
