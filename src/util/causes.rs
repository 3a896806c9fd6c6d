//! Errors with their causes.

use std::error::Error;

/// Texts that only name a layer, and say nothing of the cause.
const LAYERS: [&str; 3] = ["", "transport error", "connection error"];
/// What the libraries write before the text of the cause.
const PREFIXES: [&str; 2] = ["Service was not ready: ", "buffered service failed: "];
/// tower's error of a connection whose task has ended.
const WORKER: &str = "buffer's worker closed unexpectedly";
/// The text of an error of which nothing else is known than that the connection is gone.
pub const GONE: &str = "the connection has ended";

/// The text of an error, followed by the texts of its causes. Many layers repeat the text of the error inside them: a text
/// that a text before it contains is left out, and so is one that only names its layer.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    causes_after(&error.to_string(), error.source())
}

/// Like [`causes`], with another text for the error itself.
pub fn causes_after(text: &str, source: Option<&(dyn Error + 'static)>) -> String {
    let mut texts = vec![of_cause(text).to_owned()];
    let mut next = source;
    while let Some(error) = next {
        let text = error.to_string();
        let text = of_cause(&text);
        if !texts.iter().any(|before| before.contains(text)) {
            texts.push(text.to_owned());
        }
        next = error.source();
    }
    let is_layer = |text: &str| LAYERS.contains(&text);
    match texts.iter().all(|text| is_layer(text)) {
        // An error without a text is not one of a connection.
        true if texts.iter().any(|text| !text.is_empty()) => GONE.to_owned(),
        true => String::new(),
        false => {
            texts.retain(|text| !is_layer(text));
            texts.join(": ")
        }
    }
}

/// A text without the words of libraries that no reader knows.
fn of_cause(mut text: &str) -> &str {
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        text = rest;
    }
    match text {
        WORKER => GONE,
        text => text,
    }
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

    #[test]
    fn no_text_is_of_a_library_alone() {
        let layer = |text, source: Option<Layer>| Layer {
            text,
            source: source.map(Box::new),
        };
        let refused = layer("connection error", Some(layer("127.0.0.1:1: Connection refused", None)));
        let failed = layer("transport error", Some(refused));
        assert_eq!(causes(&failed), "127.0.0.1:1: Connection refused");
        for text in [
            "transport error",
            "Service was not ready: transport error",
            "Service was not ready: buffer's worker closed unexpectedly",
            "Service was not ready: buffered service failed: connection error",
        ] {
            assert_eq!(causes(&layer(text, None)), GONE, "{text}");
        }
        let worker = layer("buffer's worker closed unexpectedly", None);
        assert_eq!(causes(&layer("transport error", Some(worker))), GONE);
        assert_eq!(causes_after("", None), "");
        assert_eq!(causes_after("Service was not ready: no leader", None), "no leader");
    }
}
