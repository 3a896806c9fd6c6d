//! Counts the SETTINGS frames of a connection. Each of them makes the HTTP library visit every stream of the connection,
//! and the library has no limit of its own.

/// Clients send one at the start, and a few more as they learn the speed of the network.
const SETTINGS_MAX: u32 = 100;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEADER: usize = 9;
const SETTINGS: u8 = 4;
const ACK: u8 = 1;

/// The position in the frames of a connection.
#[derive(Default)]
pub(super) struct SettingsCount {
    /// Bytes of the preface that were seen.
    preface: usize,
    /// The header of the next frame, as far as it was seen.
    header: [u8; HEADER],
    seen: usize,
    /// Bytes left of the payload of the present frame.
    payload: usize,
    settings: u32,
    /// The connection is not HTTP/2.
    other: bool,
}

impl SettingsCount {
    /// Reads what a client sent; false if the client has sent too many SETTINGS frames.
    pub(super) fn read(&mut self, mut data: &[u8]) -> bool {
        while let Some(&next) = data.first().filter(|_| !self.other) {
            if let Some(&expected) = PREFACE.get(self.preface) {
                self.other = next != expected;
                self.preface += 1;
                data = &data[1..];
            } else if self.payload > 0 {
                let skipped = self.payload.min(data.len());
                self.payload -= skipped;
                data = &data[skipped..];
            } else {
                self.header[self.seen] = next;
                self.seen += 1;
                data = &data[1..];
                if self.seen == HEADER {
                    self.frame();
                }
            }
        }
        self.settings <= SETTINGS_MAX
    }

    fn frame(&mut self) {
        let [a, b, c, kind, flags, ..] = self.header;
        self.payload = u32::from_be_bytes([0, a, b, c]) as usize;
        self.seen = 0;
        if kind == SETTINGS && flags & ACK == 0 {
            self.settings += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let len = u8::try_from(payload.len()).unwrap();
        [&[0, 0, len, kind, flags, 0, 0, 0, 0], payload].concat()
    }

    #[test]
    fn a_client_may_send_so_many_settings_whatever_the_size_of_the_reads() {
        let few = (0..SETTINGS_MAX).flat_map(|_| [frame(SETTINGS, 0, &[0; 6]), frame(0, 0, &[SETTINGS; 20])].concat());
        let acks = (0..1000).flat_map(|_| frame(SETTINGS, ACK, &[]));
        let sent: Vec<u8> = PREFACE.iter().copied().chain(few).chain(acks).collect();
        for size in [1, 7, 4096] {
            let mut count = SettingsCount::default();
            assert!(sent.chunks(size).all(|chunk| count.read(chunk)), "in chunks of {size}");
            assert!(!count.read(&frame(SETTINGS, 0, &[])));
        }
    }

    #[test]
    fn other_protocols_are_not_counted() {
        let mut count = SettingsCount::default();
        assert!(count.read(b"POST / HTTP/1.1\r\n"));
        assert!((0..1000).all(|_| count.read(&frame(SETTINGS, 0, &[]))));
    }
}
