//! Numbers and texts as people read them.

use std::borrow::Cow;

/// A number with a comma between thousands.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Whether a character cannot be seen, or changes the order or the place of others: control characters except the line feed and
/// the tab, format characters such as those of bidirectional text, and spaces without width. A text of somebody else could
/// look like another text with them.
pub fn is_hidden(c: char) -> bool {
    match c {
        '\n' | '\t' => false,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' => true,
        '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' => true,
        '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' => true,
        '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}' => true,
        c => c.is_control(),
    }
}

/// Whether the selector U+FE0F makes a picture of this character, as in a warning sign.
fn is_symbol(c: char) -> bool {
    matches!(c, '\u{2100}'..='\u{27bf}' | '\u{2900}'..='\u{2bff}' | '\u{1f000}'..='\u{1faff}')
}

/// A text in which hidden characters are written as escapes, such as `\u{202e}`. The selector of a symbol's picture stays.
pub fn visible(text: &str) -> Cow<'_, str> {
    if !text.contains(is_hidden) {
        return Cow::Borrowed(text);
    }
    let mut visible = String::with_capacity(text.len() + 16);
    let mut before = '\0';
    for c in text.chars() {
        let selects = c == '\u{fe0f}' && is_symbol(before);
        match is_hidden(c) && !selects {
            true => visible.extend(c.escape_unicode()),
            false => visible.push(c),
        }
        before = c;
    }
    Cow::Owned(visible)
}

/// The first `most` characters of a text, with an ellipsis if there are more.
pub fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_of_a_symbol_stays_and_nothing_else_that_selects_one() {
        assert_eq!(visible("\u{26a0}\u{fe0f}  hk\u{fe0f}"), "\u{26a0}\u{fe0f}  hk\\u{fe0f}");
        assert_eq!(visible("\u{2139}\u{fe0f}\u{fe0f}"), "\u{2139}\u{fe0f}\\u{fe0f}");
    }

    #[test]
    fn characters_that_nobody_sees_are_written_as_escapes() {
        for (text, shown) in [
            ("payments\n\tпривет é ●–", "payments\n\tпривет é ●–"),
            ("gnp.\u{202e}cilbup", "gnp.\\u{202e}cilbup"),
            ("pay\u{200b}ments", "pay\\u{200b}ments"),
            (
                "\u{2066}\u{feff}\r\0\u{1b}[31m",
                "\\u{2066}\\u{feff}\\u{d}\\u{0}\\u{1b}[31m",
            ),
        ] {
            assert_eq!(visible(text), shown);
        }
        assert!(matches!(visible("ä–b"), Cow::Borrowed("ä–b")));
    }

    #[test]
    fn a_long_text_ends_with_an_ellipsis() {
        assert_eq!([shortened("äöü", 3), shortened("äöü", 2)], ["äöü", "äö…"]);
    }

    #[test]
    fn thousands_are_told_apart() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
