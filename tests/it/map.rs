//! map: what one event would write, and that it writes nothing.

use std::process::Command;

use outbox_relay::event::EventId;
use outbox_relay::map::{self, Effect, MapError};

use crate::support::stage::Stage;

#[tokio::test]
async fn the_rows_of_an_event_are_shown_and_none_is_written() {
    let stage = Stage::new().await;
    let (legacy, new) = (&stage.pair.legacy.pool, &stage.pair.new.pool);
    let users = map::entity(&stage.config, "users").unwrap();
    let id = stage.user(1, "UserUpdated", "Ada", 2).await;
    let event = map::event_by_id(&stage.config, legacy, EventId(id)).await.unwrap();
    let mapped = map::map(&stage.config, users, new, &event).await.unwrap();
    let Effect::Write(rows) = &mapped.effect else { panic!("{mapped:?}") };
    assert_eq!(rows[0].row, r#"{"id": 1, "name": "Ada", "version": 2}"#);
    assert_eq!(rows[0].stands, None);
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM users").await, 0);
    stage.pair.new.run("INSERT INTO users VALUES (1, 'Old', 1)").await;
    let text = map::render(&map::map(&stage.config, users, new, &event).await.unwrap());
    assert!(
        text.contains("over {\"id\": 1, \"name\": \"Old\", \"version\": 1}")
            && text.ends_with("Nothing was written.\n"),
        "{text}"
    );
    let id = stage.user(1, "UserDeleted", "Ada", 3).await;
    let event = map::event_by_id(&stage.config, legacy, EventId(id)).await.unwrap();
    let Effect::Delete(rows) = map::map(&stage.config, users, new, &event).await.unwrap().effect else { panic!() };
    assert_eq!((rows[0].row.as_str(), rows[0].stands.is_some()), (r#"{"id": 1}"#, true));
    assert_eq!(map::newest_event(&stage.config, legacy, users).await.unwrap().id, EventId(id));
    let things = map::entity(&stage.config, "applied").unwrap();
    assert!(matches!(map::newest_event(&stage.config, legacy, things).await, Err(MapError::NoEventOf(_))));
    let missing = map::event_by_id(&stage.config, legacy, EventId(999)).await;
    assert!(matches!(missing, Err(MapError::NoEvent(_))));
    assert!(map::entity(&stage.config, "user").unwrap_err().to_string().contains("there are: users, applied"));
    let refused = map::map(&stage.config, users, new, &map::event_of_payload(users, r#"{"id": "x"}"#.into())).await;
    assert!(refused.unwrap_err().to_string().contains("invalid input syntax for type bigint"));
}

#[tokio::test]
async fn the_printed_script_runs_in_psql_as_it_is() {
    let stage = Stage::new().await;
    let mut users = map::entity(&stage.config, "users").unwrap().clone();
    let payload = r#"{"id": 1, "name": "O'Hara \\ \"x\" :name", "version": 2}"#;
    let mut event = map::event_of_payload(&users, payload.into());
    for mapping in [
        "SELECT payload->>'id' AS id, payload->>'name' AS name FROM event; -- done",
        "WITH p AS (SELECT payload FROM event) SELECT payload->>'id' AS id, payload->>'name' AS name FROM p",
    ] {
        users.mapping = Some(crate::support::stage::file("mappings/user.sql", mapping));
        let script = map::psql(&stage.config, &users, &event);
        assert_eq!(psql(&stage, &script), "1|O'Hara \\ \"x\" :name\n", "{script}");
    }
    users.mapping = None;
    event.headers = Some("{}".into());
    assert!(psql(&stage, &map::psql(&stage.config, &users, &event)).contains("version|2"));
    assert_eq!(stage.pair.new.value::<i64>("SELECT count(*) FROM users").await, 0);
}

fn psql(stage: &Stage, script: &str) -> String {
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(path.path(), script).unwrap();
    let output = Command::new("psql")
        .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &stage.pair.new.url, "-f"])
        .arg(path.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
