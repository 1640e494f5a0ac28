//! A database as it was at a moment, to go back to: what a failover to a lagging replica does to it, without a server of one's
//! own and in milliseconds. The identity stays, and sequences go back too. Nobody may be at work while it goes back.

use super::Database;

/// What a database held.
pub struct Past {
    schema: String,
}

const TABLES: &str =
    "SELECT n.nspname AS s, c.relname AS t FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.relkind = 'r' AND n.nspname IN ('public', 'outbox_relay')";

impl Past {
    /// Remembers all tables and sequences.
    pub async fn of(database: &Database) -> Past {
        let schema = format!("past_{}", uuid::Uuid::new_v4().simple());
        let sql = format!(
            "CREATE SCHEMA {schema};
             CREATE TABLE {schema}.sequences AS SELECT schemaname, sequencename, last_value FROM pg_sequences
             WHERE schemaname IN ('public', 'outbox_relay');
             DO $$ DECLARE r record; BEGIN
                FOR r IN {TABLES} LOOP EXECUTE format('CREATE TABLE {schema}.%I AS TABLE %I.%I', r.s || '.' || r.t, r.s, r.t); END LOOP;
             END $$"
        );
        database.run(&sql).await;
        Past { schema }
    }

    /// Forgets what happened since. As often as one likes.
    pub async fn again(&self, database: &Database) {
        let schema = &self.schema;
        let sql = format!(
            "BEGIN; SET LOCAL session_replication_role = replica;
             DO $$ DECLARE r record; BEGIN
                EXECUTE (SELECT 'TRUNCATE ' || string_agg(format('%I.%I', s, t), ', ') FROM ({TABLES}) x);
                FOR r IN {TABLES} LOOP
                    EXECUTE format('INSERT INTO %I.%I OVERRIDING SYSTEM VALUE SELECT * FROM {schema}.%I', r.s, r.t, r.s || '.' || r.t);
                END LOOP;
                FOR r IN SELECT * FROM {schema}.sequences LOOP
                    PERFORM setval(format('%I.%I', r.schemaname, r.sequencename)::regclass, coalesce(r.last_value, 1), r.last_value IS NOT NULL);
                END LOOP;
             END $$; COMMIT"
        );
        database.run(&sql).await;
    }
}
