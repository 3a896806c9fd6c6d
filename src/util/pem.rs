//! What a file holds in place of the PEM blocks that were looked for.

use rustls::pki_types::pem;
use std::path::Path;

/// Bytes of a file that are looked at.
const LOOKED_AT: usize = 1 << 20;

/// Why no `wanted` was found in the file at `path`: what the system says, or what the file holds.
pub fn trouble(path: &Path, wanted: &str, error: &pem::Error) -> String {
    match error {
        pem::Error::Io(error) => super::access::explain(error, path),
        pem::Error::NoItemsFound => {
            let content = std::fs::read(path).unwrap_or_default();
            format!("{wanted} is needed, and {}", found(&content))
        }
        other => format!("{wanted} is needed, and the file is damaged: {other}"),
    }
}

/// What a file holds: the end of a sentence.
pub fn found(content: &[u8]) -> String {
    let text = String::from_utf8_lossy(&content[..content.len().min(LOOKED_AT)]);
    let labels = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----"));
    let mut labels: Vec<_> = labels.map(str::to_lowercase).collect();
    labels.dedup();
    match (labels.is_empty(), content) {
        (false, _) => format!("the file holds: {}", labels.join(", ")),
        (true, []) => "the file is empty".to_owned(),
        // A sequence of ASN.1.
        (true, [0x30, ..]) => {
            "the file is in DER: convert it with `openssl x509 -inform DER` or `openssl pkey`".to_owned()
        }
        (true, _) => "the file has no line `-----BEGIN …-----`: is it another file?".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_instead_is_named() {
        let key = "x\n-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n";
        assert_eq!(found(key.as_bytes()), "the file holds: private key");
        assert_eq!(found(b""), "the file is empty");
        assert!(found(b"\x30\x82").contains("DER"));
        assert!(found(b"hello").contains("BEGIN"));
        let none = trouble(Path::new("/nonexistent/x"), "a certificate", &pem::Error::NoItemsFound);
        assert_eq!(none, "a certificate is needed, and the file is empty");
    }
}
