//! The migration as operators see and steer it, over HTTP: whoever does the work, and whichever instance is asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use outbox_relay::config::RowsFrom;
use outbox_relay::job::{Kind, Order, Who, Working};
use outbox_relay::metrics::Metrics;
use outbox_relay::redact::{Column, Rules};
use outbox_relay::relay::Shared;
use outbox_relay::target::JobId;
use outbox_relay::{backfill, connect, verify};
use serde_json::{Value, json};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{Api, Client, tokens};
use crate::backfill::parents_and_children;
use crate::repair::repaired;
use crate::support::copying::{self, agree, copy, install};
use crate::support::stage::{Stage, file};
use crate::support::{self, DEADLINE, eventually, pair};
use crate::verify::verified;

/// The way to a server that takes connections at once, and answers late, while it is waited for.
async fn late(url: &str) -> (String, tokio::task::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_, rest) = url.rsplit_once("127.0.0.1:").unwrap();
    let (server, database) = rest.split_once('/').unwrap();
    let (server, own) = (format!("127.0.0.1:{server}"), listener.local_addr().unwrap());
    let accepting = tokio::spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            let server = server.clone();
            connections.spawn(async move {
                tokio::time::sleep(Duration::from_secs(6)).await;
                let mut server = TcpStream::connect(server).await?;
                copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (format!("postgres://postgres@{own}/{database}"), accepting)
}

async fn api(stage: &Stage) -> Api {
    Api::start(&stage.config, tokens(), Some(stage.shared().await)).await
}

/// What is told of the stage's one entity.
fn users(migration: &Value) -> Value {
    assert_eq!(migration["entities"].as_array().unwrap().len(), 1, "{migration}");
    migration["entities"][0].clone()
}

#[tokio::test]
async fn the_migration_is_told_of_each_entity_whoever_did_it() {
    let stage = copying::stage(pair().await, 300, |_| {}).await;
    let api = api(&stage).await;
    let board = api.client.with(Some("only-look"));
    let before = users(&board.get("/v1/migration").await.ok());
    assert_eq!((&before["entity"], &before["legacy_table"]), (&json!("users"), &json!("public.users")));
    assert_eq!(before["capture"]["state"], "absent");
    assert!(before["copy"].is_null() && before["verified"].is_null() && before["repaired"].is_null(), "{before}");
    install(&stage).await;
    assert!(copy(&stage).await.is_whole());
    stage.pair.new.run("UPDATE users SET name = 'wrong' WHERE id IN (1, 2); DELETE FROM users WHERE id = 3").await;
    let report = verified(&stage).await;
    let after = users(&board.get("/v1/migration").await.ok());
    assert_eq!(after["capture"]["state"], "installed");
    assert_eq!((&after["copy"]["state"], &after["copy"]["rows"]), (&json!("done"), &json!(300)), "{after}");
    assert_eq!(
        (&after["verified"]["report"], &after["verified"]["found"]["outcome"]),
        (&json!(report.id), &json!("differs"))
    );
    assert_eq!(after["verified"]["found"]["differing"], 2);
    assert_eq!(repaired(&stage, None, true).await.unwrap().written, 3);
    let last = users(&board.get("/v1/migration").await.ok())["repaired"].clone();
    assert_eq!((&last["actor"], &last["rows_written"], &last["rows_deleted"]), (&json!("ada"), &json!(3), &json!(0)));
    // What was done is in the jobs, the newest first, and nothing of it is under way any more.
    let jobs = board.get("/v1/jobs").await.ok();
    let kinds: Vec<&str> = jobs["items"].as_array().unwrap().iter().map(|job| job["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["repair", "verify", "backfill"]);
    assert!(jobs["items"].as_array().unwrap().iter().all(|job| job["state"] == "done"), "{jobs}");
    let page = board.get("/v1/jobs?limit=1").await.ok();
    let next = board.get(&format!("/v1/jobs?limit=1&cursor={}", page["next_cursor"].as_str().unwrap())).await.ok();
    assert_eq!(next["items"][0]["kind"], "verify");
    let one = board.get(&format!("/v1/jobs/{}", next["items"][0]["id"])).await.ok();
    assert_eq!((&one["result"]["report"], &one["result"]["differences"]), (&json!(report.id), &json!(3)));
    assert_eq!(board.get("/v1/jobs/999999").await.problem(404), "not_found");
    assert_eq!(board.get("/v1/jobs/x").await.problem(400), "malformed");
    api.stop().await;
}

#[tokio::test]
async fn capture_is_told_of_each_entity_as_it_stands() {
    let mut stage = copying::stage(pair().await, 3, |config| {
        let mut people = config.entities[0].clone();
        people.name = "people".into();
        let query = file("legacy/people.sql", "SELECT id, name, version FROM users");
        people.legacy.as_mut().unwrap().from = RowsFrom::Query(query);
        config.entities.push(people);
    })
    .await;
    let first = api(&stage).await;
    let told = async |api: &Api| {
        let told = api.client.with(Some("only-look")).get("/v1/migration").await.ok();
        let entities = told["entities"].as_array().unwrap().iter();
        let of = entities.map(|of| (of["entity"].as_str().unwrap().to_owned(), of["capture"].clone()));
        let mut of: BTreeMap<String, Value> = of.collect();
        assert_eq!(of.remove("people").unwrap(), json!({"state": "impossible", "message": null}), "of a query");
        of.remove("users").unwrap()
    };
    let is = |state: &str| json!({"state": state, "message": null});
    assert_eq!(told(&first).await, is("absent"));
    install(&stage).await;
    assert_eq!(told(&first).await, is("installed"));
    stage.pair.legacy.run("ALTER TABLE users DISABLE TRIGGER USER").await;
    assert_eq!(told(&first).await, is("disabled"));
    stage.pair.legacy.run("ALTER TABLE users ENABLE TRIGGER USER").await;
    // By a configuration that has come since.
    stage.config.entities[0].legacy.as_mut().unwrap().aggregate_id = "'u-' || id".into();
    let second = api(&stage).await;
    assert_eq!(told(&second).await, is("outdated"));
    stage.pair.legacy.run("DROP TABLE users").await;
    let unknown = told(&second).await;
    assert_eq!(unknown["state"], "unknown");
    assert!(unknown["message"].as_str().unwrap().contains("there is no table public.users"), "{unknown}");
    first.stop().await;
    second.stop().await;
}

#[tokio::test]
async fn values_in_reports_and_repairs_are_for_those_who_may_see_them() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    assert!(copy(&stage).await.is_whole());
    stage.pair.new.run("UPDATE users SET name = 'a secret' WHERE id = 1; DELETE FROM users WHERE id = 3").await;
    let report = verified(&stage).await.id;
    repaired(&stage, None, true).await.unwrap();
    let api = api(&stage).await;
    let (admin, board) = (api.client.with(Some("all-of-it")), api.client.with(Some("only-look")));
    let paths = [format!("/v1/verify/reports/{report}"), "/v1/repairs".to_owned(), "/v1/jobs".to_owned()];
    for path in &paths {
        let (seen, hidden) = (admin.get(path).await, board.get(path).await);
        assert!(seen.ok().to_string().contains("a secret"), "{path}: {seen:?}");
        assert!(!hidden.ok().to_string().contains("a secret"), "{path}: {hidden:?}");
        assert!(hidden.text.contains("[redacted]"), "{path}: {hidden:?}");
    }
    // A page of what was found, and the next one.
    let first = board.get(&format!("/v1/verify/reports/{report}?limit=1")).await.ok();
    let cursor = first["next_cursor"].as_str().unwrap();
    let second = board.get(&format!("/v1/verify/reports/{report}?limit=1&cursor={cursor}")).await.ok();
    assert!(second["next_cursor"].is_null());
    let mut keys = [&first, &second].map(|page| page["differences"][0]["key"][0].as_str().unwrap().to_owned());
    keys.sort();
    assert_eq!(keys, ["1", "3"]);
    let reports = board.get("/v1/verify/reports").await.ok();
    assert_eq!((&reports["items"][0]["id"], &reports["items"][0]["differences"]), (&json!(report), &json!(2)));
    let rows = admin.get("/v1/repairs?entity=users").await.ok();
    let of = |id: &str| rows["items"].as_array().unwrap().iter().find(|row| row["key"][0] == id).unwrap().clone();
    assert_eq!((&of("1")["before"]["name"], &of("1")["after"]["name"]), (&json!("a secret"), &json!("n1")));
    assert!(of("3")["before"].is_null() && of("3")["after"]["name"] == "n3", "{rows}");
    assert_eq!(admin.get("/v1/repairs?entity=nobody").await.ok()["items"], json!([]));
    assert_eq!(board.get("/v1/verify/reports/999999").await.problem(404), "not_found");
    api.stop().await;
}

#[tokio::test]
async fn what_a_server_quotes_of_a_row_when_work_fails_is_for_those_who_may_see_values() {
    let stage = copying::stage(pair().await, 20, |config| {
        // It is no number: `invalid input syntax for type integer: "n1"`.
        config.entities[0].legacy.as_mut().unwrap().aggregate_id = "(name::int)::text".into();
    })
    .await;
    let api = api(&stage).await;
    let (admin, board) = (api.client.with(Some("all-of-it")), api.client.with(Some("only-look")));
    let quotes = |text: &str| text.contains("\\\"n");
    for (path, body) in [
        ("/v1/verify", json!({"entities": ["users"]})),
        ("/v1/backfill/users/start", json!({"reason": "a test"})),
        ("/v1/resync", json!({"entity": "users", "keys": [["1"]], "dry_run": false, "reason": "a test"})),
    ] {
        let started = admin.post(path, body).await.ok();
        let job = format!("/v1/jobs/{}", started["job"]["id"]);
        eventually(DEADLINE, "it has ended", || async { !admin.get(&job).await.ok()["ended_at"].is_null() }).await;
        let (seen, hidden) = (admin.get(&job).await, board.get(&job).await);
        assert!(!quotes(&hidden.text), "{path}: {}", hidden.text);
        // A verification keeps it with its report.
        assert_eq!(quotes(&seen.text), path != "/v1/verify", "{path}: {}", seen.text);
    }
    let reports = board.get("/v1/verify/reports").await.ok();
    let report = format!("/v1/verify/reports/{}", reports["items"][0]["id"]);
    assert!(quotes(&admin.get(&report).await.text), "or this shows nothing");
    for path in [report.as_str(), "/v1/migration", "/v1/jobs", "/v1/audit"] {
        let hidden = board.get(path).await;
        hidden.ok();
        assert!(!quotes(&hidden.text), "{path}: {}", hidden.text);
    }
    api.stop().await;
}

#[tokio::test]
async fn what_the_new_database_says_of_a_row_that_a_repair_may_not_write_is_for_those_who_may_see_values() {
    let mut stage = copying::stage(pair().await, 20, |_| {}).await;
    assert!(copy(&stage).await.is_whole());
    // Refused by an exception that quotes the row, by a constraint whose DETAIL does, and by a row that refers to what is to go.
    let made_wrong = "UPDATE users SET name = 'wrong', version = 0 WHERE id IN (1, 2, 3); DELETE FROM went_back;
         INSERT INTO users VALUES (1000, 'extra', 1), (1001, 'extra', 1);
         CREATE TABLE children (parent bigint REFERENCES users); INSERT INTO children VALUES (1000);
         ALTER TABLE users ADD CONSTRAINT no_n2 CHECK (name <> 'n2') NOT VALID;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'no place for %', NEW.name; END $$;
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users FOR EACH ROW WHEN (NEW.name = 'n1') EXECUTE FUNCTION refuse()";
    stage.pair.new.run(made_wrong).await;
    assert_eq!(verified(&stage).await.entities[0].differences(), 5);
    let all = async |api: &Api, token: &'static str| -> String {
        let mut said = String::new();
        for path in ["/v1/jobs", "/v1/repairs", "/v1/audit", "/v1/migration"] {
            said += &api.client.with(Some(token)).get(path).await.ok().to_string();
        }
        said
    };
    let hidden = |what: &str| {
        let mut rules = Rules::clone(&stage.config.redact);
        match what {
            "a value" => rules.paths = vec!["User: $.name".parse().unwrap()],
            _ => {
                let column = Some("name".to_owned());
                rules.columns = vec![Column { schema: "public".into(), table: "users".into(), column }];
            }
        }
        Arc::new(rules)
    };
    // Nobody is shown what is hidden from everybody: first, so that the jobs tell of nothing else.
    let open = stage.config.redact.clone();
    for (what, rules) in [("a value", hidden("a value")), ("a column", hidden("a column")), ("nothing", open)] {
        stage.config.redact = rules;
        let done = repaired(&stage, None, true).await.unwrap();
        assert_eq!((done.deleted, done.left), (u64::from(what == "a value"), 3), "{what}: {done:?}");
        let said =
            |key: &str| done.changes.iter().find(|c| c.key == [Some(key.to_owned())]).unwrap().message.clone().unwrap();
        let (one, two, parent) = (said("1"), said("2"), said("1000"));
        assert!(two.contains("violates check constraint \"no_n2\"") && !two.contains("n2,"), "{two}");
        assert!(parent.contains("violates foreign key constraint"), "{parent}");
        assert_eq!(one.contains("no place for n1"), what == "nothing", "{what}: {one}");
        let api = api(&stage).await;
        let (admins, readers) = (all(&api, "all-of-it").await, all(&api, "only-look").await);
        assert_eq!(admins.contains("no place for"), what == "nothing", "{what}: {admins}");
        assert!(!readers.contains("no place for") && !readers.contains("wrong"), "{what}: {readers}");
        let kept: String =
            stage.pair.legacy.value("SELECT coalesce(string_agg(a::text, ' '), '') FROM outbox_relay.audit a").await;
        assert!(!kept.contains("no place for"), "{kept}");
        api.stop().await;
    }
    // The others were written, and what was refused stands as it stood.
    let left = "SELECT string_agg(id || name, ' ' ORDER BY id) FROM users WHERE name IN ('wrong', 'extra')";
    assert_eq!(stage.pair.new.value::<String>(left).await, "1wrong 2wrong 1000extra");
}

#[tokio::test]
async fn why_a_job_failed_is_for_those_who_may_see_the_values_of_its_entities() {
    let mut stage = copying::stage(pair().await, 20, |config| config.backfill.max_refused = 0).await;
    let refuses = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN RAISE EXCEPTION 'no place for %', NEW.name; END $$;
         CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON users FOR EACH ROW WHEN (NEW.name = 'n1') EXECUTE FUNCTION refuse()";
    stage.pair.new.run(refuses).await;
    let stop = CancellationToken::new();
    backfill::run(&stage.config, &backfill::Options::default(), &|_| {}, &stop).await.unwrap_err();
    let column = |table: &str| Column { schema: "public".into(), table: table.into(), column: Some("name".into()) };
    let path = |path: &str| Rules { paths: vec![path.parse().unwrap()], ..Rules::default() };
    let columns = |table: &str| Rules { columns: vec![column(table)], ..Rules::default() };
    // What is hidden of others hides nothing of this one, as with its events; and what was kept before is hidden, too.
    for (what, rules, shown) in [
        ("nothing", Rules::default(), true),
        ("another type's", path("Order: $.name"), true),
        ("another table's", columns("orders"), true),
        ("its type's", path("User: $.name"), false),
        ("every type's", path("$.name"), false),
        ("its table's", columns("users"), false),
    ] {
        stage.config.redact = Arc::new(rules);
        let api = api(&stage).await;
        for (token, shown) in [("all-of-it", shown), ("only-look", false)] {
            let jobs = api.client.with(Some(token)).get("/v1/jobs").await.ok();
            let job = &jobs["items"][0];
            assert_eq!((&job["state"], &job["code"]), (&json!("failed"), &json!("too_many_refused")), "{what}: {job}");
            let told = job["message"].as_str().unwrap();
            assert_eq!(told.contains("no place for n1"), shown, "{what}, {token}: {told}");
            assert!(told.contains("backfill.max_refused") && told.contains("mapping or the table"), "{what}: {told}");
        }
        api.stop().await;
    }
}

#[tokio::test]
async fn work_whose_process_is_gone_is_lost_and_not_running() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let order = Order {
        kind: Kind::Backfill,
        entities: vec!["users".into()],
        request: json!({}),
        who: Who { actor: "ada".into(), reason: "a test".into(), ..Who::default() },
    };
    let stop = CancellationToken::new();
    let working = Working::begin(&target, &order, &stop).await.unwrap();
    target.begin_copy("users", Some(20)).await.unwrap();
    let api = api(&stage).await;
    let state = || async {
        let told = api.client.with(Some("only-look")).get("/v1/migration").await.ok();
        let of = |value: &Value| value.as_str().unwrap().to_owned();
        (of(&told["jobs"][0]["state"]), of(&users(&told)["copy"]["state"]))
    };
    assert_eq!(state().await, ("running".to_owned(), "running".to_owned()));
    // Somebody else has it: told so, and not begun twice.
    let again = Working::begin_unless(&target, &order, &[Kind::Backfill], &stop).await.unwrap();
    let taken = again.unwrap_err();
    assert_eq!((taken.job.id, taken.is_same), (working.id.0, true));
    stage.pair.new.run("UPDATE outbox_relay.job SET beat_at = now() - interval '1 minute'").await;
    assert_eq!(state().await, ("lost".to_owned(), "interrupted".to_owned()));
    assert!(Working::begin_unless(&target, &order, &[Kind::Backfill], &stop).await.unwrap().is_ok());
    api.stop().await;
}

