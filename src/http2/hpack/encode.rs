//! Encodes header blocks without a dynamic table and without Huffman code: names of the static table are indexes, and all
//! else is spelled out, which takes the least time of both sides for the few fields of an answer.

use http::{HeaderMap, HeaderName, StatusCode, header};

/// Indexes of the static table.
const AUTHORITY: u8 = 1;
const POST: u8 = 3;
const PATH: u8 = 4;
const SCHEME_HTTP: u8 = 6;
const SCHEME_HTTPS: u8 = 7;
const STATUS: u8 = 8;
/// An entry with a status that has an index of its own.
const STATUSES: [(u16, u8); 7] = [
    (200, 8),
    (204, 9),
    (206, 10),
    (304, 11),
    (400, 12),
    (404, 13),
    (500, 14),
];
const NAMES: [(HeaderName, u8); 4] = [
    (header::CONTENT_TYPE, 31),
    (header::CONTENT_LENGTH, 28),
    (header::DATE, 33),
    (header::ALLOW, 22),
];

/// The encoder of a connection.
#[derive(Debug, Default)]
pub(in crate::http2) struct Encoder {
    /// The client wants a smaller table than both sides begin with, and has not been told yet that it is empty.
    tell_size: bool,
}

impl Encoder {
    /// Notes a limit of the client for the size of the dynamic table.
    pub fn limit(&mut self, size: u32) {
        self.tell_size |= size < 4096;
    }

    /// Appends the block that begins an answer.
    pub fn head(&mut self, out: &mut Vec<u8>, status: StatusCode, fields: &HeaderMap) {
        self.begin(out);
        let status = status.as_u16();
        match STATUSES.iter().find(|(known, _)| *known == status) {
            Some((_, index)) => out.push(0x80 | index),
            None => {
                out.push(STATUS);
                string(out, status.to_string().as_bytes());
            }
        }
        self::fields(out, fields);
    }

    /// Appends the block that ends an answer.
    pub fn trailers(&mut self, out: &mut Vec<u8>, fields: &HeaderMap) {
        self.begin(out);
        self::fields(out, fields);
    }

    fn begin(&mut self, out: &mut Vec<u8>) {
        if std::mem::take(&mut self.tell_size) {
            out.push(0x20);
        }
    }
}

/// Appends the block of a request by POST.
pub(in crate::http2) fn request(out: &mut Vec<u8>, secure: bool, authority: &str, path: &str, headers: &HeaderMap) {
    out.push(0x80 | POST);
    out.push(0x80 | if secure { SCHEME_HTTPS } else { SCHEME_HTTP });
    for (name, value) in [(PATH, path), (AUTHORITY, authority)] {
        out.push(name);
        string(out, value.as_bytes());
    }
    fields(out, headers);
}

/// Appends fields that no table keeps.
fn fields(out: &mut Vec<u8>, fields: &HeaderMap) {
    for (name, value) in fields {
        // What concerns a connection of HTTP/1 alone is malformed here.
        if [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE].contains(name) {
            continue;
        }
        match NAMES.iter().find(|(known, _)| known == name) {
            Some((_, index)) => integer(out, 0x00, 4, usize::from(*index)),
            None => {
                out.push(0x00);
                string(out, name.as_str().as_bytes());
            }
        }
        string(out, value.as_bytes());
    }
}

/// Appends an integer that starts in the last `prefix` bits of a byte (RFC 7541, section 5.1).
fn integer(out: &mut Vec<u8>, first: u8, prefix: u32, value: usize) {
    let mask = (1_usize << prefix) - 1;
    if value < mask {
        out.push(first | value as u8);
        return;
    }
    out.push(first | mask as u8);
    let mut rest = value - mask;
    while rest >= 0x80 {
        out.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    integer(out, 0x00, 7, text.len());
    out.extend_from_slice(text);
}

#[cfg(test)]
mod tests {
    use super::super::{Decoder, Name};
    use super::*;

    fn fields_of(block: &[u8]) -> Vec<(Name, String)> {
        let mut fields = vec![];
        let visit = |name: &Name, value: &bytes::Bytes, _| {
            fields.push((name.clone(), String::from_utf8(value.to_vec()).unwrap()));
        };
        Decoder::default().decode(block, visit).unwrap();
        fields
    }

    #[test]
    fn an_answer_is_decoded_as_it_was() {
        let mut map = HeaderMap::new();
        let long = "x".repeat(1000);
        for (name, value) in [
            ("content-type", "application/grpc"),
            ("grpc-status", "0"),
            ("date", "now"),
            ("long", &long),
            ("transfer-encoding", "chunked"),
        ] {
            map.insert(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        for status in [200, 404, 415] {
            let mut block = Vec::new();
            let code = StatusCode::from_u16(status).unwrap();
            Encoder::default().head(&mut block, code, &map);
            let fields = fields_of(&block);
            assert_eq!(fields[0], (Name::Status, status.to_string()));
            let rest: Vec<_> = fields[1..]
                .iter()
                .map(|(name, value)| (name.clone(), &**value))
                .collect();
            let header = |name: &str| Name::Header(name.parse().unwrap());
            let expected = [
                (header("content-type"), "application/grpc"),
                (header("grpc-status"), "0"),
                (header("date"), "now"),
                (header("long"), &*long),
            ];
            assert_eq!(rest, expected);
        }
    }

    #[test]
    fn a_request_has_its_pseudo_headers_first() {
        let (mut block, mut headers) = (Vec::new(), HeaderMap::new());
        headers.insert("te", "trailers".parse().unwrap());
        request(&mut block, true, "a:1", "/x/Y", &headers);
        let mut found = vec![];
        let decoded = Decoder::default().decode(&block, |name, value, _| found.push((name.clone(), value.clone())));
        assert_eq!(decoded, Ok(()));
        let expected = [
            (Name::Method, "POST"),
            (Name::Scheme, "https"),
            (Name::Path, "/x/Y"),
            (Name::Authority, "a:1"),
            (Name::Header(header::TE), "trailers"),
        ];
        assert_eq!(found, expected.map(|(name, value)| (name, value.into())));
    }

    #[test]
    fn a_client_with_a_smaller_table_is_told_once_that_the_table_is_empty() {
        let mut encoder = Encoder::default();
        encoder.limit(4096);
        let block = |encoder: &mut Encoder| {
            let mut block = Vec::new();
            encoder.head(&mut block, StatusCode::OK, &HeaderMap::new());
            block
        };
        assert_eq!(block(&mut encoder), [0x88]);
        encoder.limit(100);
        assert_eq!(block(&mut encoder), [0x20, 0x88]);
        assert_eq!(block(&mut encoder), [0x88]);
    }
}
