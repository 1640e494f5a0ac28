//! Just enough of an HTTP client to do what the printed `curl` lines do.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Posts JSON; the answer's body, or an error that carries it.
pub(super) async fn post(server: SocketAddr, path: &str, json: &str) -> anyhow::Result<String> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: {server}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             X-Actor: demo\r\nConnection: close\r\n\r\n{json}",
            json.len()
        );
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer =
        tokio::time::timeout(Duration::from_secs(10), exchange).await.context("the admin server does not answer")??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    match head.split(' ').nth(1) {
        Some(code) if code.starts_with('2') => Ok(body.to_owned()),
        _ => bail!("the admin server answered {}: {body}", head.lines().next().unwrap_or_default()),
    }
}
