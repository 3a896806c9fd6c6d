//! The main part of a page: HTML in pieces, of which some are live. Characters that nobody sees are shown as escapes, since
//! names of a remote cluster could look like others with them.

use crate::util::words::visible;
use maud::{Markup, PreEscaped};
use std::borrow::Cow;
use std::hash::{DefaultHasher, Hash, Hasher};

/// The main part of a page. All pieces one after the other are its HTML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Main {
    pub(super) pieces: Vec<Piece>,
}

/// A piece of HTML.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Piece {
    /// HTML that stays as it is as long as the page has the same pieces. It may open an element that a later piece
    /// closes.
    Fixed(String),
    /// One element with this id, which is replaced when it changes.
    Live { id: String, html: String },
}

// === impl Piece ===

impl Piece {
    fn html(&self) -> &str {
        match self {
            Self::Fixed(html) | Self::Live { html, .. } => html,
        }
    }
}

// === impl Main ===

impl Main {
    /// Adds HTML that does not change.
    pub(super) fn fixed(&mut self, markup: Markup) -> &mut Self {
        self.raw(&visible(&markup.0))
    }

    /// Adds HTML of our own that opens or closes an element.
    pub(super) fn raw(&mut self, html: &str) -> &mut Self {
        match self.pieces.last_mut() {
            Some(Piece::Fixed(last)) => *last += html,
            _ => self.pieces.push(Piece::Fixed(html.to_owned())),
        }
        self
    }

    /// Adds an element that may change. Its markup has this id.
    pub(super) fn live(&mut self, id: impl Into<String>, markup: Markup) -> &mut Self {
        let html = match visible(&markup.0) {
            Cow::Owned(html) => html,
            Cow::Borrowed(_) => markup.0,
        };
        self.pieces.push(Piece::Live { id: id.into(), html });
        self
    }

    /// All of it.
    pub(super) fn html(&self) -> Markup {
        PreEscaped(self.pieces.iter().map(Piece::html).collect())
    }

    /// Changes with everything in it.
    pub(super) fn version(&self) -> u64 {
        hash(&self.pieces)
    }

    /// Changes with what cannot be replaced piece by piece.
    pub(super) fn shape(&self) -> u64 {
        let shape = |piece: &Piece| match piece {
            Piece::Fixed(html) => hash(html),
            Piece::Live { id, .. } => hash(id),
        };
        hash(&self.pieces.iter().map(shape).collect::<Vec<_>>())
    }
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use maud::html;

    #[test]
    fn a_changed_piece_changes_the_version_and_another_piece_the_shape() {
        let main = |text: &str, ids: &[&str]| {
            let mut main = Main::default();
            main.raw("<ul>");
            for id in ids {
                main.live(*id, html! { li id=(id) { (text) } });
            }
            main.raw("</ul>").fixed(html! { p { "end" } });
            main
        };
        let before = main("a", &["x"]);
        assert_eq!(before.html().0, r#"<ul><li id="x">a</li></ul><p>end</p>"#);
        assert_eq!(before.pieces.len(), 3);
        let changed = main("<b>", &["x"]);
        assert_ne!(changed.version(), before.version());
        assert_eq!(changed.shape(), before.shape());
        assert!(changed.html().0.contains("&lt;b&gt;"));
        assert_ne!(main("a", &["x", "y"]).shape(), before.shape());
        let turned = main("a\u{202e}b", &["x"]).html().0;
        assert!(turned.contains(">a\\u{202e}b<"), "{turned}");
    }
}
