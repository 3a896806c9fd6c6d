//! Errors with their causes.

use std::error::Error;

/// The text of an error, followed by the texts of its causes. Many layers repeat the text of the error inside them: a text
/// that a text before it contains is left out.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let mut texts: Vec<String> = vec![];
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|before| before.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Layer {
        text: &'static str,
        source: Option<Box<Layer>>,
    }

    #[test]
    fn each_cause_is_named_once() {
        let layer = |text, source: Option<Layer>| Layer {
            text,
            source: source.map(Box::new),
        };
        let inner = layer("refused", None);
        let middle = layer("no connection: refused", Some(inner));
        let outer = layer("cannot list", Some(middle));
        assert_eq!(causes(&outer), "cannot list: no connection: refused");
        assert_eq!(causes(&layer("alone", None)), "alone");
    }
}
