//! Which proxy a request goes through. The rules are those of Go's clients (golang.org/x/net/http/httpproxy), which the
//! same variables configure in a pod.

use http::Uri;
use std::fmt;
use std::net::IpAddr;

/// The variables of the environment that name proxies.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyVariables {
    /// `HTTP_PROXY`: for URLs with `http`.
    http: String,
    /// `HTTPS_PROXY`: for URLs with `https`.
    https: String,
    /// `NO_PROXY`: hosts that are reached without a proxy, separated by commas: addresses, networks in CIDR notation, and
    /// domains, all but networks with an optional port; `*` for all hosts.
    no_proxy: String,
}

/// A URL that names no proxy.
#[derive(Debug, thiserror::Error)]
#[error("the address of the proxy is not a URL with http, https or socks5 and a host")]
pub struct BadProxy;

/// The protocol between client and proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    Socks5,
}

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Proxy {
    pub(super) scheme: Scheme,
    /// A name or an address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// User and password.
    pub(super) credentials: Option<(String, String)>,
}

// === impl ProxyVariables ===

impl ProxyVariables {
    /// Reads the variables; each name in upper case takes precedence over the name in lower case.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Self {
        let of = |name: &str| {
            let value = variable(name).filter(|value| !value.is_empty());
            value.or_else(|| variable(&name.to_lowercase())).unwrap_or_default()
        };
        Self {
            http: of("HTTP_PROXY"),
            https: of("HTTPS_PROXY"),
            no_proxy: of("NO_PROXY"),
        }
    }

    /// The proxy for requests to `target`.
    pub(super) fn proxy(&self, target: &Uri) -> Result<Option<Proxy>, BadProxy> {
        let (proxy, port) = match target.scheme_str() {
            Some("https") => (&self.https, 443),
            _ => (&self.http, 80),
        };
        let host = target.host().unwrap_or_default();
        if proxy.trim().is_empty() || self.exempts(host, target.port_u16().unwrap_or(port)) {
            return Ok(None);
        }
        // Without a scheme, the protocol is http.
        let url = match proxy.contains("://") {
            true => proxy.trim().to_owned(),
            false => format!("http://{}", proxy.trim()),
        };
        Proxy::parse(&url).map(Some)
    }

    /// Whether `host` is reached without a proxy. This machine always is.
    fn exempts(&self, host: &str, port: u16) -> bool {
        let host = without_brackets(host).to_lowercase();
        let ip = host.parse::<IpAddr>().ok().map(|ip| ip.to_canonical());
        if host == "localhost" || ip.is_some_and(|ip| ip.is_loopback()) {
            return true;
        }
        let mut entries = self.no_proxy.split(',').map(|entry| entry.trim().to_lowercase());
        entries.any(|entry| match ip {
            _ if entry == "*" => true,
            Some(ip) if entry.contains('/') => is_in_network(ip, &entry),
            ip => {
                let (named, at) = split_port(&entry);
                at.is_none_or(|at| at == port) && is_named(named, &host, ip)
            }
        })
    }
}

impl fmt::Debug for ProxyVariables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The URLs may hold passwords.
        f.debug_struct("ProxyVariables")
            .field("no_proxy", &self.no_proxy)
            .finish_non_exhaustive()
    }
}

/// Whether an entry without port names the host: the same address, the same domain, or a domain above. An entry that
/// begins with a dot names the domains below only.
fn is_named(entry: &str, host: &str, ip: Option<IpAddr>) -> bool {
    if let Ok(named) = entry.parse::<IpAddr>() {
        return ip == Some(named.to_canonical());
    }
    let entry = match entry.strip_prefix("*.") {
        Some(_) => &entry[1..],
        None => entry,
    };
    match entry.starts_with('.') {
        _ if entry.is_empty() => false,
        true => host.ends_with(entry),
        false => host == entry || host.strip_suffix(entry).is_some_and(|rest| rest.ends_with('.')),
    }
}

/// Splits `host:port` and `[address]:port`. An address without brackets has no port.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    let is_address = without_brackets(entry).parse::<IpAddr>().is_ok();
    match entry.rsplit_once(':').filter(|_| !is_address) {
        Some((host, port)) if port.parse::<u16>().is_ok() => (without_brackets(host), port.parse().ok()),
        _ => (without_brackets(entry), None),
    }
}

/// Whether `network`, as `10.0.0.0/8`, contains the address.
fn is_in_network(ip: IpAddr, network: &str) -> bool {
    let Some((base, length)) = network.split_once('/') else {
        return false;
    };
    let (Ok(base), Ok(length)) = (base.parse::<IpAddr>(), length.parse::<u32>()) else {
        return false;
    };
    match (base, ip) {
        (IpAddr::V4(base), IpAddr::V4(ip)) if length <= 32 => {
            let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
            base.to_bits() & mask == ip.to_bits() & mask
        }
        (IpAddr::V6(base), IpAddr::V6(ip)) if length <= 128 => {
            let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
            base.to_bits() & mask == ip.to_bits() & mask
        }
        _ => false,
    }
}

