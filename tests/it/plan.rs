//! plan: what the split does to foreign keys. The statements that it prints are run.

use outbox_relay::config::{Action, DatabaseUrl, Entity, RowsFrom};
use outbox_relay::connect;
use outbox_relay::init::{self, Choices, Roles};
use outbox_relay::plan::{self, End};

use crate::admin::{Api, tokens};
use crate::support::program::{folder_of, said};
use crate::support::stage::{Stage, config, file};
use crate::support::{copying, pair};
use crate::verify::table;

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
    CREATE TABLE lines (order_id int, n int, PRIMARY KEY (order_id, n)) PARTITION BY HASH (order_id);
    CREATE TABLE lines_0 PARTITION OF lines FOR VALUES WITH (MODULUS 1, REMAINDER 0);
    ALTER TABLE users ADD CONSTRAINT favourite FOREIGN KEY (favourite) REFERENCES orders;";

async fn stage() -> Stage {
    let pair = pair().await;
    pair.legacy.run(LEGACY).await;
    pair.new.run(NEW).await;
    let entity = |kind: &str, name: &str| Entity::new(kind, table(name), &["id"]).on("Written", Action::Upsert);
    let mut config = config(&pair.legacy.url, &pair.new.url);
    config.entities = vec![entity("Line", "lines"), entity("Order", "orders"), entity("User", "users")];
    Stage { pair, config }
}

