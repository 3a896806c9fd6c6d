//! Finds header blocks in the frames of a client (RFC 9113): a state machine without IO.

use super::block::{Look, look};
use bytes::BytesMut;

/// The first bytes of an HTTP/2 connection.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of the head of a frame, in bytes.
const HEAD: usize = 9;
/// Largest payload that the server permits, in bytes: HTTP/2's default.
const PAYLOAD_MAX: usize = 16 << 10;
/// Limit for the frames of a header block that are held back, in bytes. Longer blocks pass unaltered.
const BLOCK_MAX: usize = 256 << 10;
/// Capacity that a connection keeps between two blocks, in bytes.
const KEPT: usize = 4 << 10;

const HEADERS: u8 = 0x1;
const PUSH_PROMISE: u8 = 0x5;
const CONTINUATION: u8 = 0x9;

const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// Replaces invalid authorities in the bytes of a connection, if the first header block has an invalid authority.
///
/// A header block is held back until the block is complete; all other bytes pass at once. Malformed bytes and all bytes
/// that follow pass unaltered, so that the HTTP library reports the error, with a dynamic table that still equals the
/// client's.
#[derive(Default)]
pub(super) struct Frames {
    at: At,
    /// An incomplete head, or the frames of an incomplete header block.
    held: Vec<u8>,
    block: Option<Block>,
    /// Whether the first block had an invalid authority.
    mends: bool,
}

/// The position of the next byte.
enum At {
    /// In the preface, at this offset.
    Preface(usize),
    /// In the head of the frame that starts at this offset of `held`.
    Head(usize),
    /// In a payload that passes and has this many bytes left.
    Passing(usize),
    /// In a payload of a header block.
    Held(Frame),
    /// Behind the last byte that the filter reads.
    End,
}

/// A frame of a header block whose payload is being held.
#[derive(Clone, Copy)]
struct Frame {
    kind: u8,
    flags: u8,
    /// Start and end of the payload in `held`.
    payload: usize,
    end: usize,
}

/// A header block that has begun.
struct Block {
    /// Flags of the HEADERS frame without `PADDED` and `END_HEADERS`.
    flags: u8,
    stream: [u8; 4],
    /// Dependency and weight of the HEADERS frame, if any.
    priority: Vec<u8>,
    fragments: Vec<u8>,
}

/// The rest of the connection passes unaltered.
struct GaveUp;

impl Default for At {
    fn default() -> Self {
        Self::Preface(0)
    }
}

