//! JSON as Go's `encoding/json` writes it, so that values equal Cilium's byte for byte: compact, and with `<`, `>`, `&`,
//! U+2028 and U+2029 escaped in strings.

use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter, Serializer};
use std::io;

struct Go;

/// Serializes `value`. Go sorts the keys of maps, so `value` must use ordered maps.
pub fn to_vec<T: Serialize>(value: &T) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    value
        .serialize(&mut Serializer::with_formatter(&mut out, Go))
        .expect("values are plain structs and a Vec takes all writes");
    out
}

impl Formatter for Go {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, w: &mut W, s: &str) -> io::Result<()> {
        let special = |c| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        for part in s.split_inclusive(special) {
            match part.chars().next_back().filter(|c| special(*c)) {
                None => CompactFormatter.write_string_fragment(w, part)?,
                Some(c) => {
                    CompactFormatter.write_string_fragment(w, &part[..part.len() - c.len_utf8()])?;
                    write!(w, "\\u{:04x}", u32::from(c))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn strings_are_escaped_as_go_escapes_them() {
        let json = super::to_vec(&"<a>&\u{2028}é\"\\\n\u{1}\u{8}\u{c}\u{7f}");
        let expected = "\"\\u003ca\\u003e\\u0026\\u2028é\\\"\\\\\\n\\u0001\\b\\f\u{7f}\"";
        assert_eq!(String::from_utf8(json).unwrap(), expected);
    }
}
