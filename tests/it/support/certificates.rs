//! Throwaway authorities, what they sign, and servers that show it.

use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use outbox_relay::demo::server::Server;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};

/// An authority of a test's own.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, PEM.
    pub pem: String,
    key: String,
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Certificate {
    pub pem: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "a throwaway authority");
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("a certificate").pem();
        let text = key.serialize_pem();
        Authority { issuer: Issuer::new(params, key), pem, key: text }
    }

    /// One for these hosts, names or addresses.
    pub fn sign(&self, hosts: &[&str]) -> Certificate {
        self.sign_with(hosts, |_| {})
    }

    /// One that was good once.
    pub fn sign_expired(&self, hosts: &[&str]) -> Certificate {
        self.sign_with(hosts, |params| {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        })
    }

    fn sign_with(&self, hosts: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certificate {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("parameters");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate");
        Certificate { pem: certificate.pem(), key: key.serialize_pem() }
    }

    /// Its own, shown by a server: as self-signed certificates often are.
    pub fn as_certificate(&self) -> Certificate {
        Certificate { pem: self.pem.clone(), key: self.key.clone() }
    }
}

impl Certificate {
    /// Written as `<name>.pem` and `<name>.key`.
    pub fn write(&self, folder: &Path, name: &str) {
        fs::write(folder.join(format!("{name}.pem")), &self.pem).expect("a file");
        fs::write(folder.join(format!("{name}.key")), &self.key).expect("a file");
    }
}

/// Restarts a server so that it shows this certificate and takes nobody without TLS; with an authority, also nobody without a
/// certificate of that one.
pub async fn secure(server: &mut Server, certificate: &Certificate, clients: Option<&Authority>) {
    let own = |name: &str, text: &str| {
        let path = server.dir().join(name);
        let folder = fs::metadata(server.dir()).expect("the server's folder");
        fs::write(&path, text).expect("a file");
        // Postgres wants its key to be its own, and nobody else's.
        fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("permissions");
        chown(&path, Some(folder.uid()), Some(folder.gid())).expect("the server's account");
        path.display().to_string()
    };
    let mut settings = format!(
        "ssl = on\nssl_cert_file = '{}'\nssl_key_file = '{}'\n",
        own("server.pem", &certificate.pem),
        own("server.key", &certificate.key)
    );
    let mut access = "hostssl all all all trust".to_owned();
    if let Some(clients) = clients {
        settings += &format!("ssl_ca_file = '{}'\n", own("clients.pem", &clients.pem));
        access += " clientcert=verify-ca";
    }
    let data = server.dir().join("data");
    let mut file = File::options().append(true).open(data.join("postgresql.conf")).expect("its configuration");
    file.write_all(settings.as_bytes()).expect("its configuration");
    fs::write(data.join("pg_hba.conf"), access + "\n").expect("who may connect");
    server.restart().await.expect("a server with TLS");
}