impl Frames {
    /// Whether all following bytes pass unaltered.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.at, At::End)
    }

    /// Takes bytes of the client and appends the bytes that may pass.
    pub(super) fn push(&mut self, mut bytes: &[u8], passed: &mut BytesMut) {
        while !bytes.is_empty() {
            let taken = self.step(bytes, passed);
            bytes = &bytes[taken..];
        }
    }

    /// Passes the held bytes and stops filtering.
    pub(super) fn end(&mut self, passed: &mut BytesMut) {
        passed.extend_from_slice(&self.held);
        *self = Self {
            at: At::End,
            ..Self::default()
        };
    }

    fn end_on_error(&mut self, done: Result<(), GaveUp>, passed: &mut BytesMut) {
        if let Err(GaveUp) = done {
            self.end(passed);
        }
    }

    /// Takes some of the bytes and returns their number.
    fn step(&mut self, bytes: &[u8], passed: &mut BytesMut) -> usize {
        match self.at {
            At::Preface(before) => {
                let rest = &PREFACE[before..];
                let taken = rest.len().min(bytes.len());
                if bytes[..taken] != rest[..taken] {
                    self.end(passed);
                    return 0;
                }
                passed.extend_from_slice(&bytes[..taken]);
                self.at = match taken == rest.len() {
                    true => At::Head(0),
                    false => At::Preface(before + taken),
                };
                taken
            }
            At::Head(from) => {
                let taken = self.hold(bytes, from + HEAD);
                if self.held.len() == from + HEAD {
                    let done = self.head(from, passed);
                    self.end_on_error(done, passed);
                }
                taken
            }
            At::Passing(left) => {
                let taken = left.min(bytes.len());
                passed.extend_from_slice(&bytes[..taken]);
                self.at = match left - taken {
                    0 => At::Head(0),
                    left => At::Passing(left),
                };
                taken
            }
            At::Held(frame) => {
                let taken = self.hold(bytes, frame.end);
                if self.held.len() == frame.end {
                    let done = self.payload(frame, passed);
                    self.end_on_error(done, passed);
                }
                taken
            }
            At::End => {
                passed.extend_from_slice(bytes);
                bytes.len()
            }
        }
    }

    /// Holds bytes back until `held` has the length `until`. Returns the number of bytes taken.
    fn hold(&mut self, bytes: &[u8], until: usize) -> usize {
        let taken = (until - self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..taken]);
        taken
    }

    /// Reads the head of a frame.
    fn head(&mut self, from: usize, passed: &mut BytesMut) -> Result<(), GaveUp> {
        let &[a, b, c, kind, flags, s0, s1, s2, s3] = &self.held[from..] else {
            return Err(GaveUp);
        };
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        let stream = [s0, s1, s2, s3];
        let payload = from + HEAD;
        if length > PAYLOAD_MAX || payload + length > BLOCK_MAX {
            return Err(GaveUp);
        }
        match (&self.block, kind) {
            (None, HEADERS) => {
                self.block = Some(Block {
                    flags: flags & !(PADDED | END_HEADERS),
                    stream,
                    priority: Vec::new(),
                    fragments: Vec::new(),
                });
            }
            (Some(block), CONTINUATION) if block.stream == stream => {}
            (Some(_), _) | (None, CONTINUATION | PUSH_PROMISE) => return Err(GaveUp),
            (None, _) => {
                passed.extend_from_slice(&self.held);
                self.held.clear();
                self.at = match length {
                    0 => At::Head(0),
                    length => At::Passing(length),
                };
                return Ok(());
            }
        }
        let frame = Frame {
            kind,
            flags,
            payload,
            end: payload + length,
        };
        self.at = At::Held(frame);
        match length {
            0 => self.payload(frame, passed),
            _ => Ok(()),
        }
    }

    /// Reads the payload of a frame of a header block.
    fn payload(&mut self, frame: Frame, passed: &mut BytesMut) -> Result<(), GaveUp> {
        let block = self.block.as_mut().ok_or(GaveUp)?;
        let mut payload = &self.held[frame.payload..frame.end];
        if frame.kind == HEADERS {
            if frame.flags & PADDED != 0 {
                let (&padding, rest) = payload.split_first().ok_or(GaveUp)?;
                let end = rest.len().checked_sub(usize::from(padding)).ok_or(GaveUp)?;
                payload = &rest[..end];
            }
            if frame.flags & PRIORITY != 0 {
                let (priority, rest) = payload.split_at_checked(5).ok_or(GaveUp)?;
                block.priority = priority.to_vec();
                payload = rest;
            }
        }
        block.fragments.extend_from_slice(payload);
        if frame.flags & END_HEADERS == 0 {
            self.at = At::Head(self.held.len());
            return Ok(());
        }
        match look(&block.fragments) {
            Look::Fine if self.mends => passed.extend_from_slice(&self.held),
            Look::Fine | Look::Malformed => return Err(GaveUp),
            Look::Replaced(fragments) => {
                self.mends = true;
                block.write(&fragments, passed);
            }
        }
        self.held.clear();
        self.held.shrink_to(KEPT);
        self.block = None;
        self.at = At::Head(0);
        Ok(())
    }
}

impl Block {
    /// Appends the frames of the block with new fragments and without padding.
    fn write(&self, fragments: &[u8], passed: &mut BytesMut) {
        let content = [&self.priority, fragments].concat();
        let mut chunks = content.chunks(PAYLOAD_MAX).peekable();
        let (mut kind, mut flags) = (HEADERS, self.flags);
        while let Some(chunk) = chunks.next() {
            if chunks.peek().is_none() {
                flags |= END_HEADERS;
            }
            let [_, _, _, _, _, a, b, c] = (chunk.len() as u64).to_be_bytes();
            passed.extend_from_slice(&[a, b, c, kind, flags]);
            passed.extend_from_slice(&self.stream);
            passed.extend_from_slice(chunk);
            (kind, flags) = (CONTINUATION, 0);
        }
    }
}

#[cfg(test)]
pub(in crate::server::authority) mod tests {
    use super::super::huffman::tests::encode;
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const END_STREAM: u8 = 0x1;
    const DATA: u8 = 0x0;
    const SETTINGS: u8 = 0x4;

    const INVALID: &[u8] = b"/run/etcd.sock";
    /// What replaces [`INVALID`].
    const MENDED: &[u8] = b"localhost.loca";
    const VALID: &[u8] = b"127.0.0.1:2379";

    pub(in crate::server::authority) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// How a header block is spread over frames.
    #[derive(Clone, Debug)]
    struct Spread {
        padding: Option<u8>,
        priority: bool,
        /// Bytes of the block in each frame but the last.
        sizes: Vec<usize>,
    }

