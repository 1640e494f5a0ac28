//! A server that follows another one by streaming replication.

use std::fs::File;
use std::io::Write as _;

use super::Server;

impl Server {
    /// A replica of this server, which is read only, and follows it until it is dropped. It tells how far it is every second, and whenever
    /// it has written or replayed something.
    ///
    /// # Errors
    /// `pg_basebackup` failed, or the replica does not start: with what was said.
    pub async fn replica(&self, name: &str) -> anyhow::Result<Server> {
        let mut replica = Server::housed(name, self.dir.parent(), self.password.clone())?;
        let data = replica.dir.join("data");
        self.copy_to(&data).await?;
        let password = self.password.as_ref().map(|password| format!(" password={password}")).unwrap_or_default();
        let mut file = File::options().append(true).open(data.join("postgresql.conf"))?;
        // Against what snapshots need, later lines win.
        writeln!(
            file,
            "primary_conninfo = 'host=127.0.0.1 port={} user=postgres{password}'\nhot_standby = on\nrestore_command = ''\n\
             recovery_target_timeline = 'latest'\nwal_receiver_status_interval = 1s",
            self.port
        )?;
        File::create(data.join("standby.signal"))?;
        replica.launch_on_a_free_port().await?;
        Ok(replica)
    }
}
