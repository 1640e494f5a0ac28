//! `alive`: whether the process that runs with this configuration on this machine is alive, for health checks of containers.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context as _;
use ureq::tls::TlsConfig;

use super::{Exit, output};
use crate::config::{Admin, Config};

/// For the whole call. Docker and others give up a little later.
const PATIENCE: Duration = Duration::from_secs(3);

/// Asks `/healthz` where the configuration says that it listens.
pub(super) async fn command(config: Config) -> anyhow::Result<Exit> {
    let url = address(&config.admin);
    let asked = url.clone();
    let answer = tokio::task::spawn_blocking(move || ask(&asked)).await.context("the call was broken off")?;
    Ok(match answer {
        Ok(()) => {
            output::print(format_args!("{url}: alive\n"))?;
            Exit::Done
        }
        Err(why) => {
            output::print(format_args!("{url}: {why}\n"))?;
            Exit::Found
        }
    })
}

fn address(admin: &Admin) -> String {
    let ip = match admin.listen.ip() {
        ip if !ip.is_unspecified() => ip,
        ip if ip.is_ipv4() => Ipv4Addr::LOCALHOST.into(),
        _ => Ipv6Addr::LOCALHOST.into(),
    };
    let scheme = if admin.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}/healthz", SocketAddr::new(ip, admin.listen.port()))
}

/// The certificate is for the name by which others know this machine, and nothing secret is asked or told: none is looked at.
fn ask(url: &str) -> Result<(), String> {
    let tls = TlsConfig::builder().disable_verification(true).build();
    let config =
        ureq::Agent::config_builder().timeout_global(Some(PATIENCE)).proxy(None).max_redirects(0).tls_config(tls);
    let agent: ureq::Agent = config.build().into();
    agent.get(url).call().map(drop).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_asks_where_the_process_can_be_reached_from_its_own_machine() {
        let mut admin = Config::for_databases("postgres://a/b", "postgres://a/c").unwrap().admin;
        for (listen, tls, expected) in [
            ("127.0.0.1:8080", false, "http://127.0.0.1:8080/healthz"),
            ("0.0.0.0:9000", true, "https://127.0.0.1:9000/healthz"),
            ("[::]:8080", false, "http://[::1]:8080/healthz"),
            ("10.0.0.7:80", true, "https://10.0.0.7:80/healthz"),
        ] {
            let files = crate::config::CertificateFiles { certificate: "a".into(), key: "b".into() };
            (admin.listen, admin.tls) = (listen.parse().unwrap(), tls.then_some(files));
            assert_eq!(address(&admin), expected);
        }
    }
}
