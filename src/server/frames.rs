//! The beginnings of gRPC messages in a stream of bytes.

/// Finds messages in a body: each begins with a flag and its length in four bytes.
#[derive(Default)]
pub(super) struct Frames {
    /// Bytes left of the current message.
    left: usize,
    header: Header,
}

#[derive(Default)]
struct Header {
    bytes: [u8; HEADER],
    len: usize,
}

/// Length of the flag and of the message's length.
const HEADER: usize = 5;

/// The flag, and the length, of a message of `length` bytes, in a buffer with room for `room` bytes of that message. No message
/// that is sent comes near the 4 GiB that a length can say.
pub(super) fn begin(length: usize, room: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(HEADER + room);
    message.push(0);
    message.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    message
}

impl Frames {
    /// Calls `begins` with the length of each message that begins in `data`.
    pub(super) fn read(&mut self, mut data: &[u8], mut begins: impl FnMut(usize)) {
        while !data.is_empty() {
            if self.left > 0 {
                let skip = self.left.min(data.len());
                self.left -= skip;
                data = &data[skip..];
                continue;
            }
            let Header { bytes, len } = &mut self.header;
            let take = (bytes.len() - *len).min(data.len());
            bytes[*len..*len + take].copy_from_slice(&data[..take]);
            *len += take;
            data = &data[take..];
            if *len == bytes.len() {
                let [_, length @ ..] = *bytes;
                self.left = u32::from_be_bytes(length) as usize;
                *len = 0;
                begins(self.left);
            }
        }
    }

    /// Whether no message is incomplete.
    pub(super) fn is_between(&self) -> bool {
        self.left == 0 && self.header.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_in_chunks_of_any_size() {
        let message = |n: u8| [&[0, 0, 0, 0, n][..], &vec![7; n.into()]].concat();
        let stream = [message(3), message(0), message(9)].concat();
        for size in 1..stream.len() {
            let (mut frames, mut found) = (Frames::default(), vec![]);
            stream
                .chunks(size)
                .for_each(|chunk| frames.read(chunk, |len| found.push(len)));
            assert_eq!(found, [3, 0, 9], "in chunks of {size}");
            assert!(frames.is_between());
        }
    }
}
