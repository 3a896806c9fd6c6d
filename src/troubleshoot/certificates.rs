//! Prints certificates.

use super::files::Material;
use super::report::Report;
use super::{verify, words};
use rustls::pki_types::CertificateDer;
use std::fmt::Write as _;
use std::io;
use std::net::IpAddr;
use x509_parser::der_parser::asn1_rs::{Any, Oid, ToDer};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};
use x509_parser::x509::X509Name;

/// An attribute of a name.
struct Attribute {
    oid: &'static str,
    short: &'static str,
}

const fn attribute(oid: &'static str, short: &'static str) -> Attribute {
    Attribute { oid, short }
}

/// The attributes that have short names, in the order of Go's `pkix.Name` rather than of the certificate. All other
/// attributes come after them.
const ATTRIBUTES: &[Attribute] = &[
    attribute("2.5.4.5", "SERIALNUMBER"),
    attribute("2.5.4.3", "CN"),
    attribute("2.5.4.17", "POSTALCODE"),
    attribute("2.5.4.9", "STREET"),
    attribute("2.5.4.8", "ST"),
    attribute("2.5.4.7", "L"),
    attribute("2.5.4.11", "OU"),
    attribute("2.5.4.10", "O"),
    attribute("2.5.4.6", "C"),
];

/// Prints the certificates of a configuration: CAs and client certificates.
pub(super) fn report(material: &Material, report: &mut Report<'_>) -> io::Result<()> {
    match &material.roots {
        None => report.line("⚠️ Root CA unset: using system pool")?,
        Some(roots) if roots.is_empty() => {
            report.line("❌ Failed to retrieve Root CA path: no certificate found")?;
        }
        Some(roots) => {
            report.line("✅ TLS Root CA certificates:")?;
            for root in roots {
                report_one(root, &mut report.nested(3))?;
            }
        }
    }
    let chain = material.identity.as_ref().map(|identity| &identity.cert[..]);
    let Some([leaf, intermediates @ ..]) = chain else {
        return report.line("⚠️ No available TLS client certificates");
    };
    report.line("✅ TLS client certificates:")?;
    let mut report = report.nested(3);
    report_chain(leaf, intermediates, &mut report)?;
    if let Err(why) = verify::client(material, chain.unwrap_or_default()) {
        let text = format!(
            "⚠️ Cannot verify certificate with the configured root CAs: {}",
            words::certificate(&why)
        );
        report.nested(2).line(text)?;
    }
    Ok(())
}

/// Prints a certificate and its intermediates.
pub(super) fn report_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    report: &mut Report<'_>,
) -> io::Result<()> {
    report_one(leaf, report)?;
    if !intermediates.is_empty() {
        let mut report = report.nested(2);
        report.line("Intermediates:")?;
        for der in intermediates {
            report_one(der, &mut report)?;
        }
    }
    Ok(())
}

fn report_one(der: &CertificateDer<'_>, report: &mut Report<'_>) -> io::Result<()> {
    let cert = match X509Certificate::from_der(der) {
        Ok((_, cert)) => cert,
        Err(why) => return report.line(format_args!("❌ Failed to parse certificate: {why}")),
    };
    let serial = cert.raw_serial();
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    let serial = match &serial[zeros..] {
        [] => "00".to_owned(),
        digits => hex(digits),
    };
    report.line(format_args!("- Serial number:       {serial}"))?;
    report.line(format_args!("  Subject:             {}", name(cert.subject())))?;
    let (names, mut own_key, mut authority_key) = (alternative_names(&cert), None, None);
    for extension in cert.iter_extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) => own_key = Some(id.0),
            ParsedExtension::AuthorityKeyIdentifier(id) => authority_key = id.key_identifier.as_ref().map(|id| id.0),
            _ => {}
        }
    }
    if !names.is_empty() {
        report.line("  Subject alternative names:")?;
        for name in names {
            report.line(format_args!("  - {name}"))?;
        }
    }
    if let Some(id) = own_key.filter(|id| !id.is_empty()) {
        report.line(format_args!("  Subject key ID:      {}", hex(id)))?;
    }
    report.line(format_args!("  Issuer:              {}", name(cert.issuer())))?;
    if let Some(id) = authority_key.filter(|id| !id.is_empty()) {
        report.line(format_args!("  Authority key ID:    {}", hex(id)))?;
    }
    report.line("  Validity:")?;
    report.line(format_args!("    Not before:  {}", date(cert.validity().not_before)))?;
    report.line(format_args!("    Not after:   {}", date(cert.validity().not_after)))
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.join(":")
}

