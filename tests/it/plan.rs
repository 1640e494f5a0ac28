//! plan: what the split does to foreign keys. The statements that it prints are run.

use outbox_relay::config::{Action, Entity, TableName};
use outbox_relay::plan::{self, End};

use crate::support::pair;
use crate::support::stage::{Stage, config};

const LEGACY: &str = "
    CREATE TABLE countries (code text PRIMARY KEY);
    CREATE TABLE users (id bigint PRIMARY KEY, country text REFERENCES countries, boss bigint REFERENCES users);
    CREATE TABLE orders (id int PRIMARY KEY, user_id bigint NOT NULL REFERENCES users ON DELETE CASCADE);
    CREATE TABLE invoices (no text PRIMARY KEY, order_id int, CONSTRAINT invoices_order FOREIGN KEY (order_id) REFERENCES orders ON DELETE CASCADE);
    CREATE TABLE lines (order_id int, n int, PRIMARY KEY (order_id, n));
    ALTER TABLE lines ADD CONSTRAINT lines_order FOREIGN KEY (order_id) REFERENCES orders NOT VALID;
    CREATE TABLE unrelated (id int PRIMARY KEY, code text REFERENCES countries);";

const NEW: &str = "
    CREATE TABLE tariffs (id int PRIMARY KEY);
    CREATE TABLE users (id bigint PRIMARY KEY, country text, favourite int, tariff int REFERENCES tariffs);
    CREATE TABLE orders (id int PRIMARY KEY, user_id bigint NOT NULL CONSTRAINT buyer REFERENCES users);
    CREATE TABLE lines (order_id int, n int, PRIMARY KEY (order_id, n));
    ALTER TABLE users ADD CONSTRAINT favourite FOREIGN KEY (favourite) REFERENCES orders;";

async fn stage() -> Stage {
    let pair = pair().await;
    pair.legacy.run(LEGACY).await;
    pair.new.run(NEW).await;
    let table = |table: &str| TableName { schema: "public".into(), table: table.into() };
    let entity = |kind: &str, name: &str| Entity::new(kind, table(name), &["id"]).on("Written", Action::Upsert);
    let mut config = config(&pair.legacy.url, &pair.new.url);
    config.entities = vec![entity("Line", "lines"), entity("Order", "orders"), entity("User", "users")];
    Stage { pair, config }
}

async fn planned(stage: &Stage) -> plan::Plan {
    plan::plan(&stage.config, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap()
}

#[tokio::test]
async fn constraints_that_would_cross_are_named_and_the_printed_statements_run() {
    let stage = stage().await;
    let plan = planned(&stage).await;
    let crossing: Vec<_> = plan.crossing.iter().map(|c| (c.constraint.name.as_str(), c.moves)).collect();
    assert_eq!(crossing, [("invoices_order", End::Parent), ("users_country_fkey", End::Child)]);
    assert!(plan.crossing[0].why.contains("ON DELETE CASCADE no longer happens"), "{:?}", plan.crossing[0]);
    let moving: Vec<_> = plan.moving.iter().map(|m| (m.constraint.name.as_str(), m.kept_by.as_deref())).collect();
    let expected = [("lines_order", None), ("orders_user_id_fkey", Some("buyer")), ("users_boss_fkey", None)];
    assert_eq!(moving, expected);
    assert_eq!(plan.moving[2].create, Vec::<String>::new(), "the new table has no boss");
    assert_eq!(plan.unfilled.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["users_tariff_fkey"]);
    let step: Vec<_> = plan.order.iter().map(|step| step.entities.join("+")).collect();
    assert_eq!(step, ["lines", "orders+users"]);
    assert_eq!(plan.order[1].cycle, ["buyer", "favourite"]);
    for crossing in &plan.crossing {
        for sql in crossing.drop.iter().chain(&crossing.restore) {
            stage.pair.legacy.run(sql).await;
        }
    }
    for sql in plan.order.iter().flat_map(|step| step.before.iter().chain(&step.after)).chain(&plan.moving[0].create) {
        stage.pair.new.run(sql).await;
    }
    // All is as before, but for what was missing.
    let again = planned(&stage).await;
    assert_eq!(again.crossing, plan.crossing);
    assert_eq!(again.moving[0].kept_by.as_deref(), Some("lines_order"));
    let order: Vec<_> = again.order.iter().map(|step| step.entities.join("+")).collect();
    assert_eq!(order, ["orders+users", "lines"]);
    let text = plan::render(&plan, None);
    for line in [
        "orders: public.orders (a guess",
        "DROP CONSTRAINT IF EXISTS \"invoices_order\";",
        "kept in the new database by buyer",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn orphans_are_found_on_either_side_and_across() {
    let stage = stage().await;
    let (legacy, new) = (&stage.pair.legacy, &stage.pair.new);
    legacy
        .run(
            "SET session_replication_role = replica;
             INSERT INTO countries VALUES ('nl');
             INSERT INTO users VALUES (1, 'nl', NULL), (2, 'xx', 1);
             INSERT INTO orders VALUES (-1, 1), (0, 2), (1, 99);
             INSERT INTO lines SELECT 1000 + i, 1 FROM generate_series(1, 7) i;
             INSERT INTO lines VALUES (0, 1);
             INSERT INTO invoices VALUES ('a', -1), ('b', 0), ('c', NULL);
             RESET session_replication_role",
        )
        .await;
    new.run(
        "INSERT INTO users VALUES (1, 'nl'), (2, 'xx'); INSERT INTO orders VALUES (0, 2); INSERT INTO lines VALUES (5, 1)",
    )
    .await;
    let found = plan::orphans(&planned(&stage).await, &legacy.pool, &new.pool).await.unwrap();
    let counts: Vec<_> = found
        .iter()
        .filter(|o| o.count > 0)
        .map(|o| (o.constraint.as_str(), o.child.split(' ').next().unwrap(), o.count))
        .collect();
    let expected = [
        ("invoices_order", "legacy", 1), // a's order is not in the new database
        ("lines_order", "legacy", 7),
        ("lines_order (not in the new database yet)", "new", 1),
        ("orders_user_id_fkey", "legacy", 1),
        ("users_country_fkey", "legacy", 1),
        ("users_country_fkey", "new", 1),
    ];
    assert_eq!(counts, expected, "{found:#?}");
    let lines = found.iter().find(|o| o.constraint == "lines_order").unwrap();
    assert_eq!(lines.samples.len(), 5);
    assert_eq!(lines.samples[0].key, ["1001", "1"]);
    let across = found.iter().find(|o| o.constraint == "invoices_order" && o.count == 1).unwrap();
    assert_eq!((across.samples[0].key[0].as_str(), across.samples[0].refers_to[0].as_str()), ("a", "-1"));
    assert!(found.iter().all(|o| o.skipped.is_none()), "{found:#?}");
    let text = plan::render(&planned(&stage).await, Some(&found));
    assert!(text.contains("row a refers to -1"), "{text}");
}
