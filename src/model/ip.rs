//! Addresses as Go's `net` package reads and writes them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Serialize, Serializer};
use std::net::IpAddr;

/// An address that prints as Go's `net.IP`: an IPv4-mapped address as plain IPv4, `None` as an empty string.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GoIp(pub Option<IpAddr>);

/// Go's `net.IPNet` as JSON: `{"IP":…,"Mask":…}`, with the host bits cleared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cidr {
    /// The network address.
    #[serde(rename = "IP")]
    pub ip: GoIp,
    /// The bytes of the mask in base64.
    #[serde(rename = "Mask")]
    pub mask: String,
}

impl GoIp {
    /// Parses as `net.ParseIP` does; an invalid address becomes `None`.
    pub fn parse(text: &str) -> Self {
        Self(text.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()))
    }

    /// The text; empty for `None`.
    pub fn text(self) -> String {
        self.0.map(|ip| ip.to_string()).unwrap_or_default()
    }
}

impl Serialize for GoIp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl Cidr {
    /// Parses as `net.ParseCIDR` does, and clears the host bits.
    pub fn parse(text: &str) -> Option<Self> {
        let (ip, bits) = text.split_once('/')?;
        let (ip, bits) = (ip.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?);
        let (ip, mask) = match ip {
            IpAddr::V4(ip) if bits <= 32 => {
                let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
                (
                    IpAddr::from((u32::from(ip) & mask).to_be_bytes()),
                    mask.to_be_bytes().to_vec(),
                )
            }
            IpAddr::V6(ip) if bits <= 128 => {
                let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
                (
                    IpAddr::from((u128::from(ip) & mask).to_be_bytes()),
                    mask.to_be_bytes().to_vec(),
                )
            }
            _ => return None,
        };
        Some(Self {
            ip: GoIp(Some(ip.to_canonical())),
            mask: STANDARD.encode(mask),
        })
    }

    /// Whether the network is IPv4 or IPv4-mapped.
    pub fn is_v4(&self) -> bool {
        matches!(self.ip.0, Some(IpAddr::V4(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_and_print_as_in_go() {
        assert_eq!(GoIp::parse("FD00:0:0::A").text(), "fd00::a");
        assert_eq!(GoIp::parse("::ffff:1.2.3.4").text(), "1.2.3.4");
        for bad in ["", "bad", "10.0.0.01", "10.0.0.0/8", "fe80::1%eth0"] {
            assert_eq!(GoIp::parse(bad).text(), "", "{bad}");
        }
    }

    #[test]
    fn host_bits_of_a_cidr_are_cleared() {
        let v4 = Cidr::parse("10.244.0.5/24").unwrap();
        assert_eq!(
            (v4.ip.text().as_str(), v4.mask.as_str(), v4.is_v4()),
            ("10.244.0.0", "////AA==", true)
        );
        let v6 = Cidr::parse("fd00::5/64").unwrap();
        assert_eq!(
            (v6.ip.text().as_str(), v6.mask.as_str()),
            ("fd00::", "//////////8AAAAAAAAAAA==")
        );
        assert!(Cidr::parse("0.0.0.0/0").is_some() && Cidr::parse("::/0").is_some());
        for bad in ["bad", "10.0.0.0", "10.0.0.0/33", "fd00::/129", "10.0.0.0/-1"] {
            assert_eq!(Cidr::parse(bad), None, "{bad}");
        }
    }
}
