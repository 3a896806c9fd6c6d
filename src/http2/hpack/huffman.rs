//! Decodes the Huffman code of HPACK (RFC 7541, section 5.2 and appendix B).

/// Length of the longest code, in bits.
const LONGEST: usize = 30;
/// Length of the shortest code, in bits.
const SHORTEST: usize = 5;

/// Length of the code of each byte, in bits, and of the end of a string (EOS). The code is canonical: codes of the same
/// length ascend with their bytes, so that the lengths define the code.
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 30, 28, //
    28, 28, 28, 28, 28, 28, 28, 28, 6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6, //
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10, 13, 6, 7, 7, 7, 7, 7, 7, //
    7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6, //
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5, 6, 7, 6, 5, 5, 6, 7, 7, //
    7, 7, 7, 15, 11, 14, 13, 28, 20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23, //
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24, 22, 21, 20, 22, 22, 23, 23, 21, //
    23, 22, 22, 24, 21, 22, 23, 23, 21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23, //
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25, 19, 21, 26, 27, 27, 26, 27, 24, //
    21, 21, 26, 26, 28, 27, 27, 27, 20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23, //
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26, 30,
];

/// The codes of one length. Codes are followed by zeros, up to [`LONGEST`] bits.
#[derive(Clone, Copy)]
struct Codes {
    /// The smallest code.
    first: u32,
    /// The smallest number that begins with a longer code.
    end: u32,
    /// The place of the smallest code in [`Table::symbols`].
    place: usize,
}

struct Table {
    codes: [Codes; LONGEST + 1],
    /// All bytes, ordered by their codes, shorter codes first.
    symbols: [u8; 256],
}

static TABLE: Table = table();

const fn table() -> Table {
    let none = Codes {
        first: 0,
        end: 0,
        place: 0,
    };
    let mut table = Table {
        codes: [none; LONGEST + 1],
        symbols: [0; 256],
    };
    let (mut code, mut place, mut length) = (0, 0, 1);
    while length <= LONGEST {
        code <<= 1;
        let (first, begin, mut symbol) = (code, place, 0);
        while symbol < 256 {
            if LENGTHS[symbol] as usize == length {
                table.symbols[place] = symbol as u8;
                place += 1;
                code += 1;
            }
            symbol += 1;
        }
        table.codes[length] = Codes {
            first: first << (LONGEST - length),
            end: code << (LONGEST - length),
            place: begin,
        };
        length += 1;
    }
    table
}

/// Decodes a string and appends it. Returns `None` if the padding is invalid or the string contains EOS.
pub(super) fn decode(bytes: &[u8], decoded: &mut Vec<u8>) -> Option<()> {
    decoded.reserve(bytes.len() * 8 / SHORTEST);
    // The next bits of the string, from the highest one on, and their number.
    let (mut bits, mut count) = (0_u64, 0);
    let mut bytes = bytes.iter();
    loop {
        while count <= 56 {
            let Some(&byte) = bytes.next() else { break };
            bits |= u64::from(byte) << (56 - count);
            count += 8;
        }
        let window = (bits >> (64 - LONGEST)) as u32;
        let Some(length) = (SHORTEST..=LONGEST).find(|&length| window < TABLE.codes[length].end) else {
            // The table has no EOS. Fewer bits than EOS has may still be padding.
            break;
        };
        if length > count {
            break;
        }
        let codes = TABLE.codes[length];
        let within = (window - codes.first) >> (LONGEST - length);
        decoded.push(TABLE.symbols[codes.place + within as usize]);
        bits <<= length;
        count -= length;
    }
    // The first bits of EOS, which are ones, pad the last byte.
    (count < 8 && bits.leading_ones() as usize == count).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut decoded = Vec::new();
        super::decode(bytes, &mut decoded).map(|()| decoded)
    }

    /// Encodes a string.
    fn encode(bytes: &[u8]) -> Vec<u8> {
        let mut bits = Vec::new();
        for &byte in bytes {
            let length = usize::from(LENGTHS[usize::from(byte)]);
            let codes = TABLE.codes[length];
            let within = TABLE.symbols[codes.place..].iter().position(|&s| s == byte).unwrap();
            let code = (codes.first >> (LONGEST - length)) + u32::try_from(within).unwrap();
            bits.extend((0..length).rev().map(|n| code >> n & 1));
        }
        bits.resize(bits.len().next_multiple_of(8), 1);
        let byte = |bits: &[u32]| bits.iter().fold(0, |byte, &bit| byte << 1 | u8::try_from(bit).unwrap());
        bits.chunks(8).map(byte).collect()
    }

    #[test]
    fn the_examples_of_the_rfc_are_decoded() {
        let examples: [(&[u8], &str); 5] = [
            (b"\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff", "www.example.com"),
            (b"\xa8\xeb\x10\x64\x9c\xbf", "no-cache"),
            (b"\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f", "custom-key"),
            (
                b"\xd0\x7a\xbe\x94\x10\x54\xd4\x44\xa8\x20\x05\x95\x04\x0b\x81\x66\xe0\x82\xa6\x2d\x1b\xff",
                "Mon, 21 Oct 2013 20:13:21 GMT",
            ),
            (
                b"\x9d\x29\xad\x17\x18\x63\xc7\x8f\x0b\x97\xc8\xe9\xae\x82\xae\x43\xd3",
                "https://www.example.com",
            ),
        ];
        for (encoded, text) in examples {
            assert_eq!(decode(encoded).unwrap(), text.as_bytes());
            assert_eq!(encode(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn the_code_is_complete_and_has_the_rare_bytes_of_the_rfc() {
        let sum: u64 = LENGTHS.iter().map(|&length| 1 << (LONGEST - usize::from(length))).sum();
        assert_eq!(sum, 1 << LONGEST, "a complete code");
        // Appendix B: the code of '#' is 0xffa of 12 bits, the code of 10 is 0x3ffffffc of 30 bits.
        assert_eq!(encode(b"#"), [0xff, 0xaf]);
        assert_eq!(encode(b"\n"), [0xff, 0xff, 0xff, 0xf3]);
    }

    #[test]
    fn bad_padding_and_the_end_of_a_string_are_refused() {
        assert_eq!(decode(b""), Some(Vec::new()));
        assert_eq!(decode(b"\x18"), None, "'a' and zeros");
        assert_eq!(decode(b"\x1f\xff"), None, "'a' and a whole byte of padding");
        assert_eq!(decode(&[0xff; 4]), None);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(text in proptest::collection::vec(any::<u8>(), 0..100)) {
            prop_assert_eq!(decode(&encode(&text)), Some(text));
        }

        #[test]
        fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            decode(&bytes);
        }
    }
}