    /// The frames of a block with an authority of 14 bytes.
    fn headers(stream: u32, authority: &[u8], rest: &[u8], spread: &Spread) -> Vec<u8> {
        let block = [&[0x83, 0x41, 14], authority, rest].concat();
        let mut rest = block.as_slice();
        let mut parts = Vec::new();
        for &size in &spread.sizes {
            let (part, left) = rest.split_at(size.min(rest.len()));
            parts.push(part);
            rest = left;
        }
        parts.push(rest);
        let last = parts.len() - 1;
        let mut frames = Vec::new();
        for (n, part) in parts.into_iter().enumerate() {
            let end = if n == last { END_HEADERS } else { 0 };
            if n > 0 {
                frames.extend(frame(CONTINUATION, end, stream, part));
                continue;
            }
            let (mut flags, mut payload) = (END_STREAM | end, Vec::new());
            if let Some(padding) = spread.padding {
                flags |= PADDED;
                payload.push(padding);
            }
            if spread.priority {
                flags |= PRIORITY;
                payload.extend([0, 0, 0, 7, 9]);
            }
            payload.extend(part);
            payload.extend(vec![0; usize::from(spread.padding.unwrap_or_default())]);
            frames.extend(frame(HEADERS, flags, stream, &payload));
        }
        frames
    }

    /// The plain frame of a block: one frame without padding.
    fn plain(stream: u32, authority: &[u8], rest: &[u8], priority: bool) -> Vec<u8> {
        let spread = Spread {
            padding: None,
            priority,
            sizes: Vec::new(),
        };
        headers(stream, authority, rest, &spread)
    }

    /// The bytes that pass, if the bytes come in pieces of these sizes.
    fn filtered(bytes: &[u8], mut sizes: impl Iterator<Item = usize>) -> Vec<u8> {
        let (mut frames, mut passed) = (Frames::default(), BytesMut::new());
        let mut rest = bytes;
        while !rest.is_empty() {
            let size = sizes.next().unwrap_or(rest.len()).clamp(1, rest.len());
            frames.push(&rest[..size], &mut passed);
            rest = &rest[size..];
        }
        frames.end(&mut passed);
        passed.to_vec()
    }

    fn at_once(bytes: &[u8]) -> Vec<u8> {
        filtered(bytes, std::iter::empty())
    }

    fn connection(frames: &[Vec<u8>]) -> Vec<u8> {
        [PREFACE, &frames.concat()].concat()
    }

    fn settings() -> Vec<u8> {
        frame(SETTINGS, 0, 0, &[])
    }

    #[test]
    fn a_valid_first_authority_ends_the_look() {
        let (mut frames, mut passed) = (Frames::default(), BytesMut::new());
        let first = connection(&[settings(), plain(1, VALID, b"", false)]);
        frames.push(&first, &mut passed);
        assert!(frames.is_done());
        frames.push(&plain(3, INVALID, b"", false), &mut passed);
        assert_eq!(passed, [first, plain(3, INVALID, b"", false)].concat());
    }

    #[test]
    fn http_1_passes_from_its_first_byte_that_differs() {
        let (mut frames, mut passed) = (Frames::default(), BytesMut::new());
        frames.push(b"P", &mut passed);
        assert!(!frames.is_done());
        frames.push(b"OST / HTTP/1.1\r\n", &mut passed);
        assert!(frames.is_done());
        assert_eq!(&passed[..], b"POST / HTTP/1.1\r\n");
    }

    #[test]
    fn what_is_not_understood_passes_with_all_that_follows() {
        let padded = frame(HEADERS, PADDED | END_HEADERS, 1, &[9, 0x83]);
        let short = frame(HEADERS, PRIORITY | END_HEADERS, 1, &[0, 0]);
        let large = frame(DATA, 0, 1, &vec![0; PAYLOAD_MAX + 1]);
        let alone = frame(CONTINUATION, END_HEADERS, 1, &[0x83]);
        let between = [frame(HEADERS, 0, 1, &[0x83]), frame(DATA, 0, 1, b"x")].concat();
        let other = [frame(HEADERS, 0, 1, &[0x83]), frame(CONTINUATION, 4, 3, b"")].concat();
        let promise = frame(PUSH_PROMISE, END_HEADERS, 1, &[0x83]);
        let no_hpack = frame(HEADERS, END_HEADERS, 1, &[0x3f]);
        for bad in [padded, short, large, alone, between, other, promise, no_hpack] {
            // On a connection with an invalid authority, and on one that begins so.
            let after = plain(5, INVALID, b"", false);
            let before = plain(1, INVALID, b"", false);
            let sent = connection(&[bad.clone(), after.clone()]);
            assert_eq!(at_once(&sent), sent);
            let sent = connection(&[before, bad.clone(), after.clone()]);
            let mended = plain(1, MENDED, b"", false);
            assert_eq!(at_once(&sent), connection(&[mended, bad, after]));
        }
    }

