//! Requests and trailers from decoded fields (RFC 9113, sections 8.1 to 8.3).

use super::hpack::Name;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Uri, Version};

/// The fields of a block, as they are decoded.
#[derive(Debug)]
pub(super) struct Fields {
    kind: Kind,
    method: Option<Method>,
    scheme: bool,
    authority: Option<Bytes>,
    path: Option<PathAndQuery>,
    headers: HeaderMap,
    size: usize,
    max: usize,
    malformed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Request,
    Trailers,
}

/// Why a block is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// The fields are longer than the limit.
    TooLong,
    Malformed,
}

/// A request without its body.
#[derive(Debug)]
pub(super) struct Opening {
    pub request: Request<()>,
    pub content_length: Option<u64>,
}

impl Fields {
    pub fn of_request(max: u32) -> Self {
        Self::new(Kind::Request, max)
    }

    pub fn of_trailers(max: u32) -> Self {
        Self::new(Kind::Trailers, max)
    }

    fn new(kind: Kind, max: u32) -> Self {
        Self {
            kind,
            method: None,
            scheme: false,
            authority: None,
            path: None,
            headers: HeaderMap::new(),
            size: 0,
            max: max as usize,
            malformed: false,
        }
    }

    /// Takes the next field. Fields beyond the limit are dropped.
    pub fn add(&mut self, name: &Name, value: &Bytes, size: usize) {
        self.size += size;
        if self.size <= self.max && !self.malformed {
            self.malformed = !self.accept(name, value);
        }
    }

    /// Returns false if the field must not be there.
    fn accept(&mut self, name: &Name, value: &Bytes) -> bool {
        if let Name::Header(name) = name {
            return self.accept_header(name, value);
        }
        if self.kind == Kind::Trailers || !self.headers.is_empty() {
            return false;
        }
        match name {
            Name::Method => match Method::from_bytes(value) {
                Ok(method) => self.method.replace(method).is_none(),
                Err(_) => false,
            },
            Name::Scheme => !std::mem::replace(&mut self.scheme, true),
            Name::Authority => self.authority.replace(value.clone()).is_none(),
            Name::Path => match PathAndQuery::from_maybe_shared(value.clone()) {
                Ok(path) if !value.is_empty() => self.path.replace(path).is_none(),
                _ => false,
            },
            Name::Header(_) | Name::Status | Name::Invalid => false,
        }
    }

    fn accept_header(&mut self, name: &HeaderName, value: &Bytes) -> bool {
        let of_connection = match *name {
            ref name if *name == header::TE => value != "trailers",
            ref name => {
                [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE].contains(name)
                    || ["keep-alive", "proxy-connection"].contains(&name.as_str())
            }
        };
        if of_connection {
            return false;
        }
        match HeaderValue::from_maybe_shared(value.clone()) {
            Ok(value) => self.headers.try_append(name.clone(), value).is_ok(),
            Err(_) => false,
        }
    }

    /// The trailers of a request.
    pub fn trailers(self) -> Result<HeaderMap, Refusal> {
        self.check()?;
        Ok(self.headers)
    }

    fn check(&self) -> Result<(), Refusal> {
        match self.size > self.max {
            true => Err(Refusal::TooLong),
            false if self.malformed => Err(Refusal::Malformed),
            false => Ok(()),
        }
    }

    /// The request of an opening block. As in HTTP/1, the URI is the path, and the authority is the header `Host`, whatever
    /// bytes it has: clients of etcd send `#initially=[http://127.0.0.1:2379]`, several joined endpoints, or the path of a
    /// socket, and etcd ignores it.
    pub fn request(mut self) -> Result<Opening, Refusal> {
        self.check()?;
        let method = self.method.ok_or(Refusal::Malformed)?;
        let path = match (method == Method::CONNECT, self.path, self.scheme) {
            (false, Some(path), true) => path,
            (true, None, false) if self.authority.is_some() => PathAndQuery::from_static("/"),
            _ => return Err(Refusal::Malformed),
        };
        if let Some(authority) = self.authority
            && !self.headers.contains_key(header::HOST)
            && let Ok(host) = HeaderValue::from_maybe_shared(authority)
        {
            let inserted = self.headers.try_insert(header::HOST, host);
            inserted.map_err(|_| Refusal::TooLong)?;
        }
        let content_length = content_length(&self.headers)?;
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from(path);
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Ok(Opening {
            request,
            content_length,
        })
    }
}