#[tokio::test]
async fn work_that_waits_for_a_server_to_answer_is_under_way_and_ends_when_told_to() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    let (source, target) = connect::open(&stage.config).await.unwrap();
    let (late, accepting) = late(&stage.pair.legacy.url).await;
    // What is begun connects anew.
    let mut config = stage.config.clone();
    config.legacy.url = support::stage::config(&late, &stage.pair.new.url).legacy.url;
    let shared = Shared::new(config, source, target.clone(), Metrics::default()).await.unwrap();
    let api = Api::start(&stage.config, tokens(), Some(Arc::new(shared))).await;
    let admin = api.client.with(Some("all-of-it"));
    let states = || async {
        let jobs = target.jobs(None, 10).await.unwrap();
        jobs.into_iter().map(|job| (job.kind, job.state)).collect::<BTreeMap<_, _>>()
    };
    let all = |state: &str| BTreeMap::from(["backfill", "verify"].map(|kind| (kind.to_owned(), state.to_owned())));
    let watching = async {
        eventually(DEADLINE, "both have begun", || async { states().await == all("running") }).await;
        stage.pair.new.run("UPDATE outbox_relay.job SET beat_at = now() - interval '1 minute'").await;
        eventually(DEADLINE, "both say that they are there", || async { states().await == all("running") }).await;
        for job in target.open_jobs().await.unwrap() {
            assert!(target.stop_job(JobId(job.id)).await.unwrap());
        }
        eventually(DEADLINE, "both have ended", || async { states().await == all("stopped") }).await;
    };
    tokio::join!(
        admin.post("/v1/backfill/users/start", json!({"reason": "x"})),
        admin.post("/v1/verify", json!({})),
        watching
    );
    api.stop().await;
    accepting.abort();
}

