//! TLS to the databases: what is not as it must be, in an operator's words.
//!
//! The handshake itself is sqlx's, with rustls. Guarantees: a certificate that is not accepted, a server without TLS and a file that
//! cannot be used are each told with what is wrong, what mends it and a stable code; never with a password. Does not tell the
//! connection lost in the midst of a handshake from any other that was lost.

use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use chrono::DateTime;
use sqlx::postgres::{PgConnectOptions, PgSslMode};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, RootCertStore};

use crate::config::DatabaseUrl;

/// Why a database is not connected to over TLS. It does not mend itself: somebody renews a certificate, or mends a file or a URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Stable: all are listed in the operations guide.
    pub code: &'static str,
    /// What is wrong; says nothing of which database it is.
    pub what: String,
    /// What mends it.
    pub remedy: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {} ({})", self.what, self.remedy, self.code)
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    fn new(code: &'static str, what: impl Into<String>, remedy: impl Into<String>) -> Refusal {
        Refusal { code, what: what.into(), remedy: remedy.into() }
    }
}

impl From<Refusal> for sqlx::Error {
    fn from(refusal: Refusal) -> sqlx::Error {
        sqlx::Error::Tls(Box::new(refusal))
    }
}

/// What stood in the way of TLS, if that is what the error is about. A connection that was cut is none: it may come again.
pub fn refusal(error: &sqlx::Error) -> Option<Refusal> {
    match error {
        sqlx::Error::Io(error) => of_rustls(error.get_ref()?.downcast_ref()?),
        sqlx::Error::Tls(error) => {
            if let Some(refusal) = error.downcast_ref::<Refusal>() {
                return Some(refusal.clone());
            }
            error.downcast_ref().and_then(of_rustls).or_else(|| {
                Some(match error.to_string() {
                    text if text.contains("does not support TLS") => Refusal::new(
                        "tls.missing",
                        "the server does not offer TLS, which the URL's sslmode asks for",
                        "turn it on there (ssl = on, ssl_cert_file, ssl_key_file), or see whether host and port are a pooler's without TLS",
                    ),
                    text => Refusal::new("tls.handshake", format!("TLS is not possible: {text}"), HANDSHAKE),
                })
            })
        }
        _ => None,
    }
}

const HANDSHAKE: &str = "see whether host and port of the URL are the database's, and speak TLS 1.2 or later";

fn of_rustls(error: &Error) -> Option<Refusal> {
    use AlertDescription as Alert;
    match error {
        Error::InvalidCertificate(error) => Some(of_certificate(error)),
        Error::AlertReceived(
            alert @ (Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::UnsupportedCertificate
            | Alert::AccessDenied),
        ) => Some(Refusal::new(
            "tls.client",
            format!("the server refuses the relay's own certificate ({alert:?})"),
            "give the URL sslcert and sslkey, of an authority that the server's ssl_ca_file names",
        )),
        Error::InvalidMessage(_) | Error::PeerIncompatible(_) | Error::AlertReceived(Alert::ProtocolVersion) => {
            Some(Refusal::new("tls.handshake", format!("TLS is not possible with what answers ({error})"), HANDSHAKE))
        }
        // What is left may be a network that cuts or garbles: it is tried again.
        _ => None,
    }
}

fn of_certificate(error: &CertificateError) -> Refusal {
    use CertificateError as E;
    const RENEW: &str = "renew it on the server, which reads it again at SELECT pg_reload_conf()";
    match error {
        E::UnknownIssuer | E::BadSignature => Refusal::new(
            "tls.authority",
            "the server's certificate is signed by no authority that is trusted here",
            "let the URL's sslrootcert name the file with the certificate of the authority that signed it",
        ),
        E::NotValidForName => of_name(None, &[]),
        E::NotValidForNameContext { expected, presented } => of_name(Some(&expected.to_str()), presented),
        E::Expired => Refusal::new("tls.expired", "the server's certificate has expired", RENEW),
        E::ExpiredContext { not_after, .. } => {
            Refusal::new("tls.expired", format!("the server's certificate expired at {}", time(*not_after)), RENEW)
        }
        E::NotValidYet | E::NotValidYetContext { .. } => {
            let from = match error {
                E::NotValidYetContext { not_before, .. } => format!(" before {}", time(*not_before)),
                _ => " yet".to_owned(),
            };
            Refusal::new(
                "tls.expired",
                format!("the server's certificate is not valid{from}"),
                "see whether the clock of this machine is right; if it is, give the server one that is valid now",
            )
        }
        // What `openssl req -x509` makes, unless told otherwise.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => Refusal::new(
            "tls.certificate",
            "the server's certificate is an authority's (CA:TRUE), as self-signed ones often are",
            "let that authority sign one for the server, or make it with basicConstraints=critical,CA:FALSE and a subjectAltName",
        ),
        other => Refusal::new(
            "tls.certificate",
            format!("the server's certificate cannot be accepted ({other})"),
            "give the server one of X.509 version 3 for server authentication, with a subjectAltName",
        ),
    }
}