/// The length of the body, which all fields that name it agree on.
fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Refusal> {
    let mut length = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        let digits = value.as_bytes().iter().all(u8::is_ascii_digit);
        let number = value
            .to_str()
            .ok()
            .filter(|_| digits)
            .and_then(|text| text.parse().ok());
        match (number, length) {
            (Some(number), None) => length = Some(number),
            (Some(number), Some(other)) if number == other => {}
            _ => return Err(Refusal::Malformed),
        }
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(mut fields: Fields, list: &[(&str, &str)]) -> Fields {
        for (name, value) in list {
            let size = name.len() + value.len() + 32;
            fields.add(
                &Name::read(name.as_bytes()),
                &Bytes::copy_from_slice(value.as_bytes()),
                size,
            );
        }
        fields
    }

    const POST: [(&str, &str); 3] = [(":method", "POST"), (":scheme", "http"), (":path", "/a/B?c")];

    fn request(more: &[(&str, &str)]) -> Result<Opening, Refusal> {
        read(Fields::of_request(1000), &[&POST[..], more].concat()).request()
    }

    #[test]
    fn a_request_has_its_path_and_its_authority_as_host() {
        for authority in [
            "example.com:1",
            "#initially=[http://127.0.0.1:2379]",
            "/run/etcd.sock",
            "",
        ] {
            let list = [
                &[(":authority", authority)][..],
                &POST,
                &[("te", "trailers"), ("a", "1"), ("a", "2")],
            ]
            .concat();
            let Opening { request, .. } = read(Fields::of_request(1000), &list).request().unwrap();
            assert_eq!(request.uri().to_string(), "/a/B?c");
            assert_eq!((request.method(), request.version()), (&Method::POST, Version::HTTP_2));
            assert_eq!(request.headers()[header::HOST], authority);
            assert_eq!(request.headers().get_all("a").iter().count(), 2);
        }
        let opening = request(&[("host", "first")]).unwrap();
        assert_eq!(opening.request.headers()[header::HOST], "first");
    }

    #[test]
    fn malformed_requests_are_refused() {
        let refused = |list: &[(&str, &str)]| read(Fields::of_request(1000), list).request().unwrap_err();
        for (at, field) in POST.into_iter().enumerate() {
            let mut list = POST.to_vec();
            list.remove(at);
            assert_eq!(refused(&list), Refusal::Malformed, "without {}", field.0);
            list.extend([field; 2]);
            assert_eq!(refused(&list), Refusal::Malformed, "twice {}", field.0);
        }
        let late = [&[("a", "b")][..], &POST].concat();
        assert_eq!(refused(&late), Refusal::Malformed, "a pseudo-header after a header");
        for more in [
            ("A", "b"),
            (":status", "200"),
            ("", ""),
            ("connection", "close"),
            ("te", "gzip"),
            ("transfer-encoding", "chunked"),
            ("keep-alive", "1"),
            ("proxy-connection", "1"),
            ("upgrade", "h3"),
            ("a", "new\nline"),
            ("content-length", "1x"),
            ("content-length", "+1"),
        ] {
            assert_eq!(request(&[more]).unwrap_err(), Refusal::Malformed, "{more:?}");
        }
        let differing = [("content-length", "1"), ("content-length", "2")];
        assert_eq!(request(&differing).unwrap_err(), Refusal::Malformed);
        let empty_path = [(":method", "GET"), (":scheme", "http"), (":path", "")];
        assert_eq!(refused(&empty_path), Refusal::Malformed);
    }

    #[test]
    fn the_length_of_a_body_is_known() {
        assert_eq!(request(&[]).unwrap().content_length, None);
        assert_eq!(
            request(&[("content-length", "12"); 2]).unwrap().content_length,
            Some(12)
        );
    }

    #[test]
    fn fields_over_the_limit_are_dropped_and_refused() {
        let long = "x".repeat(900);
        let list = [&POST[..], &[("long", &long), ("a", "b")]].concat();
        let fields = read(Fields::of_request(1000), &list);
        assert!(fields.headers.is_empty());
        assert_eq!(fields.request().unwrap_err(), Refusal::TooLong);
    }

    #[test]
    fn trailers_have_no_pseudo_headers() {
        let trailers = |list: &[(&str, &str)]| read(Fields::of_trailers(1000), list).trailers();
        assert_eq!(trailers(&[("a", "b")]).unwrap()["a"], "b");
        assert_eq!(trailers(&[(":path", "/")]), Err(Refusal::Malformed));
    }

    #[test]
    fn connect_names_an_authority_alone() {
        let connect = |list: &[(&str, &str)]| read(Fields::of_request(1000), list).request();
        let good = connect(&[(":method", "CONNECT"), (":authority", "a:1")]).unwrap();
        assert_eq!(good.request.uri(), "/");
        assert!(connect(&[(":method", "CONNECT")]).is_err());
        assert!(connect(&[(":method", "CONNECT"), (":authority", "a:1"), (":path", "/")]).is_err());
    }
}