#[tokio::test]
async fn a_copy_that_leaves_rows_out_says_so_to_everybody() {
    let stage = copying::stage(pair().await, 20, |_| {}).await;
    stage.pair.new.run("ALTER TABLE users ADD CHECK (name NOT IN ('n7', 'n8'))").await;
    let api = api(&stage).await;
    let started = api.client.with(Some("all-of-it")).post("/v1/backfill/users/start", json!({"reason": "x"})).await;
    let id = started.json()["job"]["id"].clone();
    job_is(&api, &id, "done").await;
    let board = api.client.with(Some("only-look"));
    let job = board.get(&format!("/v1/jobs/{id}")).await.ok();
    let said = "users: rows were left out: 2 were refused: mend them or the mapping. Then: outbox-relay backfill users";
    assert_eq!((&job["code"], &job["message"]), (&json!("rows_left"), &json!(said)));
    let copy = &job["result"]["copies"][0];
    assert_eq!((&copy["rows"], &copy["refused"], &copy["state"]), (&json!(18), &json!(2), &json!("left")), "{job}");
    let page = board.get("/").await;
    assert!(page.text.contains("The table is copied but for rows that were left out"), "{}", page.text);
    stage.pair.new.run("ALTER TABLE users DROP CONSTRAINT users_name_check").await;
    let again = api.client.with(Some("all-of-it")).post("/v1/backfill/users/start", json!({"reason": "x"})).await;
    let done = job_is(&api, &again.json()["job"]["id"], "done").await;
    assert_eq!((&done["code"], &done["message"]), (&Value::Null, &Value::Null));
    api.stop().await;
}

