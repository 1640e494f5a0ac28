//! Two throwaway servers that write as safely as Postgres ships, a pair of databases for each run, and what is written and
//! checked there.

use anyhow::{Result, ensure};
use outbox_relay::demo::server::Server;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

use crate::meter::Cpu;
use crate::shared::servers;
pub(crate) use crate::shared::servers::{run, value};

/// The two servers of a case.
///
/// Everybody connects through Unix sockets: sqlx leaves Nagle's algorithm on, and over TCP a client that sends data and then their end, as by COPY,
/// would wait each time for an acknowledgment that the other side delays by 40 ms.
pub(crate) struct Ground {
    pub(crate) legacy: Server,
    pub(crate) new: Server,
    /// The folders of their sockets.
    pub(crate) sockets: [String; 2],
    runs: std::cell::Cell<u32>,
}

/// A fresh pair of databases.
pub(crate) struct Pair {
    pub(crate) name: String,
    pub(crate) legacy: String,
    pub(crate) new: String,
}

/// What is written to the outbox before or during a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) events: u32,
    /// Events are spread over so many aggregates.
    pub(crate) aggregates: u32,
    /// So many of an aggregate follow each other.
    pub(crate) run: u32,
    /// Characters of a payload, about.
    pub(crate) payload: u32,
    /// Half of all events are of one aggregate.
    pub(crate) hot: bool,
    /// A transaction for each event instead of one for 10,000.
    pub(crate) single: bool,
    /// What an event does on the new side.
    pub(crate) effect: Effect,
}

/// What an event does on the new side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Its user's row becomes what the payload says: the last one wins.
    Upsert,
    /// It is written down, and its user's count of changes grows: each counts.
    Counts,
    /// It is written down: a row an event.
    Row,
}

/// From payload to row: a name is put together, an address lowered, a city picked from inside.
pub(crate) const TRANSFORM: &str = "(payload->>'id')::bigint AS id, \
    (payload->>'first_name') || ' ' || (payload->>'last_name') AS name, lower(payload->>'email') AS email, \
    payload->'address'->>'city' AS city, (payload->>'version')::bigint AS version";

const NEW_TABLES: &str = "
    CREATE TABLE users (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL, city text,
                        version bigint NOT NULL, changes bigint NOT NULL DEFAULT 1);
    CREATE TABLE applied (n bigserial, event bigint PRIMARY KEY, aggregate text NOT NULL, version bigint NOT NULL);";

impl Ground {
    /// `safely`: as Postgres ships.
    pub(crate) async fn new(settings: &[(&str, String)], safely: bool) -> Result<Ground> {
        // The second contender needs it, and the others get the same server.
        let logical = [("wal_level", "logical".to_owned()), ("logical_decoding_work_mem", "'256MB'".to_owned())];
        let (legacy, new) = servers::start(&[&logical[..], settings].concat(), safely).await?;
        let socket = async |server: &Server| value(&server.url("postgres"), "SHOW data_directory").await;
        let sockets = [socket(&legacy).await?, socket(&new).await?];
        Ok(Ground { legacy, new, sockets, runs: std::cell::Cell::new(0) })
    }

    /// An empty pair.
    pub(crate) async fn pair(&self) -> Result<Pair> {
        self.runs.set(self.runs.get() + 1);
        let name = format!("run_{}", self.runs.get());
        self.legacy.create_database(&name).await?;
        self.new.create_database(&name).await?;
        let [legacy, new] = self.addresses(&name, &self.sockets);
        let pair = Pair { legacy, new, name };
        run(&pair.new, NEW_TABLES).await?;
        Ok(pair)
    }

    /// The addresses of a pair of databases, by the sockets in these folders.
    pub(crate) fn addresses(&self, name: &str, sockets: &[String; 2]) -> [String; 2] {
        let address = |server: &Server, folder: &str| format!("{}?host={folder}", server.url(name));
        [address(&self.legacy, &sockets[0]), address(&self.new, &sockets[1])]
    }

    pub(crate) async fn drop(&self, pair: Pair) -> Result<()> {
        servers::drop_database([&self.new, &self.legacy], &pair.name).await
    }

    /// Both servers, after what was just written has been written down.
    pub(crate) async fn settled(&self) -> Result<Cpu> {
        servers::checkpoint([&self.legacy, &self.new]).await?;
        self.cpu()
    }

    pub(crate) fn cpu(&self) -> Result<Cpu> {
        Cpu::of(&self.legacy, &self.new)
    }
}

impl Load {
    /// Of 330 characters, by 20,000 users, one after the other.
    pub(crate) fn of(events: u32) -> Load {
        Load { events, aggregates: 20_000, run: 1, payload: 330, hot: false, single: false, effect: Effect::Upsert }
    }

