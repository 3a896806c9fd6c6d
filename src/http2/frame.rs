//! Frames (RFC 9113, sections 4 and 6): reading their heads, and writing frames.

use super::error::{Code, Violation};

pub(super) const HEAD: usize = 9;
/// The longest payload that a client may send: the initial value of SETTINGS_MAX_FRAME_SIZE, which is not raised.
pub(super) const PAYLOAD_MAX: usize = 16 << 10;
/// The preface of a client, in front of its first frame.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(super) mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

pub(super) mod flag {
    pub const ACK: u8 = 0x1;
    pub const END_STREAM: u8 = 0x1;
    pub const END_HEADERS: u8 = 0x4;
    pub const PADDED: u8 = 0x8;
    pub const PRIORITY: u8 = 0x20;
}

/// Parameters of SETTINGS frames.
pub(super) mod setting {
    pub const HEADER_TABLE_SIZE: u16 = 0x1;
    pub const ENABLE_PUSH: u16 = 0x2;
    pub const MAX_CONCURRENT_STREAMS: u16 = 0x3;
    pub const INITIAL_WINDOW_SIZE: u16 = 0x4;
    pub const MAX_FRAME_SIZE: u16 = 0x5;
    pub const MAX_HEADER_LIST_SIZE: u16 = 0x6;
}

/// The head of a frame, without its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
}

impl Head {
    pub fn has(self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

/// What the beginning of a buffer is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Split<'a> {
    Frame {
        head: Head,
        payload: &'a [u8],
    },
    /// The frame will have so many bytes, as far as is known.
    Incomplete(usize),
}

/// Splits the first frame off a buffer.
pub(super) fn split(buffer: &[u8]) -> Result<Split<'_>, Violation> {
    let Some((head, rest)) = buffer.split_first_chunk::<HEAD>() else {
        return Ok(Split::Incomplete(HEAD));
    };
    let &[a, b, c, kind, flags, s, t, u, v] = head;
    let length = u32::from_be_bytes([0, a, b, c]) as usize;
    if length > PAYLOAD_MAX {
        return Err(Violation::frame_size("a frame is too long"));
    }
    let head = Head {
        kind,
        flags,
        // The first bit is reserved.
        stream: u32::from_be_bytes([s & 0x7f, t, u, v]),
    };
    Ok(match rest.get(..length) {
        Some(payload) => Split::Frame { head, payload },
        None => Split::Incomplete(HEAD + length),
    })
}

/// Returns the payload of a frame without its padding.
pub(super) fn unpadded(head: Head, payload: &[u8]) -> Result<&[u8], Violation> {
    if !head.has(flag::PADDED) {
        return Ok(payload);
    }
    let Some((&pad, rest)) = payload.split_first() else {
        return Err(Violation::frame_size("a padded frame has no length of its padding"));
    };
    let length = rest.len().checked_sub(usize::from(pad));
    let length = length.ok_or(Violation::protocol("the padding is longer than the frame"))?;
    Ok(&rest[..length])
}

/// Appends the head of a frame.
pub(super) fn head(out: &mut Vec<u8>, length: usize, kind: u8, flags: u8, stream: u32) {
    let [_, a, b, c] = (length as u32).to_be_bytes();
    let [s, t, u, v] = stream.to_be_bytes();
    out.extend_from_slice(&[a, b, c, kind, flags, s, t, u, v]);
}

pub(super) fn reset(out: &mut Vec<u8>, stream: u32, code: Code) {
    head(out, 4, kind::RST_STREAM, 0, stream);
    out.extend_from_slice(&(code as u32).to_be_bytes());
}

pub(super) fn window_update(out: &mut Vec<u8>, stream: u32, increment: u32) {
    head(out, 4, kind::WINDOW_UPDATE, 0, stream);
    out.extend_from_slice(&increment.to_be_bytes());
}

pub(super) fn settings(out: &mut Vec<u8>, parameters: &[(u16, u32)]) {
    head(out, 6 * parameters.len(), kind::SETTINGS, 0, 0);
    for (parameter, value) in parameters {
        out.extend_from_slice(&parameter.to_be_bytes());
        out.extend_from_slice(&value.to_be_bytes());
    }
}

pub(super) fn ping(out: &mut Vec<u8>, flags: u8, data: [u8; 8]) {
    head(out, data.len(), kind::PING, flags, 0);
    out.extend_from_slice(&data);
}

pub(super) fn go_away(out: &mut Vec<u8>, last: u32, code: Code, reason: &str) {
    head(out, 8 + reason.len(), kind::GOAWAY, 0, 0);
    out.extend_from_slice(&last.to_be_bytes());
    out.extend_from_slice(&(code as u32).to_be_bytes());
    out.extend_from_slice(reason.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_split_when_they_are_complete() {
        let mut bytes = Vec::new();
        ping(&mut bytes, flag::ACK, *b"12345678");
        window_update(&mut bytes, 3, 7);
        assert_eq!(split(&bytes[..8]), Ok(Split::Incomplete(9)));
        assert_eq!(split(&bytes[..16]), Ok(Split::Incomplete(17)));
        let head = Head {
            kind: kind::PING,
            flags: flag::ACK,
            stream: 0,
        };
        let payload: &[u8] = b"12345678";
        assert_eq!(split(&bytes), Ok(Split::Frame { head, payload }));
        let Ok(Split::Frame { head, payload }) = split(&bytes[17..]) else {
            panic!("no frame");
        };
        assert_eq!((head.stream, payload), (3, &[0, 0, 0, 7][..]));
    }

    #[test]
    fn a_frame_over_the_limit_is_a_frame_size_error() {
        let code = |bytes: &[u8]| split(bytes).map(drop).map_err(|violation| violation.code);
        assert_eq!(code(&[0, 0x40, 1, 0, 0, 0, 0, 0, 1]), Err(Code::FrameSizeError));
        assert_eq!(code(&[0, 0x40, 0, 0, 0, 0, 0, 0, 1]), Ok(()));
    }

    #[test]
    fn padding_is_taken_off_and_must_fit() {
        let head = |flags| Head {
            kind: kind::DATA,
            flags,
            stream: 1,
        };
        assert_eq!(unpadded(head(0), b"\x02abcd"), Ok(&b"\x02abcd"[..]));
        assert_eq!(unpadded(head(flag::PADDED), b"\x02abcd"), Ok(&b"ab"[..]));
        assert_eq!(unpadded(head(flag::PADDED), b"\x04abcd"), Ok(&b""[..]));
        let code = |bytes| unpadded(head(flag::PADDED), bytes).map_err(|violation| violation.code);
        assert_eq!(code(b"\x05abcd"), Err(Code::ProtocolError));
        assert_eq!(code(b""), Err(Code::FrameSizeError));
    }
}
