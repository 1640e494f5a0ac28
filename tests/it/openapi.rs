//! The API's description: OpenAPI 3.1, complete and true.
//!
//! That every answer is as it says is held by the tests of the admin API themselves: see `support::contract`.

use serde_json::Value;

use crate::admin::{Api, Reply};
use crate::support::contract::API;
use crate::support::stage::Stage;

#[tokio::test]
async fn the_description_needs_no_token_and_refers_to_what_it_has() {
    let stage = Stage::new().await;
    let api = Api::start(&stage.config, crate::admin::tokens(), None).await;
    let document = api.client.get("/v1/openapi.json").await.ok();
    assert_eq!(document, outbox_relay::admin::openapi());
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut references = Vec::new();
    walk(&document, &mut |key, value| {
        if key == "$ref" {
            references.push(value.as_str().unwrap().to_owned());
        }
    });
    assert!(references.len() > 50, "{references:?}");
    for reference in references {
        let place = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(place).is_some(), "{reference} leads nowhere");
    }
    api.stop().await;
}

fn walk(value: &Value, see: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| walk(item, see)),
        Value::Object(fields) => fields.iter().for_each(|(key, value)| {
            see(key, value);
            walk(value, see);
        }),
        _ => {}
    }
}

#[tokio::test]
async fn what_is_documented_is_served_and_what_is_served_is_documented() {
    let stage = Stage::new().await;
    let (_, api) = stage.api().await;
    // All of the router's routes come from where the document comes from; nobody may add one beside it.
    let admin = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/admin");
    for entry in std::fs::read_dir(admin).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains(".route(\"/v1"), "{}: a route beside the document", path.display());
        }
    }
    for (path, item) in API["paths"].as_object().unwrap() {
        for method in ["get", "post", "put", "delete", "patch"] {
            let said = path.replace("{id}", "41").replace("{entity}", "users");
            let body = (method == "post").then(|| "{}".to_owned());
            let reply = api.client.send(method.to_uppercase().leak(), &said, body).await;
            let documented = item.get(method).is_some();
            assert_eq!(reply.status != 405, documented, "{method} {path}: {reply:?}");
            assert!(!is_nowhere(&reply), "{method} {path}: {reply:?}");
        }
    }
    api.stop().await;
}

fn is_nowhere(reply: &Reply) -> bool {
    reply.status == 404 && reply.text.contains("nothing at this address")
}

#[test]
fn everything_in_it_says_what_it_is() {
    let mut missing = Vec::new();
    let (mut ids, mut calls) = (std::collections::BTreeSet::new(), 0);
    for (path, item) in API["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            calls += 1;
            ids.insert(operation["operationId"].as_str().unwrap());
            let parameters = operation["parameters"].as_array().into_iter().flatten();
            let described = parameters.filter(|p| p["description"].as_str().is_none_or(str::is_empty));
            missing.extend(described.map(|p| format!("{method} {path}: {}", p["name"])));
            if operation["summary"].as_str().is_none_or(str::is_empty) {
                missing.push(format!("{method} {path}"));
            }
        }
    }
    assert_eq!(ids.len(), calls, "operation ids differ");
    for (name, schema) in API["components"]["schemas"].as_object().unwrap() {
        if schema["description"].as_str().is_none_or(str::is_empty) {
            missing.push(name.clone());
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

#[tokio::test]
async fn the_page_shows_every_call_and_loads_nothing_from_elsewhere() {
    let stage = Stage::new().await;
    let (_, api) = stage.api().await;
    let page = api.client.get("/v1/docs").await;
    assert_eq!(page.status, 200);
    assert!(
        page.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'; style-src 'self';")
    );
    for (path, item) in API["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(page.text.contains(&format!("{} {path}", method.to_uppercase())), "{method} {path}");
            assert!(
                page.text.contains(&format!("id=\"{}\"", operation["operationId"].as_str().unwrap())),
                "{method} {path}"
            );
        }
    }
    for name in API["components"]["schemas"].as_object().unwrap().keys() {
        assert!(page.text.contains(&format!("id=\"{name}\"")), "{name}");
    }
    for link in page.text.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        let known = match link.strip_prefix('#') {
            Some(anchor) => page.text.contains(&format!("id=\"{anchor}\"")),
            None => matches!(link, "docs.css" | "openapi.json"),
        };
        assert!(known, "{link}");
    }
    assert!(!page.text.contains("<script") && !page.text.contains("src=") && !page.text.contains("://"));
    assert_eq!(api.client.get("/v1/docs.css").await.status, 200);
    api.stop().await;
}