#[tokio::test]
async fn whoever_asks_ends_a_verification_of_another_process() {
    let stage = copying::stage(pair().await, 2_000, |_| {}).await;
    assert!(copy(&stage).await.is_whole());
    let (source, target) = connect::open(&stage.config).await.unwrap();
    let stop = CancellationToken::new();
    // So slow that it would take minutes.
    let options = verify::Options { rate: Some(10), ..verify::Options::default() };
    let verifying = verify::verify(&stage.config, &source, &target, &options, &stop, &|_| {});
    let asking = eventually(DEADLINE, "it is asked to end", || async {
        match target.open_jobs().await.unwrap().first() {
            Some(job) => target.stop_job(JobId(job.id)).await.unwrap(),
            None => false,
        }
    });
    let (report, ()) = tokio::join!(verifying, asking);
    assert_eq!(report.unwrap().outcome, verify::Outcome::CouldNot);
    assert_eq!(target.jobs(None, 1).await.unwrap()[0].state, "stopped");
}

/// Waits until a job is so; the job.
async fn job_is(api: &Api, id: &Value, state: &str) -> Value {
    let path = format!("/v1/jobs/{id}");
    let admin = api.client.with(Some("all-of-it"));
    eventually(DEADLINE, "the job is so", || async { admin.get(&path).await.ok()["state"] == state }).await;
    admin.get(&path).await.ok()
}