fn of_name(expected: Option<&str>, presented: &[String]) -> Refusal {
    // As webpki gives them: a kind, and in parentheses the name, in quotes if it is one of DNS.
    let name = |name: &String| {
        let inside = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
        inside.trim_matches('"').to_owned()
    };
    let names = presented.iter().map(name).collect::<Vec<_>>().join(", ");
    let host = expected.map_or_else(|| "the URL's host".to_owned(), |host| format!("{host}, the URL's host"));
    let for_whom = if names.is_empty() { "names no host at all".to_owned() } else { format!("is for {names}") };
    Refusal::new(
        "tls.name",
        format!("the server's certificate {for_whom}, and not for {host}"),
        "write a host in the URL that it is for, or have one made whose subjectAltName names that host (a common name does not count)",
    )
}

fn time(at: UnixTime) -> String {
    let at = i64::try_from(at.as_secs()).ok().and_then(|seconds| DateTime::from_timestamp(seconds, 0));
    at.map_or_else(|| "a time beyond all calendars".to_owned(), |at| at.to_rfc3339())
}

/// The files that a URL names are there and hold what they should, so far as a connection would use them. They are read anew for
/// each connection.
pub fn files(url: &DatabaseUrl, options: &PgConnectOptions) -> Result<(), Refusal> {
    let mode = options.get_ssl_mode();
    if is_plain(options) {
        return Ok(());
    }
    if let Some(root) = url.authorities()
        && matches!(mode, PgSslMode::VerifyCa | PgSslMode::VerifyFull)
    {
        roots(&root)?;
    }
    let certificate = url.parameter(&["sslcert", "ssl-cert"], "PGSSLCERT");
    let key = url.parameter(&["sslkey", "ssl-key"], "PGSSLKEY");
    match (certificate, key) {
        (None, None) => Ok(()),
        (Some(certificate), Some(key)) => pair(Path::new(&certificate), Path::new(&key)).map(drop).map_err(|what| {
            Refusal::new("tls.files", what, "mend the paths of the URL's sslcert and sslkey, or the files")
        }),
        _ => Err(Refusal::new(
            "tls.files",
            "of sslcert and sslkey the URL names one alone",
            "give both, or none: the certificate that the relay shows, and its key",
        )),
    }
}

fn roots(path: &str) -> Result<(), Refusal> {
    let remedy = "let the URL's sslrootcert name a file that this user may read, with certificates in PEM form; relative paths start \
                  at the working directory";
    let wrong = |what: String| Err(Refusal::new("tls.files", format!("sslrootcert names {path}, {what}"), remedy));
    let certificates = match certificates(Path::new(path)) {
        Ok(certificates) => certificates,
        Err(what) => return wrong(what),
    };
    match certificates.into_iter().try_for_each(|certificate| RootCertStore::empty().add(certificate)) {
        Ok(()) => Ok(()),
        Err(error) => wrong(format!("which holds a certificate that cannot be read ({error})")),
    }
}

/// What a PEM file of certificates holds, at least one; else what is wrong with it, to follow its name.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let text = std::fs::read(path).map_err(|error| format!("which cannot be read: {error}"))?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    match found {
        Ok(found) if found.is_empty() => Err("which holds no certificate in PEM form".to_owned()),
        Ok(found) => Ok(found),
        Err(error) => Err(format!("which is not PEM: {error}")),
    }
}

