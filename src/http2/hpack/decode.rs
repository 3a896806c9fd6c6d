//! Decodes header blocks.

use super::huffman;
use super::table::{Field, Name, SIZE_MAX, Table};
use bytes::Bytes;

/// Longest integer, in bytes. Longer ones are larger than any block.
const INTEGER_MAX: usize = 5;

/// A block that is not HPACK. The tables of client and server differ from now on.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::http2) struct Malformed;

/// The decoder of a connection.
#[derive(Debug, Default)]
pub(in crate::http2) struct Decoder {
    table: Table,
}

impl Decoder {
    /// Passes each field of a complete block to `visit`, with the size by which the field counts.
    pub fn decode(&mut self, block: &[u8], mut visit: impl FnMut(&Name, &Bytes, usize)) -> Result<(), Malformed> {
        let mut reader = Reader { block, at: 0 };
        let mut fields = 0;
        while let Some(&first) = block.get(reader.at) {
            match first {
                0x80.. => {
                    let field = self.table.get(reader.integer(7)?).ok_or(Malformed)?;
                    visit(&field.name, &field.value, field.size());
                }
                0x40.. => {
                    let field = reader.literal(6, &self.table)?;
                    visit(&field.name, &field.value, field.size());
                    self.table.insert(field);
                }
                0x20.. => {
                    // A change of the size must be at the beginning of a block (RFC 7541, section 4.2).
                    let size = reader.integer(5)?;
                    if fields > 0 || size > SIZE_MAX {
                        return Err(Malformed);
                    }
                    self.table.resize(size);
                    continue;
                }
                _ => {
                    let field = reader.literal(4, &self.table)?;
                    visit(&field.name, &field.value, field.size());
                }
            }
            fields += 1;
        }
        Ok(())
    }
}

struct Reader<'a> {
    block: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Reads a field whose name is an index of `prefix` bits, or a string (RFC 7541, section 6.2).
    fn literal(&mut self, prefix: u32, table: &Table) -> Result<Field, Malformed> {
        let (name, name_len) = match self.integer(prefix)? {
            0 => {
                let text = self.string()?;
                let mut decoded = Vec::new();
                let name = text.read(&mut decoded)?;
                (Name::read(name), name.len())
            }
            index => {
                let field = table.get(index).ok_or(Malformed)?;
                (field.name.clone(), field.name_len)
            }
        };
        let value = self.string()?.value()?;
        Ok(Field { name, name_len, value })
    }

    /// Reads an integer that starts in the last `prefix` bits of a byte (RFC 7541, section 5.1).
    fn integer(&mut self, prefix: u32) -> Result<usize, Malformed> {
        let mask = (1_usize << prefix) - 1;
        let bytes = self.block.get(self.at..).ok_or(Malformed)?;
        let mut bytes = bytes.iter().map(|&byte| usize::from(byte));
        let mut value = bytes.next().ok_or(Malformed)? & mask;
        self.at += 1;
        if value < mask {
            return Ok(value);
        }
        for (n, byte) in bytes.take(INTEGER_MAX - 1).enumerate() {
            value += (byte & 0x7f) << (7 * n);
            self.at += 1;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed)
    }

    fn string(&mut self) -> Result<Text<'a>, Malformed> {
        let huffman = *self.block.get(self.at).ok_or(Malformed)? >= 0x80;
        let length = self.integer(7)?;
        let rest = self.block.get(self.at..).ok_or(Malformed)?;
        let bytes = rest.get(..length).ok_or(Malformed)?;
        self.at += length;
        Ok(Text { huffman, bytes })
    }
}

/// An encoded string.
struct Text<'a> {
    huffman: bool,
    bytes: &'a [u8],
}

