//! Under which names this server is itself.
//!
//! A web page can have its own name lead to this server's address (DNS rebinding), and the browser then takes the server's answers
//! for that page's. What gives it away is the `Host`. Guarantees: a request that a browser could have been made to send is served
//! only under this machine's own names, those of `admin.hosts`, and (where a token is needed) bare addresses, which nobody can
//! rebind. A request with a token in its header was not: no page knows one.

use std::net::IpAddr;

use axum::extract::Request;
use axum::http::{HeaderMap, Uri, Version, header};

/// To whom a request is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Addressed {
    /// To this server.
    Here,
    /// To a name that is not known to be this server's.
    Elsewhere,
    /// To nobody, or to several.
    Unclear,
}

/// The names.
#[derive(Debug)]
pub(super) struct Names {
    listed: Vec<String>,
    by_address: bool,
}

impl Names {
    /// `listed` beside this machine's own; `by_address`: and any address.
    pub(super) fn new(listed: Vec<String>, by_address: bool) -> Names {
        Names { listed, by_address }
    }

    pub(super) fn addressed(&self, request: &Request) -> Addressed {
        self.of(request.version(), request.uri(), request.headers())
    }

    fn of(&self, version: Version, uri: &Uri, headers: &HeaderMap) -> Addressed {
        let mut hosts = headers.get_all(header::HOST).iter();
        let host = match (hosts.next(), hosts.next()) {
            (None, None) if version > Version::HTTP_10 => return Addressed::Unclear,
            (None, _) => None,
            (Some(host), None) => match host.to_str() {
                Ok(host) => Some(host),
                Err(_) => return Addressed::Unclear,
            },
            (Some(_), Some(_)) => return Addressed::Unclear,
        };
        // A target that is a whole address says it a second time.
        let said: Vec<&str> = uri.authority().map(|of| of.as_str()).into_iter().chain(host).collect();
        if !said.is_empty() && said.iter().all(|host| self.is_ours(host)) {
            Addressed::Here
        } else {
            Addressed::Elsewhere
        }
    }

    fn is_ours(&self, host: &str) -> bool {
        is_loopback(host) || self.is_listed(name(host)) || (self.by_address && name(host).parse::<IpAddr>().is_ok())
    }

    fn is_listed(&self, name: &str) -> bool {
        // A name may be written with the root's dot.
        let name = name.strip_suffix('.').unwrap_or(name);
        self.listed.iter().any(|listed| listed.eq_ignore_ascii_case(name))
    }
}

/// The name in a page's address.
pub(super) fn of_url(url: &str) -> Option<String> {
    let host = url.split_once("://")?.1.split('/').next()?;
    Some(name(host).to_owned()).filter(|name| !name.is_empty())
}

/// Without the port.
fn name(host: &str) -> &str {
    match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |(name, _)| name),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    }
}

/// `localhost`, `127.0.0.1:8080`, `[::1]:8080`.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = name(host);
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in ["localhost", "LOCALHOST:1", "127.0.0.1:8080", "127.1.2.3", "[::1]:8080"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "example.org", "localhost.example.org:80", "10.0.0.1:8080", "[fe80::1]:80", "127.0.0.1.nip.io"]
        {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn where_people_find_the_page_is_ours() {
        for (url, expected) in [
            ("https://relay.example/", Some("relay.example")),
            ("http://relay.example:8080", Some("relay.example")),
            ("https://[2001:db8::1]:8443/x", Some("2001:db8::1")),
            ("", None),
        ] {
            assert_eq!(of_url(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn a_name_is_ours_if_it_is_listed_and_an_address_where_tokens_are_needed() {
        let (open, with_tokens) =
            (Names::new(vec!["relay.example".into()], false), Names::new(vec!["relay.example".into()], true));
        for host in ["relay.example", "RELAY.example:443", "relay.example.:8080", "localhost"] {
            assert!(open.is_ours(host) && with_tokens.is_ours(host), "{host}");
        }
        for host in ["", "relay.example.evil.org", "xrelay.example", "relay", "relay.example@evil.org", "0x0a010203"] {
            assert!(!open.is_ours(host) && !with_tokens.is_ours(host), "{host}");
        }
        for address in ["10.1.2.3:8080", "[2001:db8::1]:8080", "192.168.0.1"] {
            assert!(!open.is_ours(address) && with_tokens.is_ours(address), "{address}");
        }
    }

    #[test]
    fn whoever_names_nobody_or_several_is_not_understood() {
        let of = |version, uri: &str, hosts: &[&'static str]| {
            let headers: HeaderMap =
                hosts.iter().map(|host| (header::HOST, axum::http::HeaderValue::from_static(host))).collect();
            is(version, uri, &headers)
        };
        fn is(version: Version, uri: &str, headers: &HeaderMap) -> Addressed {
            Names::new(vec![], false).of(version, &uri.parse().unwrap_or_default(), headers)
        }
        assert_eq!(of(Version::HTTP_11, "/", &["localhost"]), Addressed::Here);
        assert_eq!(of(Version::HTTP_11, "/", &[]), Addressed::Unclear);
        assert_eq!(of(Version::HTTP_11, "/", &["localhost", "localhost"]), Addressed::Unclear);
        assert_eq!(of(Version::HTTP_10, "/", &[]), Addressed::Elsewhere);
        assert_eq!(of(Version::HTTP_11, "http://evil.example/", &["localhost"]), Addressed::Elsewhere);
        assert_eq!(of(Version::HTTP_11, "http://localhost/", &["evil.example"]), Addressed::Elsewhere);
        assert_eq!(of(Version::HTTP_11, "http://localhost/", &["localhost"]), Addressed::Here);
    }
}
