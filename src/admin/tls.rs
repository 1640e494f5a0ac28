//! TLS of the admin server: its certificate, and how that is renewed.
//!
//! Guarantees: TLS 1.2 and 1.3 only; a key that does not fit its certificate, or a file that cannot be read, is refused at the start;
//! renewed files are shown to whoever connects next, within seconds and without a restart; while they are wrong, the last good
//! ones are. Does not ask clients for certificates: tokens tell who they are.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{Error, ServerConfig};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::config::{Admin, CertificateFiles};
use crate::tls;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What the server shows, and speaks with.
#[derive(Clone)]
pub(super) struct Tls {
    acceptor: TlsAcceptor,
    shown: Arc<Shown>,
    files: CertificateFiles,
    /// What the files held when they were read.
    held: Held,
}

/// What two files hold; nothing, where one cannot be read.
type Held = [Option<Vec<u8>>; 2];

/// The certificate of the moment.
#[derive(Debug)]
struct Shown(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Tls {
    /// As configured; `None`: plain HTTP. An error names the files.
    pub(super) fn of(admin: &Admin) -> Result<Option<Tls>, String> {
        let Some(files) = &admin.tls else { return Ok(None) };
        // First, so that a change in between is met again.
        let held = held(files);
        let pair = load(files)?;
        let shown = Arc::new(Shown(RwLock::new(Arc::new(pair))));
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])
            .map_err(|error: Error| format!("TLS is not possible: {error}"))?
            .with_no_client_auth()
            .with_cert_resolver(shown.clone());
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Tls { acceptor: TlsAcceptor::from(Arc::new(config)), shown, files: files.clone(), held }))
    }

    /// The handshake; the caller bounds it in time.
    pub(super) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> std::io::Result<TlsStream<S>> {
        self.acceptor.accept(stream).await
    }

    /// Looks for renewed files until `shutdown`. Two files are seldom written in the same moment: what is wrong counts only once it
    /// has stayed so from one look to the next.
    pub(super) async fn keep(self, shutdown: CancellationToken) {
        let mut good = self.held.clone();
        let mut wrong: Option<(Held, bool)> = None;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(LOOK) => {}
            }
            let files = self.files.clone();
            let looked = tokio::task::spawn_blocking(move || (held(&files), load(&files))).await;
            let Ok((now, loaded)) = looked else { continue };
            if now == good {
                wrong = None;
                continue;
            }
            match loaded {
                Ok(pair) => {
                    *self.shown.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(pair);
                    let certificate = self.files.certificate.display();
                    tracing::info!(%certificate, "the admin API shows a renewed certificate");
                    (good, wrong) = (now, None);
                }
                Err(why) => {
                    wrong = match wrong {
                        Some((before, false)) if before == now => {
                            tracing::error!(
                                "the changed certificate of the admin API cannot be used, the last good one goes on: {why}"
                            );
                            Some((now, true))
                        }
                        Some((before, true)) if before == now => Some((now, true)),
                        _ => Some((now, false)),
                    };
                }
            }
        }
    }
}

fn held(files: &CertificateFiles) -> Held {
    [&files.certificate, &files.key].map(|path| std::fs::read(path).ok())
}

fn load(files: &CertificateFiles) -> Result<CertifiedKey, String> {
    tls::pair(&files.certificate, &files.key).map_err(|what| {
        format!("admin.tls_cert and admin.tls_key: {what}; both are PEM files, the first with the whole chain, its own certificate first")
    })
}