impl<'a> Text<'a> {
    /// The decoded string, which may be put into `decoded`.
    fn read(&self, decoded: &'a mut Vec<u8>) -> Result<&'a [u8], Malformed> {
        if !self.huffman {
            return Ok(self.bytes);
        }
        huffman::decode(self.bytes, decoded).ok_or(Malformed)?;
        Ok(decoded)
    }

    fn value(&self) -> Result<Bytes, Malformed> {
        if !self.huffman {
            // A copy: the value may stay in the table for longer than the block stays in the buffer.
            return Ok(Bytes::copy_from_slice(self.bytes));
        }
        let mut decoded = Vec::new();
        huffman::decode(self.bytes, &mut decoded).ok_or(Malformed)?;
        Ok(decoded.into_boxed_slice().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(decoder: &mut Decoder, block: &[u8]) -> Result<Vec<(Name, String)>, Malformed> {
        let mut fields = vec![];
        decoder.decode(block, |name, value, size| {
            assert!(size >= 32 + value.len());
            fields.push((name.clone(), String::from_utf8_lossy(value).into_owned()));
        })?;
        Ok(fields)
    }

    fn header(name: &str) -> Name {
        Name::Header(name.parse().unwrap())
    }

    /// The requests of RFC 7541, appendix C.3 and C.4.
    #[test]
    fn the_examples_of_the_rfc_are_decoded() {
        let plain: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x0fwww.example.com",
            b"\x82\x86\x84\xbe\x58\x08no-cache",
            b"\x82\x87\x85\xbf\x40\x0acustom-key\x0ccustom-value",
        ];
        let huffman: [&[u8]; 3] = [
            b"\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff",
            b"\x82\x86\x84\xbe\x58\x86\xa8\xeb\x10\x64\x9c\xbf",
            b"\x82\x87\x85\xbf\x40\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf",
        ];
        for blocks in [plain, huffman] {
            let mut decoder = Decoder::default();
            let [first, second, third] = blocks.map(|block| decoded(&mut decoder, block).unwrap());
            let head = |scheme: &str, path: &str| {
                [
                    (Name::Method, "GET".to_owned()),
                    (Name::Scheme, scheme.to_owned()),
                    (Name::Path, path.to_owned()),
                    (Name::Authority, "www.example.com".to_owned()),
                ]
                .to_vec()
            };
            assert_eq!(first, head("http", "/"));
            let cached = (header("cache-control"), "no-cache".to_owned());
            assert_eq!(second, [head("http", "/"), vec![cached]].concat());
            let custom = (header("custom-key"), "custom-value".to_owned());
            assert_eq!(third, [head("https", "/index.html"), vec![custom]].concat());
        }
    }

    #[test]
    fn a_change_of_the_size_comes_first_and_is_within_the_limit() {
        let mut decoder = Decoder::default();
        assert_eq!(decoded(&mut decoder, b"\x20\x3f\xe1\x1f\x82").unwrap().len(), 1);
        assert_eq!(decoded(&mut decoder, b"\x82\x20"), Err(Malformed), "after a field");
        assert_eq!(decoded(&mut decoder, b"\x3f\xe2\x1f"), Err(Malformed), "4097");
    }

    #[test]
    fn blocks_that_are_cut_off_or_refer_to_nothing_are_malformed() {
        let whole = b"\x40\x01a\x01b";
        for length in 1..whole.len() {
            assert_eq!(
                decoded(&mut Decoder::default(), &whole[..length]),
                Err(Malformed),
                "{length}"
            );
        }
        let bad: [&[u8]; 4] = [b"\x80", b"\xbe", b"\xff\xff\xff\xff\xff\xff\x01", b"\x0f\x30\x01a"];
        for block in bad {
            assert_eq!(decoded(&mut Decoder::default(), block), Err(Malformed), "{block:?}");
        }
    }

    #[test]
    fn fields_without_indexing_leave_the_table_as_it_is() {
        let mut decoder = Decoder::default();
        decoded(&mut decoder, b"\x00\x01a\x01b\x10\x01a\x01b").unwrap();
        assert_eq!(decoded(&mut decoder, b"\xbe"), Err(Malformed));
    }

    proptest! {
        #[test]
        fn random_blocks_never_panic(blocks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..100), 0..10)) {
            let mut decoder = Decoder::default();
            for block in blocks {
                let _ = decoded(&mut decoder, &block);
            }
        }
    }
}