    /// Columns and rows of the events from one number to another, for the outbox or a table of its shape.
    pub(crate) fn rows(&self, from: &str, to: &str) -> String {
        let Load { aggregates, run, .. } = self;
        let hot = if self.hot { "CASE WHEN i % 2 = 0 THEN 1 ELSE u END" } else { "u" };
        // What is large does not compress well, as documents don't.
        let padding = self.payload.saturating_sub(200);
        let note = if padding < 1500 {
            format!("repeat('x', {padding})")
        } else {
            format!("(SELECT string_agg(md5(i::text || k), '') FROM generate_series(1, {}) k)", padding / 32)
        };
        format!(
            "(aggregate_type, aggregate_id, event_type, payload)
             SELECT 'User', u::text, 'UserChanged', jsonb_build_object('id', u, 'first_name', 'Ada' || u % 100,
                    'last_name', 'Byron' || u, 'email', 'User' || u || '@Example.org', 'version', i,
                    'address', jsonb_build_object('street', u || ' Long Acre', 'city', 'City' || u % 500),
                    'note', {note})
             FROM (SELECT i, {hot} AS u FROM
                   (SELECT i, 1 + (i / {run}) * 7919 % {aggregates} AS u FROM generate_series({from}::bigint, {to}::bigint) i) j) k"
        )
    }

    /// Writes all events to the outbox.
    pub(crate) async fn write(&self, url: &str) -> Result<()> {
        if self.single {
            let rows = self.rows("n", "n");
            let sql = format!(
                "DO $$ BEGIN FOR n IN 1 .. {} LOOP INSERT INTO outbox {rows}; COMMIT; END LOOP; END $$",
                self.events
            );
            // Not in one message: that would be one transaction.
            let mut connection = PgConnection::connect(url).await?;
            connection.execute("SET synchronous_commit = off").await?;
            connection.execute(AssertSqlSafe(sql)).await?;
            connection.close().await?;
        } else {
            let mut from = 1;
            while from <= self.events {
                let to = self.events.min(from + 9_999);
                run(url, &format!("INSERT INTO outbox {}", self.rows(&from.to_string(), &to.to_string()))).await?;
                from = to + 1;
            }
        }
        run(url, "VACUUM ANALYZE outbox").await
    }

    /// Whether the new database is what the outbox says: nothing lost, doubled or out of order.
    pub(crate) async fn check(&self, pair: &Pair) -> Result<()> {
        self.check_those(pair, "true").await
    }

    /// The same, where only those were to be applied that this condition holds for.
    pub(crate) async fn check_those(&self, pair: &Pair, which: &str) -> Result<()> {
        let row = "md5(string_agg(concat_ws('|', id, name, email, city, version), ',' ORDER BY id))";
        if self.effect != Effect::Row {
            let expected: Option<String> = value(
                &pair.legacy,
                &format!("SELECT {row} FROM (SELECT DISTINCT ON (aggregate_id) {TRANSFORM} FROM outbox o WHERE {which} ORDER BY aggregate_id, o.id DESC) e"),
            )
            .await?;
            let found: Option<String> = value(&pair.new, &format!("SELECT {row} FROM users")).await?;
            ensure!(expected == found, "void: the new database is not what the outbox says");
        }
        if self.effect != Effect::Upsert {
            let expected: i64 = value(&pair.legacy, &format!("SELECT count(*) FROM outbox WHERE {which}")).await?;
            in_order(pair, expected).await?;
        }
        if self.effect == Effect::Counts {
            let uncounted: i64 = value(
                &pair.new,
                "SELECT count(*) FROM users u LEFT JOIN (SELECT aggregate, count(*) AS n FROM applied GROUP BY 1) a ON a.aggregate = u.id::text
                 WHERE changes IS DISTINCT FROM n",
            )
            .await?;
            ensure!(uncounted == 0, "void: {uncounted} users have another count of changes than events");
        }
        Ok(())
    }
}

/// Whether so many events were written down, each once, and each aggregate's in order.
pub(crate) async fn in_order(pair: &Pair, expected: i64) -> Result<()> {
    let found: i64 = value(&pair.new, "SELECT count(*) FROM applied").await?;
    ensure!(expected == found, "void: {found} of {expected} events were applied");
    let disordered: i64 = value(
        &pair.new,
        "SELECT count(*) FROM (SELECT event < lag(event) OVER (PARTITION BY aggregate ORDER BY n) AS out FROM applied) o
         WHERE out",
    )
    .await?;
    ensure!(disordered == 0, "void: {disordered} events were applied out of order");
    Ok(())
}
