//! Holds every answer that a test gets against the API's own description.

use std::collections::{BTreeSet, HashMap};
use std::sync::{LazyLock, Mutex};

use jsonschema::Validator;
use serde_json::{Value, json};

/// The description, without room for what it does not mention.
pub static API: LazyLock<Value> = LazyLock::new(|| {
    let mut api = outbox_relay::admin::openapi();
    let parts = parts_of(&api);
    for (name, schema) in api["components"]["schemas"].as_object_mut().unwrap() {
        let schema = schema.as_object_mut().unwrap();
        let is_object = schema.contains_key("properties") || schema.contains_key("allOf");
        if is_object && !parts.contains(name) {
            schema.insert("unevaluatedProperties".to_owned(), json!(false));
        }
    }
    api
});

/// Schemas that others are made of: what they do not mention, those may.
fn parts_of(value: &Value) -> BTreeSet<String> {
    match value {
        Value::Array(items) => items.iter().flat_map(parts_of).collect(),
        Value::Object(fields) => {
            let all_of = fields.get("allOf").and_then(Value::as_array).into_iter().flatten();
            let names = all_of.filter_map(|part| part["$ref"].as_str()?.rsplit('/').next().map(str::to_owned));
            names.chain(fields.values().flat_map(parts_of)).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// The template of a path that was called: `/v1/events/{id}` for `/v1/events/41`, and the words of none where one is literal.
fn template(path: &str) -> Option<&'static str> {
    let said: Vec<&str> = path.split('?').next().unwrap().split('/').collect();
    let fits = |template: &&String| {
        let parts: Vec<&str> = template.split('/').collect();
        parts.len() == said.len() && parts.iter().zip(&said).all(|(part, said)| part.starts_with('{') || part == said)
    };
    let found = API["paths"].as_object().unwrap().keys().filter(fits);
    found.min_by_key(|template| template.matches('{').count()).map(String::as_str)
}

/// Panics unless the description has this answer to this call.
pub fn holds<T>(method: &str, path: &str, response: &ureq::http::Response<T>, text: &str) {
    let Some(template) = template(path) else { return };
    let operation = &API["paths"][template][method.to_lowercase()];
    let status = response.status().as_u16().to_string();
    if operation.is_null() {
        assert_eq!(status, "405", "{method} {path} is answered, and not documented");
        return;
    }
    let documented = &operation["responses"][&status];
    assert!(documented.is_object(), "{method} {path}: {status} is not documented: {text}");
    let media = response.headers()["content-type"].to_str().unwrap();
    let content = &documented["content"][media];
    assert!(content.is_object(), "{method} {path}: {status} as {media:?} is not documented: {documented}");
    if media.contains("json") {
        // Numbers in payloads may be beyond what this library reads: there, that it is JSON must do.
        let _: &serde_json::value::RawValue = serde_json::from_str(text).unwrap();
        let Ok(answer) = serde_json::from_str::<Value>(text) else { return };
        let place = format!(
            "/paths/{}/{}/responses/{status}/content/{}/schema",
            escape(template),
            method.to_lowercase(),
            escape(media)
        );
        let wrong = differences(&place, &answer);
        assert!(wrong.is_empty(), "{method} {path}: {status}: {wrong:#?}\n{answer:#}");
    }
}

/// In what a value differs from the schema at a place of the document.
pub fn differences(place: &str, answer: &Value) -> Vec<String> {
    static KNOWN: Mutex<Option<HashMap<String, Validator>>> = Mutex::new(None);
    let mut known = KNOWN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let known = known.get_or_insert_default();
    let validator = known.entry(place.to_owned()).or_insert_with(|| {
        // The whole document, so that its references lead somewhere; what is asked for is one place in it.
        let mut schema = API.clone();
        schema["$ref"] = json!(format!("#{place}"));
        jsonschema::draft202012::options().should_validate_formats(true).build(&schema).unwrap()
    });
    validator.iter_errors(answer).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1").replace('{', "%7B").replace('}', "%7D")
}