fn date(time: ASN1Time) -> String {
    match jiff::Timestamp::from_second(time.timestamp()) {
        Ok(time) => time.strftime("%Y-%m-%d %H:%M:%S +0000 UTC").to_string(),
        Err(_) => time.to_string(),
    }
}

/// The DNS names, then the URIs, then the addresses.
fn alternative_names(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = cert.subject_alternative_name() else {
        return vec![];
    };
    let names = &names.value.general_names;
    let dns = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    let addresses = names.iter().filter_map(|name| match name {
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => Some(IpAddr::from(<[u8; 4]>::try_from(*bytes).ok()?).to_string()),
            16 => Some(IpAddr::from(<[u8; 16]>::try_from(*bytes).ok()?).to_string()),
            _ => None,
        },
        _ => None,
    });
    dns.chain(uris).chain(addresses).collect()
}

/// Formats a name in DER; bytes that do not parse as a name are shown as text.
pub(super) fn name_of_der(der: &[u8]) -> String {
    match X509Name::from_der(der) {
        Ok((_, parsed)) => name(&parsed),
        Err(_) => String::from_utf8_lossy(der).into_owned(),
    }
}

/// Formats a name as Go does: RFC 4514, but in the order of [`ATTRIBUTES`].
pub(super) fn name(name: &X509Name<'_>) -> String {
    let mut known: Vec<Vec<String>> = vec![vec![]; ATTRIBUTES.len()];
    let mut others = vec![];
    for attribute in name.iter_attributes() {
        let oid = attribute.attr_type();
        match position(oid) {
            Some(at) => {
                let short = ATTRIBUTES[at].short;
                let value = match attribute.as_str() {
                    Ok(text) => escaped(text),
                    Err(_) => escaped(&String::from_utf8_lossy(attribute.as_slice())),
                };
                let values = &mut known[at];
                // Go keeps only the last common name and the last serial number.
                if matches!(short, "CN" | "SERIALNUMBER") {
                    values.clear();
                }
                values.push(format!("{short}={value}"));
            }
            None => others.push(format!("{oid}=#{}", encoded(attribute.attr_value()))),
        }
    }
    let known = known.into_iter().filter(|values| !values.is_empty());
    let known = known.map(|values| values.join("+"));
    known.chain(others.into_iter().rev()).collect::<Vec<_>>().join(",")
}

/// The position of an attribute in [`ATTRIBUTES`].
fn position(oid: &Oid<'_>) -> Option<usize> {
    let text = oid.to_id_string();
    ATTRIBUTES.iter().position(|attribute| attribute.oid == text)
}

fn encoded(value: &Any<'_>) -> String {
    let mut text = String::new();
    for byte in value.to_der_vec().unwrap_or_default() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut out = String::new();
    for (at, c) in value.chars().enumerate() {
        let special = match c {
            ',' | '+' | '"' | '\\' | '<' | '>' | ';' => true,
            ' ' => at == 0 || at == last,
            '#' => at == 0,
            _ => false,
        };
        if special {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_characters_of_names_are_escaped() {
        assert_eq!(escaped("a, b+c"), r"a\, b\+c");
        assert_eq!(escaped(" #x "), r"\ #x\ ");
        assert_eq!(escaped("#x"), r"\#x");
        assert_eq!((escaped(""), escaped(" ")), (String::new(), r"\ ".to_owned()));
    }

    #[test]
    fn names_are_in_gos_order() {
        let mut params = rcgen::DistinguishedName::new();
        params.push(rcgen::DnType::CommonName, "c");
        params.push(rcgen::DnType::CountryName, "DE");
        params.push(rcgen::DnType::OrganizationalUnitName, "x, y");
        params.push(rcgen::DnType::CustomDnType(vec![1, 2, 3, 4]), "z");
        params.push(rcgen::DnType::OrganizationName, "o");
        let mut cert = rcgen::CertificateParams::default();
        cert.distinguished_name = params;
        let key = rcgen::KeyPair::generate().unwrap();
        let der = cert.self_signed(&key).unwrap();
        let (_, parsed) = X509Certificate::from_der(der.der()).unwrap();
        assert_eq!(name(parsed.subject()), r"CN=c,OU=x\, y,O=o,C=DE,1.2.3.4=#0c017a");
        assert_eq!(name_of_der(parsed.subject().as_raw()), name(parsed.subject()));
        assert_eq!(name_of_der(b"none"), "none");
    }
}