fn without_brackets(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

// === impl Proxy ===

impl Proxy {
    /// Parses a URL.
    pub(super) fn parse(url: &str) -> Result<Self, BadProxy> {
        let uri: Uri = url.trim().parse().map_err(|_| BadProxy)?;
        let (scheme, port) = match uri.scheme_str() {
            Some("http") => (Scheme::Http, 80),
            Some("https") => (Scheme::Https, 443),
            Some("socks5" | "socks5h") => (Scheme::Socks5, 1080),
            _ => return Err(BadProxy),
        };
        let authority = uri.authority().ok_or(BadProxy)?;
        let credentials = authority.as_str().rsplit_once('@').map(|(userinfo, _)| {
            let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
            (percent_decoded(user), percent_decoded(password))
        });
        Ok(Self {
            scheme,
            host: without_brackets(authority.host()).to_owned(),
            port: authority.port_u16().unwrap_or(port),
            credentials,
        })
    }

    /// The host and port, for a URL.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Without user and password.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
            Scheme::Socks5 => "socks5",
        };
        write!(f, "{scheme}://{}", self.authority())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Replaces `%40` and the like. Anything else after a percent sign stays.
fn percent_decoded(text: &str) -> String {
    let (mut bytes, mut rest) = (vec![], text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|b| char::from(*b).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high * 16 + low) as u8);
                rest = &after[2..];
            }
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(pairs: &[(&str, &str)]) -> ProxyVariables {
        ProxyVariables::read(|name| {
            let found = pairs.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    /// Whether `target` is reached through the proxy although `NO_PROXY` has this value.
    fn is_proxied(no_proxy: &str, target: &str) -> bool {
        let variables = variables(&[("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", no_proxy)]);
        variables.proxy(&target.parse().unwrap()).unwrap().is_some()
    }

    /// Case B2 from the field.
    #[test]
    fn no_proxy_exempts_what_it_exempts_in_go() {
        let cases = [
            // Addresses and networks.
            ("10.0.0.1", "https://10.0.0.1:6443", false),
            ("10.0.0.1", "https://10.0.0.2:6443", true),
            ("10.0.0.1:6443", "https://10.0.0.1:6443", false),
            ("10.0.0.1:443", "https://10.0.0.1:6443", true),
            ("10.96.0.0/12", "https://10.96.0.1", false),
            ("10.96.0.0/12", "https://10.112.0.1", true),
            ("0.0.0.0/0", "https://1.2.3.4", false),
            ("10.0.0.0/33, 10.0.0.0/x", "https://10.0.0.1", true),
            ("fd00::/8", "https://[fd12::1]:6443", false),
            ("fd00::/8", "https://[fe80::1]:6443", true),
            ("fd00::1", "https://[fd00::1]:6443", false),
            ("[fd00::1]:6443", "https://[fd00::1]:6443", false),
            ("[fd00::1]:443", "https://[fd00::1]:6443", true),
            ("::ffff:10.0.0.1", "https://10.0.0.1", false),
            // Domains.
            ("example.org", "https://example.org:6443", false),
            ("example.org", "https://api.example.org", false),
            ("example.org", "https://myexample.org", true),
            (".example.org", "https://api.example.org", false),
            (".example.org", "https://example.org", true),
            ("*.example.org", "https://api.example.org", false),
            ("EXAMPLE.org", "https://API.Example.ORG", false),
            ("example.org:443", "https://example.org", false),
            ("example.org:443", "https://example.org:6443", true),
            (".svc,.cluster.local", "https://kubernetes.default.svc", false),
            ("kubernetes.default.svc", "https://10.96.0.1", true),
            // Everything, nothing, and what cannot be read.
            ("*", "https://example.org", false),
            ("", "https://example.org", true),
            (" , x, example.org ,", "https://example.org", false),
            ("http://example.org", "https://example.org", true),
            (":443", "https://example.org", true),
            // This machine.
            ("", "https://localhost:6443", false),
            ("", "https://127.0.0.1:6443", false),
            ("", "https://[::1]:6443", false),
        ];
        for (no_proxy, target, expected) in cases {
            assert_eq!(is_proxied(no_proxy, target), expected, "{no_proxy:?} {target}");
        }
    }

    #[test]
    fn the_scheme_of_the_target_decides_which_variable_counts() {
        let both = variables(&[("https_proxy", "proxy:3128"), ("HTTP_PROXY", "http://plain")]);
        let proxy = |target: &str| both.proxy(&target.parse().unwrap()).unwrap().unwrap().to_string();
        assert_eq!(proxy("https://example.org"), "http://proxy:3128");
        assert_eq!(proxy("http://example.org"), "http://plain:80");
        let upper = variables(&[("HTTPS_PROXY", ""), ("https_proxy", "http://lower")]);
        let target = "https://example.org".parse().unwrap();
        assert_eq!(upper.proxy(&target).unwrap().unwrap().to_string(), "http://lower:80");
        assert_eq!(variables(&[]).proxy(&target).unwrap(), None);
        assert!(variables(&[("HTTPS_PROXY", "http://")]).proxy(&target).is_err());
    }

    #[test]
    fn a_proxy_is_parsed_and_shown_without_its_password() {
        let proxy = Proxy::parse("https://ann:p%40ss%3a%zz@[fd00::1]").unwrap();
        let credentials = Some(("ann".to_owned(), "p@ss:%zz".to_owned()));
        assert_eq!(
            (proxy.scheme, &*proxy.host, proxy.port),
            (Scheme::Https, "fd00::1", 443)
        );
        assert_eq!(proxy.credentials, credentials);
        assert_eq!(
            format!("{proxy} {proxy:?}"),
            "https://[fd00::1]:443 https://[fd00::1]:443"
        );
        assert_eq!(Proxy::parse("socks5://p").unwrap().port, 1080);
        for bad in ["ftp://p", "p:1", "", "socks5:", "socks4://p"] {
            assert!(Proxy::parse(bad).is_err(), "{bad}");
        }
        let shown = format!("{:?}", variables(&[("HTTPS_PROXY", "http://ann:secret@p")]));
        assert!(!shown.contains("secret"), "{shown}");
    }
}