async fn planned(stage: &Stage) -> plan::Plan {
    plan::plan(&stage.config.entities, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap()
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

#[tokio::test]
async fn a_reference_that_could_not_be_looked_at_is_told_and_the_program_exits_2() {
    let stage = stage().await;
    stage.pair.new.run("ALTER TABLE users RENAME COLUMN country TO land").await;
    let found = plan::orphans(&planned(&stage).await, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap();
    let skipped: Vec<_> =
        found.iter().filter_map(|of| Some((of.constraint.as_str(), of.skipped.as_deref()?))).collect();
    assert_eq!(skipped, [("users_country_fkey", "public.users in the new database has no column country")]);
    let stage = copying::stage(pair().await, 3, |_| {}).await;
    let folder = folder_of(&stage, "");
    said(&folder, &["plan", "--orphans"], 0).await;
    stage.pair.legacy.run("CREATE TABLE visits (user_id bigint REFERENCES users)").await;
    let told = said(&folder, &["plan", "--orphans"], 2).await;
    assert!(
        told.contains("not looked at: public.visits in the legacy database has no primary key to page by"),
        "{told}"
    );
}

/// What is found of each reference, in the plan's order: the constraint, how many rows refer to nothing, why it was not looked at.
fn told(found: &[plan::Orphans]) -> Vec<(&str, u64, Option<&str>)> {
    found.iter().map(|of| (of.constraint.as_str(), of.count, of.skipped.as_deref())).collect()
}

/// One entity, `users`, of a table that is called so on both sides.
async fn stage_of_users(key: &str, legacy: &str, new: &str) -> Stage {
    let pair = pair().await;
    pair.legacy.run(legacy).await;
    pair.new.run(new).await;
    let mut config = config(&pair.legacy.url, &pair.new.url);
    config.entities = vec![Entity::new("User", table("users"), &[key]).on("Written", Action::Upsert)];
    Stage { pair, config }
}

/// From here on under a role, which is returned, that has what `init --print` grants and no more.
async fn with_its_grants_alone(stage: &mut Stage) -> String {
    let name = &stage.pair.new.name;
    let roles = Roles { app: format!("app_{name}"), relay: format!("relay_{name}") };
    let grants = init::grants(&stage.config, &stage.pair.legacy.pool, &roles).await.unwrap();
    for (database, grants) in [(&stage.pair.legacy, grants.source), (&stage.pair.new, grants.target)] {
        database.run(&format!("CREATE ROLE {} LOGIN; CREATE ROLE {} LOGIN", roles.app, roles.relay)).await;
        for grant in grants {
            database.run(&grant).await;
        }
    }
    let url = |url: &str| DatabaseUrl::parse(&url.replace("postgres@", &format!("{}@", roles.relay))).unwrap();
    stage.config.legacy.url = url(&stage.pair.legacy.url);
    stage.config.new.url = url(&stage.pair.new.url);
    roles.relay
}

#[tokio::test]
async fn a_table_that_the_role_may_not_read_is_told_with_its_grants_and_the_other_references_are_looked_at() {
    let mut stage = copying::stage(pair().await, 3, |_| {}).await;
    stage
        .pair
        .legacy
        .run(
            "CREATE TABLE countries (code text PRIMARY KEY); INSERT INTO countries VALUES ('nl');
             ALTER TABLE users ADD boss bigint REFERENCES users, ADD country text REFERENCES countries,
                ADD referrer bigint REFERENCES users;
             UPDATE users SET country = 'nl'",
        )
        .await;
    stage
        .pair
        .new
        .run("ALTER TABLE users ADD country text; INSERT INTO users (id, name, version, country) VALUES (-5, 'n-5', 1, 'nl')")
        .await;
    let role = with_its_grants_alone(&mut stage).await;
    let grants = format!(
        "GRANT USAGE ON SCHEMA \"public\" TO \"{role}\"; GRANT SELECT ON \"public\".\"countries\" TO \"{role}\";"
    );
    let why =
        format!("public.countries in the legacy database: permission denied for table countries (42501): {grants}");
    let folder = folder_of(&stage, "");
    let printed = said(&folder, &["plan", "--orphans"], 2).await;
    // In the legacy database, and across.
    assert_eq!(printed.matches(&format!(": not looked at: {why}\n")).count(), 2, "{printed}");
    assert_eq!(printed.matches(": none\n").count(), 2, "{printed}");
    stage
        .pair
        .legacy
        .run(
            "SET session_replication_role = replica; UPDATE users SET boss = 99, referrer = 99 WHERE id = -4;
             RESET session_replication_role",
        )
        .await;
    let plan = planned(&stage).await;
    let pool = |url: &DatabaseUrl| connect::pool(url, true, 2).unwrap();
    let (legacy, new) = (pool(&stage.config.legacy.url), pool(&stage.config.new.url));
    let found = plan::orphans(&plan, &legacy, &new).await.unwrap();
    let why = Some(why.as_str());
    let expected = [
        ("users_boss_fkey", 1, None),
        ("users_country_fkey", 0, why),
        ("users_country_fkey", 0, why),
        ("users_referrer_fkey", 1, None),
    ];
    assert_eq!(told(&found), expected);
    // The grants are exact.
    stage.pair.legacy.run(&grants).await;
    let found = plan::orphans(&plan, &legacy, &new).await.unwrap();
    assert_eq!(told(&found), expected.map(|(constraint, count, _)| (constraint, count, None)));
}

#[tokio::test]
async fn a_reference_between_types_that_do_not_compare_is_told_and_the_others_are_looked_at() {
    let stage = stage_of_users(
        "id",
        "CREATE TABLE countries (id int PRIMARY KEY);
         CREATE TABLE users (id int PRIMARY KEY, country int REFERENCES countries, boss int REFERENCES users);
         CREATE TABLE visits (id int PRIMARY KEY, who int REFERENCES users);
         SET session_replication_role = replica;
         INSERT INTO countries VALUES (1);
         INSERT INTO users VALUES (1, 1, NULL), (2, NULL, 99);
         INSERT INTO visits VALUES (1, 1), (2, 99);
         RESET session_replication_role",
        // All rows of the first page refer to nothing, and of the second one cannot even be asked.
        "CREATE TABLE users (id json, no int PRIMARY KEY, country text);
         INSERT INTO users SELECT '1'::json, i, CASE WHEN i > 5000 THEN 'nl' ELSE '7' END FROM generate_series(1, 5001) i",
    )
    .await;
    let found = plan::orphans(&planned(&stage).await, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap();
    let word = "public.countries in the legacy database: invalid input syntax for type integer: \"nl\" (22P02)";
    let no_operator = "public.users in the new database: operator does not exist: json = json (42883)";
    let expected = [
        ("users_boss_fkey", 1, None),
        ("users_country_fkey", 0, None),
        ("users_country_fkey", 5000, Some(word)),
        ("visits_who_fkey", 1, None),
        ("visits_who_fkey", 0, Some(no_operator)),
    ];
    assert_eq!(told(&found), expected);
}

#[tokio::test]
async fn keys_of_an_extensions_type_are_compared_as_it_compares_them_and_are_passed_over_by_no_page() {
    let users = "CREATE SCHEMA \"An Extension\"; CREATE EXTENSION citext SCHEMA \"An Extension\";
         CREATE DOMAIN mail AS \"An Extension\".citext COLLATE \"C\";
         CREATE TABLE users (mail mail PRIMARY KEY); INSERT INTO users VALUES ('ada@x');";
    // As the type has them the names with a come before those with B, and after them by their bytes. Of a hundred one refers to nothing.
    let letters = "
         CREATE TABLE letters (name mail PRIMARY KEY, writer mail REFERENCES users);
         CREATE TABLE theirs (tenant int, name mail, writer mail REFERENCES users, PRIMARY KEY (tenant, name));
         SET session_replication_role = replica;
         INSERT INTO letters SELECT CASE WHEN i > 5500 THEN 'B' ELSE 'a' END || i, CASE WHEN i % 100 = 0 THEN 'eve@x' ELSE 'Ada@x' END
         FROM generate_series(1, 6000) i;
         INSERT INTO theirs SELECT t, CASE WHEN i > 1500 THEN 'B' ELSE 'a' END || i, CASE WHEN i % 100 = 0 THEN 'eve@x' ELSE 'Ada@x' END
         FROM generate_series(1, 3000) i, generate_series(1, 2) t;
         RESET session_replication_role";
    let stage = stage_of_users("mail", &format!("{users}{letters}"), users).await;
    let found = plan::orphans(&planned(&stage).await, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap();
    let expected = ["letters_writer_fkey", "letters_writer_fkey", "theirs_writer_fkey", "theirs_writer_fkey"];
    assert_eq!(told(&found), expected.map(|constraint| (constraint, 60, None)));
}

#[tokio::test]
async fn a_table_is_paged_by_its_key_alone_whatever_its_columns_are_called() {
    let stage = stage_of_users(
        "id",
        "CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users VALUES (1);
         CREATE TABLE marks (key int, v1 int REFERENCES users, refers_to text, PRIMARY KEY (key) INCLUDE (refers_to));
         SET session_replication_role = replica;
         INSERT INTO marks SELECT i, CASE WHEN i % 100 = 0 THEN 99 ELSE 1 END FROM generate_series(1, 6000) i;
         RESET session_replication_role",
        "CREATE TABLE users (id int PRIMARY KEY); INSERT INTO users VALUES (1)",
    )
    .await;
    let found = plan::orphans(&planned(&stage).await, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap();
    assert_eq!(told(&found), [("marks_v1_fkey", 60, None), ("marks_v1_fkey", 60, None)]);
}

/// A query that joins a view, a table of which it takes nothing, and a partitioned one.
const PEOPLE: &str = "
    SELECT u.id, u.country, p.avatar, (SELECT count(*) FROM visits v WHERE v.user_id = u.id) AS visits
    FROM users u LEFT JOIN portraits p ON p.user_id = u.id LEFT JOIN settings s ON s.user_id = u.id";

const JOINED: &str = "
    CREATE TABLE countries (code text PRIMARY KEY);
    CREATE TABLE images (id int PRIMARY KEY);
    CREATE TABLE users (id bigint PRIMARY KEY, country text REFERENCES countries);
    CREATE TABLE profiles (user_id bigint PRIMARY KEY REFERENCES users ON DELETE CASCADE, avatar int REFERENCES images,
        invited_by bigint REFERENCES profiles);
    CREATE VIEW portraits AS SELECT user_id, avatar FROM profiles;
    CREATE TABLE settings (user_id bigint PRIMARY KEY, theme int REFERENCES images);
    CREATE TABLE visits (user_id bigint REFERENCES users, at date) PARTITION BY RANGE (at);
    CREATE TABLE visits_2026 PARTITION OF visits FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE TABLE comments (id int PRIMARY KEY, profile bigint REFERENCES profiles);
    CREATE TABLE unrelated (id int PRIMARY KEY, code text REFERENCES countries);";

/// One entity, `people`, of a query.
async fn stage_of(query: &str) -> Stage {
    let pair = pair().await;
    pair.legacy.run(JOINED).await;
    pair.new.run("CREATE TABLE people (id bigint PRIMARY KEY, country text, avatar int, visits int)").await;
    let mut config = config(&pair.legacy.url, &pair.new.url);
    let mut people = Entity::new("Person", table("people"), &["id"]).made_of(table("users"), "id");
    people.legacy.as_mut().unwrap().from = RowsFrom::Query(file("legacy/people.sql", query));
    config.entities = vec![people];
    Stage { pair, config }
}

#[tokio::test]
async fn of_a_query_every_table_that_it_reads_is_known_and_whose_rows_its_rows_are() {
    let stage = stage_of(PEOPLE).await;
    for (query, of_key, reads) in [
        (PEOPLE, Some("public.users"), &["public.profiles", "public.settings", "public.visits"][..]),
        ("TABLE visits", None, &["public.visits"]),
        ("SELECT user_id AS id, at FROM visits_2026", Some("public.visits"), &[]),
        ("SELECT u.id + 0 AS id FROM users u", None, &["public.users"]),
        ("SELECT user_id AS id FROM portraits", None, &["public.profiles"]),
        ("WITH u AS (SELECT * FROM users) SELECT id FROM u;", Some("public.users"), &[]),
        ("SELECT 1 AS id", None, &[]),
    ] {
        let mut entities = stage.config.entities.clone();
        entities[0].legacy.as_mut().unwrap().from = RowsFrom::Query(file("legacy/people.sql", query));
        let plan = plan::plan(&entities, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap();
        let of = &plan.moves[0];
        // It has no column of that name.
        if query == "TABLE visits" {
            assert!(of.unread.as_ref().is_some_and(|why| why.contains("relay_row.id does not exist")), "{of:?}");
            assert!(plan::render(&plan, None).contains("which tables legacy/people.sql reads is not known"), "{of:?}");
            continue;
        }
        assert_eq!(of.legacy.as_ref().map(ToString::to_string).as_deref(), of_key, "{query}: {of:?}");
        assert_eq!(of.reads.iter().map(ToString::to_string).collect::<Vec<_>>(), reads, "{query}");
    }
}

#[tokio::test]
async fn constraints_of_the_tables_that_a_query_reads_are_named_and_those_that_need_not_cross_with_an_if() {
    let stage = stage_of(PEOPLE).await;
    let plan = planned(&stage).await;
    let crossing: Vec<_> =
        plan.crossing.iter().map(|of| (of.constraint.name.as_str(), of.moves, of.read_by.join(" "))).collect();
    let people = || "people".to_owned();
    let expected = [
        ("comments_profile_fkey", End::Parent, people()),
        ("profiles_avatar_fkey", End::Child, people()),
        ("profiles_user_id_fkey", End::Parent, people()),
        ("settings_theme_fkey", End::Child, people()),
        ("users_country_fkey", End::Child, String::new()),
        ("visits_user_id_fkey", End::Parent, people()),
    ];
    assert_eq!(crossing, expected);
    let why = |nth: usize| plan.crossing[nth].why.as_str();
    for (nth, said) in [
        (
            0,
            "public.profiles is read by the query of people. If it moves along: public.profiles moves, public.comments stays",
        ),
        (2, "public.users moves, public.profiles stays"),
        (2, "ON DELETE CASCADE no longer happens"),
        (2, "It does not cross if public.profiles moves along, which the query of people reads"),
        (4, "public.users moves, public.countries stays"),
    ] {
        assert!(why(nth).contains(said), "{said}\n{}", why(nth));
    }
    assert!(!why(4).contains(" if "), "{}", why(4));
    for sql in plan.crossing.iter().flat_map(|crossing| crossing.drop.iter().chain(&crossing.restore)) {
        stage.pair.legacy.run(sql).await;
    }
    let text = plan::render(&plan, None);
    for line in [
        "  people: public.users -> public.people\n",
        "    legacy/people.sql reads besides: public.profiles, public.settings, public.visits. Whether they move along, only you know\n",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    // Within the legacy database, and from the new table to what stays.
    stage.pair.new.run("INSERT INTO people VALUES (1, 'nowhere', NULL, 0)").await;
    let found = plan::orphans(&plan, &stage.pair.legacy.pool, &stage.pair.new.pool).await.unwrap();
    let told: Vec<_> = found.iter().filter(|of| of.count > 0).map(|of| (of.constraint.as_str(), of.count)).collect();
    assert_eq!(told, [("users_country_fkey", 1)], "{found:#?}");
}

#[tokio::test]
async fn the_plan_is_told_over_http_to_whoever_may_read_as_the_command_tells_it() {
    let stage = stage().await;
    stage.init(Choices::default()).await.unwrap();
    let api = Api::start(&stage.config, tokens(), Some(stage.shared().await)).await;
    let told = api.client.with(Some("only-look")).get("/v1/migration/plan").await.ok();
    assert_eq!(told, serde_json::to_value(planned(&stage).await).unwrap());
    assert_eq!(told["crossing"][0]["constraint"]["parent"], "public.orders");
    assert_eq!(api.client.get("/v1/migration/plan").await.problem(401), "unauthorized");
    api.stop().await;
}