    #[test]
    fn a_block_that_is_too_long_is_held_up_to_the_limit_and_passes() {
        let (mut frames, mut passed) = (Frames::default(), BytesMut::new());
        frames.push(&connection(&[settings(), frame(HEADERS, 0, 1, &[0x83])]), &mut passed);
        let more = frame(CONTINUATION, 0, 1, b"");
        for _ in 0..BLOCK_MAX / HEAD + 1 {
            frames.push(&more, &mut passed);
            assert!(frames.held.len() <= BLOCK_MAX);
        }
        assert!(frames.is_done() && passed.len() > BLOCK_MAX);
    }

    #[test]
    fn a_block_that_became_longer_than_a_frame_is_continued() {
        // A field whose value has 127 + 0x6b + (0x7e << 7) bytes.
        let rest = [&[0x00, 1, b'a', 0x7f, 0xeb, 0x7e][..], &[b'x'; 16_362]].concat();
        let frame_of = |authority: &[u8]| {
            let block = [&[0x83][..], authority, &rest].concat();
            frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)
        };
        let huffman = [&[0x41, 0x80 | 10][..], &encode(INVALID)].concat();
        let passed = at_once(&connection(&[frame_of(&huffman)]));
        let (head, next) = passed[PREFACE.len()..].split_at(HEAD + PAYLOAD_MAX);
        assert_eq!(head[..5], [0, 0x40, 0, HEADERS, END_STREAM]);
        assert_eq!(next[..HEAD], [0, 0, 1, CONTINUATION, END_HEADERS, 0, 0, 0, 1]);
        assert_eq!(next.len(), HEAD + 1);
    }

    /// A frame that is no header block, or a block without and with an invalid authority.
    #[derive(Clone, Debug)]
    enum Sent {
        Data(Vec<u8>),
        Headers(Spread, Vec<u8>),
    }

    fn sent() -> impl Strategy<Value = Vec<Sent>> {
        let spread =
            (any::<Option<u8>>(), any::<bool>(), vec(0..20_usize, 0..4)).prop_map(|(padding, priority, sizes)| {
                Spread {
                    padding,
                    priority,
                    sizes,
                }
            });
        // Indexed fields of the static table, but the authority.
        let rest = vec(0x82..0xbd_u8, 0..30);
        let one = prop_oneof![
            vec(any::<u8>(), 0..300).prop_map(Sent::Data),
            (spread, rest).prop_map(|(spread, rest)| Sent::Headers(spread, rest)),
        ];
        vec(one, 0..12)
    }

    fn bytes(sent: &[Sent], frame_of: impl Fn(u32, &[u8], &Spread) -> Vec<u8>) -> Vec<u8> {
        let one = |(n, sent): (u32, &Sent)| match sent {
            Sent::Data(payload) => frame(DATA, 0, 2 * n + 1, payload),
            Sent::Headers(spread, rest) => frame_of(2 * n + 1, rest, spread),
        };
        connection(&(0..).zip(sent).map(one).collect::<Vec<_>>())
    }

    proptest! {
        #[test]
        fn random_bytes_pass_unaltered(
            preface: bool,
            bytes in vec(any::<u8>(), 0..400),
            sizes in vec(1..50_usize, 0..50),
        ) {
            let bytes = if preface { connection(&[settings(), bytes]) } else { bytes };
            prop_assert_eq!(filtered(&bytes, sizes.into_iter()), bytes);
        }

        #[test]
        fn a_connection_with_valid_authorities_passes_unaltered(sent in sent(), sizes in vec(1..50_usize, 0..50)) {
            let bytes = bytes(&sent, |stream, rest, spread| headers(stream, VALID, rest, spread));
            prop_assert_eq!(filtered(&bytes, sizes.into_iter()), bytes);
        }

        #[test]
        fn a_connection_with_invalid_authorities_has_the_same_frames_with_valid_ones(
            sent in sent(),
            sizes in vec(1..50_usize, 0..50),
        ) {
            let invalid = bytes(&sent, |stream, rest, spread| headers(stream, INVALID, rest, spread));
            let mended = bytes(&sent, |stream, rest, spread| plain(stream, MENDED, rest, spread.priority));
            prop_assert_eq!(filtered(&invalid, sizes.into_iter()), mended);
        }

        #[test]
        fn flipped_bytes_never_panic(sent in sent(), flips in vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)) {
            let mut bytes = bytes(&sent, |stream, rest, spread| headers(stream, INVALID, rest, spread));
            for (place, flip) in flips {
                let place = place.index(bytes.len());
                bytes[place] ^= flip;
            }
            prop_assert_eq!(filtered(&bytes, std::iter::repeat(1)), at_once(&bytes));
        }
    }
}
