//! A wire that is long: what goes over it arrives later, as much as ever at a time.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Leads to a server on this machine for as long as it is kept.
pub(crate) struct Wire {
    folder: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Wire {
    /// To the server with this port and this folder for its socket; delays each direction by so much.
    pub(crate) async fn delaying(port: u16, socket: &str, delay: Duration) -> Result<Wire> {
        let name = format!(".s.PGSQL.{port}");
        let (folder, server) = (tempfile::tempdir()?, Path::new(socket).join(&name));
        let listener = UnixListener::bind(folder.path().join(&name))?;
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = UnixStream::connect(&server).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                tokio::spawn(carry(from_client, to_server, delay));
                tokio::spawn(carry(from_server, to_client, delay));
            }
        });
        Ok(Wire { folder, task })
    }

    /// The folder of its socket.
    pub(crate) fn socket(&self) -> String {
        self.folder.path().display().to_string()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin + Send + 'static, delay: Duration) {
    let (sender, mut under_way) = tokio::sync::mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    tokio::spawn(async move {
        while let Some((at, bytes)) = under_way.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to.shutdown().await;
    });
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if sender.send((Instant::now() + delay, buffer[..n].to_vec())).is_err() {
            return;
        }
    }
}