/// A certificate with its chain, and the key that fits it, of two PEM files; else what is wrong, with the names of the files.
pub fn pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, String> {
    let chain = certificates(certificate).map_err(|what| format!("{}, {what}", certificate.display()))?;
    let wrong = |what: String| format!("{}, {what}", key.display());
    let text = std::fs::read(key).map_err(|error| wrong(format!("which cannot be read: {error}")))?;
    let found = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|_| wrong("which holds no private key in PEM form that is not encrypted".to_owned()))?;
    CertifiedKey::from_der(chain, found, &ring::default_provider()).map_err(|error| match error {
        Error::InconsistentKeys(_) => {
            format!("the key in {} is not that of the certificate in {}", key.display(), certificate.display())
        }
        error => format!("{} with {} cannot be used: {error}", certificate.display(), key.display()),
    })
}

/// Whether no TLS is asked for: by the mode (`allow` is no more than `disable` here), or because it is a socket of this machine.
fn is_plain(options: &PgConnectOptions) -> bool {
    is_socket(options) || matches!(options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow)
}

fn is_socket(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some() || options.get_host().starts_with('/')
}

/// What others could do on the way to a database: `None` where nobody is on it, or the server proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// The host as the URL names it.
    pub host: String,
    /// The URL's `sslmode`, or the default.
    pub mode: &'static str,
    /// Whether any certificate of an authority passes, rather than any certificate.
    pub authority: bool,
}

/// How a connection is exposed. A name other than `localhost` is taken for another machine's.
pub fn exposed(options: &PgConnectOptions) -> Option<Exposed> {
    let host = options.get_host().trim_start_matches('[').trim_end_matches(']');
    let near = host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    let mode = match options.get_ssl_mode() {
        PgSslMode::VerifyFull => return None,
        PgSslMode::VerifyCa => "verify-ca",
        PgSslMode::Require => "require",
        PgSslMode::Prefer => "prefer",
        PgSslMode::Allow => "allow",
        PgSslMode::Disable => "disable",
    };
    let exposed = Exposed { host: host.to_owned(), mode, authority: mode == "verify-ca" };
    (!near && !is_socket(options)).then_some(exposed)
}

#[cfg(test)]
mod tests {
    use std::io;

    use tokio_rustls::rustls::pki_types::ServerName;

    use super::*;

    fn at(url: &str) -> PgConnectOptions {
        url.parse().unwrap()
    }

    #[test]
    fn who_is_on_the_way_is_told_by_host_and_mode() {
        for url in [
            "postgres://a@localhost/b",
            "postgres://a@LocalHost/b?sslmode=disable",
            "postgres://a@127.1.2.3:5433/b",
            "postgres://a@[::1]/b",
            "postgres:///b?host=/var/run/postgresql",
            "postgres://a@%2Frun%2Fpostgresql/b",
            "postgres://a@db.internal/b?sslmode=verify-full",
        ] {
            assert_eq!(exposed(&at(url)), None, "{url}");
        }
        for (url, host, mode) in [
            ("postgres://a@db.internal/b?sslmode=require", "db.internal", "require"),
            ("postgres://a@10.0.0.1/b?sslmode=disable", "10.0.0.1", "disable"),
            ("postgres://a@[fd00::1]/b?sslmode=prefer", "fd00::1", "prefer"),
            ("postgres://a@localhost.evil.example/b?sslmode=allow", "localhost.evil.example", "allow"),
            ("postgres://a@x/b?host=db.internal&sslmode=verify-ca", "db.internal", "verify-ca"),
        ] {
            let found = exposed(&at(url)).unwrap_or_else(|| panic!("{url}"));
            assert_eq!((found.host.as_str(), found.mode), (host, mode), "{url}");
            assert_eq!(found.authority, mode == "verify-ca");
        }
    }

