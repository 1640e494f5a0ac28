//! A wire that can be cut at the worst moment: while the answer to a COMMIT is on its way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Forwards to a server on this machine, and cuts every few commits: one before the server hears of it, the next after.
pub struct Proxy {
    pub port: u16,
    pub cut: Arc<AtomicU32>,
}

impl Proxy {
    /// Cuts at every `every`-th COMMIT.
    pub async fn before(port: u16, every: u32) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let own = listener.local_addr().expect("a port").port();
        let commits = Arc::new(AtomicU32::new(0));
        let cut = Arc::new(AtomicU32::new(0));
        let counted = cut.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", port)).await.expect("the server");
                tokio::spawn(forward(client, server, every, commits.clone(), counted.clone()));
            }
        });
        Proxy { port: own, cut }
    }
}

async fn forward(client: TcpStream, server: TcpStream, every: u32, commits: Arc<AtomicU32>, cut: Arc<AtomicU32>) {
    let _ = client.set_nodelay(true);
    let _ = server.set_nodelay(true);
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
        let said = &buffer[..n];
        if said.windows(8).any(|w| w == b" COMMIT\0") && commits.fetch_add(1, Ordering::SeqCst) % every == every - 1 {
            answers.abort();
            // Not an answer of it is ever seen; whether the server has committed is nobody's knowledge.
            if cut.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
                let _ = to_server.write_all(said).await;
                let _ = to_server.flush().await;
            }
            return;
        }
        if to_server.write_all(said).await.is_err() {
            break;
        }
    }
    let _ = to_server.shutdown().await;
    let _ = answers.await;
}
