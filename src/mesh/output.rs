//! The lines that a command prints while it works.

/// Receives lines for the operator.
pub trait Output: Send + Sync {
    /// Prints one line; `text` has no newline at its end.
    fn line(&self, text: &str);

    /// Prints a document that another program may read: manifests, values.
    fn document(&self, text: &str) {
        self.line(text.trim_end());
    }
}

/// Prints nothing.
pub struct Silent;

impl Output for Silent {
    fn line(&self, _: &str) {}
}

/// Keeps the lines, for tests.
#[cfg(test)]
#[derive(Default)]
pub struct Recorded(parking_lot::Mutex<Vec<String>>);

#[cfg(test)]
impl Recorded {
    pub fn lines(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}

#[cfg(test)]
impl Output for Recorded {
    fn line(&self, text: &str) {
        self.0.lock().push(text.to_owned());
    }
}