    #[test]
    fn what_does_not_mend_itself_is_told_with_its_remedy_and_a_cut_connection_is_not() {
        let io = |error: Error| sqlx::Error::Io(io::Error::new(io::ErrorKind::InvalidData, error));
        let name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("db.internal").unwrap(),
            presented: vec!["DnsName(\"other.internal\")".to_owned(), "IpAddress(10.0.0.1)".to_owned()],
        };
        let then = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_577_836_800));
        let expired = CertificateError::ExpiredContext { time: then, not_after: then };
        for (error, code, words) in [
            (io(CertificateError::UnknownIssuer.into()), "tls.authority", "sslrootcert"),
            (io(name.into()), "tls.name", "is for other.internal, 10.0.0.1, and not for db.internal"),
            (io(expired.into()), "tls.expired", "expired at 2020-01-01T00:00:00+00:00"),
            (io(CertificateError::NotValidYet.into()), "tls.expired", "the clock of this machine"),
            (io(CertificateError::BadEncoding.into()), "tls.certificate", "X.509 version 3"),
            (io(Error::AlertReceived(AlertDescription::UnknownCA)), "tls.client", "sslcert and sslkey"),
            (io(Error::AlertReceived(AlertDescription::ProtocolVersion)), "tls.handshake", "TLS 1.2 or later"),
            (sqlx::Error::Tls("server does not support TLS".into()), "tls.missing", "ssl = on"),
            (sqlx::Error::Tls("invalid dns name".into()), "tls.handshake", "host and port"),
        ] {
            let refusal = refusal(&error).unwrap_or_else(|| panic!("{error:?}"));
            assert_eq!(refusal.code, code);
            let told = crate::disposition::told(&error);
            assert!(told.contains(words) && told.ends_with(&format!("({code})")), "{told}");
        }
        for error in [
            sqlx::Error::Io(io::ErrorKind::ConnectionReset.into()),
            sqlx::Error::Io(io::Error::new(io::ErrorKind::UnexpectedEof, "tls handshake eof")),
            io(Error::DecryptError),
            sqlx::Error::PoolTimedOut,
        ] {
            assert_eq!(refusal(&error), None, "{error:?}");
        }
    }

    #[test]
    fn files_that_cannot_be_used_are_named_where_they_would_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("empty"), "").unwrap();
        std::fs::write(path("broken"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
        let ca = rcgen::generate_simple_self_signed(["db.internal".to_owned()]).unwrap();
        let other = rcgen::generate_simple_self_signed(["db.internal".to_owned()]).unwrap();
        std::fs::write(path("cert"), ca.cert.pem()).unwrap();
        std::fs::write(path("key"), ca.signing_key.serialize_pem()).unwrap();
        std::fs::write(path("other"), other.signing_key.serialize_pem()).unwrap();
        let told = |query: String| {
            let url = DatabaseUrl::parse(&format!("postgres://a:s3cret@db.internal/b?{query}")).unwrap();
            files(&url, &at(url.expose())).map_err(|refusal| refusal.to_string())
        };
        for (query, words) in [
            ("sslmode=verify-full&sslrootcert=none", "cannot be read: No such file"),
            ("sslmode=verify-ca&sslrootcert=empty", "no certificate in PEM form"),
            ("sslmode=verify-full&sslrootcert=key", "no certificate in PEM form"),
            ("sslmode=verify-full&ssl-ca=broken", "cannot be read"),
            ("sslmode=require&sslcert=cert", "one alone"),
            ("sslmode=require&sslcert=cert&sslkey=empty", "no private key"),
            ("sslmode=require&sslcert=none&sslkey=key", "none, which cannot be read"),
            ("sslmode=require&sslcert=cert&sslkey=other", "other is not that of the certificate in"),
        ] {
            let query = ["none", "empty", "key", "broken", "cert", "other"]
                .iter()
                .fold(query.to_owned(), |query, name| query.replace(&format!("={name}"), &format!("={}", path(name))));
            let told = told(query).unwrap_err();
            assert!(told.contains(words) && told.ends_with("(tls.files)") && !told.contains("s3cret"), "{told}");
        }
        assert_eq!(
            told(format!("sslmode=verify-full&sslrootcert={0}&sslcert={0}&sslkey={1}", path("cert"), path("key"))),
            Ok(())
        );
        // Not used, not asked for.
        assert_eq!(told(format!("sslmode=require&sslrootcert={}", path("none"))), Ok(()));
        assert_eq!(told(format!("sslmode=disable&sslcert={}", path("none"))), Ok(()));
    }
}