/// Waits until a copy that was started has got as far as to be noted.
async fn begun(client: &Client) {
    eventually(DEADLINE, "the copy has begun", || async {
        client.get("/v1/backfill").await.ok()["items"].as_array().is_some_and(|items| !items.is_empty())
    })
    .await;
}

async fn actions(stage: &Stage) -> String {
    let sql = "SELECT coalesce(string_agg(concat_ws(' ', action, actor, reason, changed), ', ' ORDER BY id), '') FROM outbox_relay.audit";
    stage.pair.legacy.value(sql).await
}

#[tokio::test]
async fn a_copy_is_started_once_rests_goes_on_is_stopped_and_goes_on_where_it_was() {
    let stage = copying::stage(pair().await, 3_000, |_| {}).await;
    let (api, other) = (api(&stage).await, api(&stage).await);
    let admin = api.client.with(Some("all-of-it"));
    assert_eq!(admin.post("/v1/backfill/users/pause", json!({"reason": "x"})).await.problem(409), "not_begun");
    let slowly = json!({"reason": "the first copy", "rows_per_second": 200});
    let started = admin.post("/v1/backfill/users/start", slowly.clone()).await;
    assert_eq!(started.status, 202, "{started:?}");
    let id = started.json()["job"]["id"].clone();
    begun(&admin).await;
    // Another instance, or the same: nobody begins it twice.
    for client in [&other.client, &api.client] {
        let again = client.with(Some("all-of-it")).post("/v1/backfill/users/start", slowly.clone()).await;
        assert_eq!((again.status, &again.json()["changed"], &again.json()["job"]["id"]), (202, &json!(false), &id));
    }
    let rests = other.client.with(Some("all-of-it")).post("/v1/backfill/users/pause", json!({"reason": "busy"})).await;
    assert_eq!((&rests.ok()["changed"], &rests.ok()["copy"]["state"]), (&json!(true), &json!("paused")));
    let told = || async { users(&admin.get("/v1/migration").await.ok())["copy"].clone() };
    eventually(DEADLINE, "it rests", || async {
        told().await["waits_for"].as_str().is_some_and(|why| why.starts_with("paused"))
    })
    .await;
    let on = admin.post("/v1/backfill/users/resume", json!({"reason": "quiet"})).await.ok();
    assert_eq!((&on["changed"], &on["copy"]["state"]), (&json!(true), &json!("running")));
    let again = admin.post("/v1/backfill/users/resume", json!({"reason": "quiet"})).await.ok();
    assert_eq!(again["changed"], false);
    let stopped =
        other.client.with(Some("all-of-it")).post(&format!("/v1/jobs/{id}/stop"), json!({"reason": "enough"})).await;
    assert_eq!(stopped.ok()["changed"], true);
    job_is(&api, &id, "stopped").await;
    let before = told().await;
    assert_eq!(before["state"], "interrupted");
    assert_eq!(before["ended_at"], Value::Null);
    let done = admin.post("/v1/backfill/users/start", json!({"reason": "at night"})).await;
    let last = done.json()["job"]["id"].clone();
    assert_ne!(last, id);
    let done = job_is(&api, &last, "done").await;
    assert_eq!((&done["actor"], &done["via"], &done["reason"]), (&json!("ops"), &json!("api"), &json!("at night")));
    assert_eq!(told().await["rows"], 3_000);
    agree(&stage).await;
    let said = actions(&stage).await;
    let words: Vec<&str> = said.split(", ").map(|row| row.rsplit_once(' ').unwrap().0).collect();
    assert_eq!(
        words,
        [
            "backfill ops the first copy",
            "backfill.pause ops busy",
            "backfill.resume ops quiet",
            "stop ops enough",
            "backfill ops at night"
        ]
    );
    let rows: i64 =
        stage.pair.legacy.value("SELECT sum(changed)::bigint FROM outbox_relay.audit WHERE action = 'backfill'").await;
    assert_eq!(rows, 3_000, "{said}");
    api.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn whoever_asks_for_other_work_than_what_is_under_way_is_refused_and_a_copy_that_rests_takes_nobodys_place() {
    let databases = pair().await;
    // Whoever reads a legacy row waits while something stands in `slow`: so what is begun does not end.
    databases
        .legacy
        .run(
            "CREATE TABLE slow (); CREATE FUNCTION public.slowly(id bigint) RETURNS text LANGUAGE plpgsql AS $$
             BEGIN WHILE EXISTS (SELECT FROM public.slow) LOOP PERFORM pg_sleep(0.05); END LOOP; RETURN id::text; END $$",
        )
        .await;
    let stage = copying::stage(databases, 3_000, |config| {
        config.relay.deadline = DEADLINE * 10;
        config.entities[0].legacy.as_mut().unwrap().aggregate_id = "public.slowly(id)".into();
    })
    .await;
    let api = api(&stage).await;
    let admin = api.client.with(Some("all-of-it"));
    let start = |restart: bool, rate: u32| json!({"reason": "x", "restart": restart, "rows_per_second": rate});
    let copying = admin.post("/v1/backfill/users/start", start(false, 100)).await.json()["job"]["id"].clone();
    begun(&admin).await;
    admin.post("/v1/backfill/users/pause", json!({"reason": "x"})).await.ok();
    let copy = async |what: &str| users(&admin.get("/v1/migration").await.ok())["copy"][what].clone();
    let waits_for = async |what: &str| {
        eventually(DEADLINE, what, || async {
            copy("waits_for").await.as_str().is_some_and(|why| why.starts_with(what))
        })
        .await;
    };
    waits_for("paused").await;
    stage.pair.legacy.run("INSERT INTO slow DEFAULT VALUES").await;
    let resync = |last: u32, dry_run: bool| {
        let keys: Vec<[String; 1]> = (1..=100).chain([last]).map(|key| [key.to_string()]).collect();
        json!({"entity": "users", "keys": keys, "dry_run": dry_run, "reason": "x"})
    };
    let (one, ..) = tokio::join!(
        admin.post("/v1/resync", resync(101, false)),
        admin.post("/v1/resync", resync(1, true)),
        admin.post("/v1/resync", resync(2, true)),
        admin.post("/v1/resync", resync(3, true)),
    );
    let resyncing = one.json()["job"]["id"].clone();
    assert_eq!(admin.post("/v1/verify", json!({})).await.problem(409), "too_many_jobs");
    let again = admin.post("/v1/resync", resync(101, false)).await;
    assert_eq!((again.status, &again.json()["changed"], &again.json()["job"]["id"]), (202, &json!(false), &resyncing));
    let mut turned = resync(101, false);
    turned["keys"].as_array_mut().unwrap().reverse();
    assert_eq!(admin.post("/v1/resync", turned).await.json()["job"]["id"], resyncing, "in another order");
    // The last key is another one, of those that are not kept with the job.
    let other = admin.post("/v1/resync", resync(102, false)).await;
    assert_eq!(other.problem(409), "other_work");
    assert!(other.text.contains(&format!("POST /v1/jobs/{resyncing}/stop")), "{}", other.text);
    let other = admin.post("/v1/backfill/users/start", start(true, 100)).await;
    assert_eq!(other.problem(409), "other_work");
    assert!(other.text.contains(&format!("job {copying} is under way, backfill of users for ops")), "{}", other.text);
    assert!(other.text.contains("POST /v1/backfill/users/resume"), "{}", other.text);
    assert_eq!(copy("state").await, "paused", "it rests on");
    // The same, if faster: this lifts the pause, though no more can be begun; and so it has to wait.
    let same = admin.post("/v1/backfill/users/start", start(false, 200)).await;
    assert_eq!((same.status, &same.json()["job"]["id"]), (202, &copying));
    assert_eq!(copy("state").await, "running");
    waits_for("this process does as much as it may").await;
    stage.pair.legacy.run("DELETE FROM slow").await;
    eventually(DEADLINE, "it goes on", || async { copy("waits_for").await.is_null() }).await;
    api.stop().await;
}

#[tokio::test]
async fn several_entities_are_copied_as_one_job_parents_first() {
    let stage = parents_and_children().await;
    let api = api(&stage).await;
    let admin = api.client.with(Some("all-of-it"));
    let started = admin.post("/v1/backfill", json!({"reason": "the first copy"})).await.json();
    assert_eq!((&started["changed"], &started["job"]["entities"]), (&json!(true), &json!(["tags", "users"])));
    let done = job_is(&api, &started["job"]["id"], "done").await;
    let copied = |job: &Value| -> Vec<(String, i64)> {
        let copies = job["result"]["copies"].as_array().unwrap();
        copies.iter().map(|of| (of["entity"].as_str().unwrap().to_owned(), of["rows"].as_i64().unwrap())).collect()
    };
    assert_eq!(
        (copied(&done), &done["code"]),
        (vec![("users".to_owned(), 43), ("tags".to_owned(), 129)], &Value::Null)
    );
    // One of them alone, at a lower rate; meanwhile neither all of them nor another way of copying it is begun.
    let slowly =
        |restart: bool| json!({"reason": "x", "entities": ["users"], "restart": restart, "rows_per_second": 5});
    let one = admin.post("/v1/backfill", slowly(true)).await.json()["job"]["id"].clone();
    let same = admin.post("/v1/backfill", slowly(false)).await.json();
    assert_eq!((&same["changed"], &same["job"]["id"]), (&json!(false), &one));
    let same = admin.post("/v1/backfill/users/start", json!({"reason": "x"})).await.json();
    assert_eq!(same["job"]["id"], one);
    assert_eq!(admin.post("/v1/backfill", json!({"reason": "x"})).await.problem(409), "other_work");
    admin.post(&format!("/v1/jobs/{one}/stop"), json!({"reason": "enough"})).await.ok();
    job_is(&api, &one, "stopped").await;
    assert_eq!(verified(&stage).await.entities.len(), 2);
    api.stop().await;
}

#[tokio::test]
async fn a_shutdown_ends_what_was_started_where_it_can_go_on_from() {
    let stage = copying::stage(pair().await, 3_000, |config| config.backfill.rows_per_second = 200).await;
    let api = api(&stage).await;
    let admin = api.client.with(Some("all-of-it"));
    let started = admin.post("/v1/backfill/users/start", json!({"reason": "the first copy"})).await.json();
    api.stop().await;
    let (_, target) = connect::open(&stage.config).await.unwrap();
    let job = target.job(JobId(started["job"]["id"].as_i64().unwrap())).await.unwrap().unwrap();
    assert_eq!(job.state, "stopped");
    let copied = target.copies().await.unwrap().remove(0);
    assert_eq!((copied.state.as_str(), copied.ended_at), ("interrupted", None));
}

#[tokio::test]
async fn a_repair_is_tried_first_and_acts_on_as_many_rows_as_were_expected() {
    let stage = copying::stage(pair().await, 100, |_| {}).await;
    assert!(copy(&stage).await.is_whole());
    stage
        .pair
        .new
        .run("UPDATE users SET name = 'wrong' WHERE id IN (1, 2); INSERT INTO users VALUES (1000, 'extra', 1)")
        .await;
    let api = api(&stage).await;
    let admin = api.client.with(Some("all-of-it"));
    let compared = admin.post("/v1/verify", json!({})).await.json();
    let done = job_is(&api, &compared["job"]["id"], "done").await;
    assert_eq!((&done["result"]["outcome"], &done["result"]["differences"]), (&json!("differs"), &json!(3)));
    let tried = admin.post("/v1/repair", json!({"entity": "users"})).await.json();
    let tried = job_is(&api, &tried["job"]["id"], "done").await;
    assert_eq!((&tried["result"]["applied"], &tried["result"]["written"]), (&json!(false), &json!(2)));
    assert_eq!(tried["result"]["deleted"], 1);
    let act = |expected: u64, reason: &str| json!({"dry_run": false, "expected": expected, "reason": reason});
    assert_eq!(admin.post("/v1/repair", act(3, " ")).await.problem(422), "reason.missing");
    assert_eq!(admin.post("/v1/repair", act(2, "handler mended")).await.problem(409), "not_as_expected");
    let wrong = || stage.pair.new.value::<i64>("SELECT count(*) FROM users WHERE name IN ('wrong', 'extra')");
    assert_eq!(wrong().await, 3);
    assert!(!actions(&stage).await.contains("repair"), "{}", actions(&stage).await);
    let report = done["result"]["report"].clone();
    let acted = json!({"dry_run": false, "expected": 3, "report": report, "reason": "handler mended"});
    let acted = admin.post("/v1/repair", acted).await.json();
    assert_eq!(job_is(&api, &acted["job"]["id"], "done").await["result"]["written"], 2);
    assert_eq!(wrong().await, 0);
    stage.pair.new.run("UPDATE users SET name = 'wrong' WHERE id IN (7, 8)").await;
    let again = json!({"entity": "users", "keys": [["7"], ["8"], ["9"]], "dry_run": false, "reason": "by hand"});
    let again = admin.post("/v1/resync", again).await.json();
    let again = job_is(&api, &again["job"]["id"], "done").await;
    assert_eq!((&again["result"]["written"], &again["result"]["right"]), (&json!(2), &json!(1)));
    assert!(
        actions(&stage).await.ends_with("repair ops handler mended 3, resync ops by hand 2"),
        "{}",
        actions(&stage).await
    );
    let kept: String = stage
        .pair
        .new
        .value("SELECT string_agg(DISTINCT actor || ' ' || reason, ', ') FROM outbox_relay.repaired")
        .await;
    assert_eq!(kept, "ops by hand, ops handler mended");
    api.stop().await;
}

#[tokio::test]
async fn a_repair_that_is_stopped_leaves_the_rest_which_the_next_one_makes_right() {
    let stage = copying::stage(pair().await, 300, |config| config.relay.deadline = DEADLINE * 10).await;
    assert!(copy(&stage).await.is_whole());
    stage.pair.new.run("UPDATE users SET name = 'wrong'").await;
    assert_eq!(verified(&stage).await.entities[0].differences(), 300);
    // Once a hundred rows are right, whoever writes the next one waits while something stands in `slow`.
    let slowly = "CREATE TABLE slow (); INSERT INTO slow DEFAULT VALUES;
         CREATE FUNCTION slowly() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN
             WHILE (SELECT count(*) FROM users WHERE name <> 'wrong') >= 100 AND EXISTS (SELECT FROM slow) LOOP
                 PERFORM pg_sleep(0.05);
             END LOOP;
             RETURN NEW;
         END $$;
         CREATE TRIGGER slowly BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION slowly()";
    stage.pair.new.run(slowly).await;
    let wrong = || stage.pair.new.value::<i64>("SELECT count(*) FROM users WHERE name = 'wrong'");
    let api = api(&stage).await;
    let admin = api.client.with(Some("all-of-it"));
    let act = json!({"dry_run": false, "reason": "handler mended"});
    let started = admin.post("/v1/repair", act.clone()).await;
    let id = started.json()["job"]["id"].clone();
    assert_eq!(started.status, 202, "{started:?}");
    let stopped = admin.post(&format!("/v1/jobs/{id}/stop"), json!({"reason": "not now"})).await.ok();
    assert_eq!((&stopped["changed"], &stopped["job"]["stop_asked"]), (&json!(true), &json!(true)));
    let asked: String = stage.pair.new.value("SELECT clock_timestamp()::text").await;
    let heard = format!("SELECT beat_at > '{asked}' FROM outbox_relay.job WHERE id = {id}");
    eventually(DEADLINE, "its process has heard of it", || async { stage.pair.new.value(&heard).await }).await;
    stage.pair.new.run("DELETE FROM slow").await;
    job_is(&api, &id, "stopped").await;
    let left = wrong().await;
    assert!((1..300).contains(&left), "{left} are wrong still");
    let again = admin.post("/v1/repair", act).await.json();
    let done = job_is(&api, &again["job"]["id"], "done").await;
    assert_eq!((&done["result"]["written"], &done["result"]["right"]), (&json!(left), &json!(300 - left)), "{done}");
    assert_eq!(wrong().await, 0);
    let kept: i64 = stage.pair.new.value("SELECT count(*) FROM outbox_relay.repaired").await;
    assert_eq!(kept, 300, "each row once");
    api.stop().await;
}

#[tokio::test]
async fn nothing_is_started_without_an_admin_a_reason_and_words_that_are_understood() {
    let stage = copying::stage(pair().await, 10, |_| {}).await;
    let api = api(&stage).await;
    let (admin, board) = (api.client.with(Some("all-of-it")), api.client.with(Some("only-look")));
    let because = json!({"reason": "x"});
    for path in [
        "/v1/backfill",
        "/v1/backfill/users/start",
        "/v1/backfill/users/pause",
        "/v1/verify",
        "/v1/repair",
        "/v1/resync",
        "/v1/jobs/1/stop",
    ] {
        assert_eq!(board.post(path, because.clone()).await.problem(403), "read_only", "{path}");
    }
    for path in [
        "/v1/backfill",
        "/v1/backfill/users/start",
        "/v1/backfill/users/pause",
        "/v1/backfill/users/resume",
        "/v1/jobs/1/stop",
    ] {
        assert_eq!(admin.post(path, json!({})).await.problem(422), "reason.missing", "{path}");
    }
    assert_eq!(admin.post("/v1/backfill/nobody/start", because.clone()).await.problem(404), "not_found");
    assert_eq!(admin.post("/v1/backfill/applied/start", because.clone()).await.problem(422), "entity.no_legacy");
    assert_eq!(admin.post("/v1/jobs/999/stop", because.clone()).await.problem(404), "not_found");
    for (path, body, status, code) in [
        ("/v1/backfill", json!({"reason": "x", "entities": ["nobody"]}), 422, "entity.unknown"),
        ("/v1/backfill", json!({"reason": "x", "entities": ["users", "applied"]}), 422, "entity.no_legacy"),
        ("/v1/verify", json!({"entities": ["nobody"]}), 422, "entity.unknown"),
        ("/v1/verify", json!({"entities": ["applied"]}), 422, "entity.no_legacy"),
        ("/v1/verify", json!({"sample": 0}), 400, "malformed"),
        ("/v1/verify", json!({"rate": 1}), 400, "malformed"),
        ("/v1/repair", json!({"report": 999_999}), 404, "not_found"),
        ("/v1/repair", json!([null, null]), 400, "malformed"),
        ("/v1/repair", json!({"entity": "nobody"}), 422, "entity.unknown"),
        ("/v1/resync", json!({"keys": [["1"]]}), 422, "resync.rows"),
        ("/v1/resync", json!({"entity": "users"}), 422, "resync.rows"),
        ("/v1/resync", json!({"entity": "users", "keys": [["1"]], "divergent": true}), 422, "resync.rows"),
        ("/v1/resync", json!({"entity": "users", "keys": [["1", "2"]]}), 422, "resync.keys"),
        ("/v1/resync", json!({"entity": "users", "rows": 1}), 400, "malformed"),
    ] {
        let reply = admin.post(path, body.clone()).await;
        assert_eq!(reply.problem(status), code, "{path} {body}");
    }
    // There is no report yet: told by the job, for it was to look for the last one.
    let none = admin.post("/v1/repair", json!({})).await.ok();
    assert_eq!((&none["job"]["state"], &none["job"]["code"]), (&json!("failed"), &json!("failed")), "{none}");
    assert!(none["job"]["message"].as_str().unwrap().contains("no report yet"), "{none}");
    assert_eq!(actions(&stage).await, "");
    api.stop().await;
}
