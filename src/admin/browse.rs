//! The API's description as a page: no script, nothing from anywhere else.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};
use serde_json::{Map, Value};

use super::Inner;

const STYLE: &str = include_str!("browse.css");
const POLICY: &str =
    "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// This document, for people.
#[utoipa::path(
    get,
    path = "/v1/docs",
    security((), ("token" = [])),
    responses((status = OK, body = String, content_type = "text/html; charset=utf-8"))
)]
pub(super) async fn page(State(state): State<Arc<Inner>>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, state.document.page.clone()).into_response()
}

/// How that page looks.
#[utoipa::path(
    get,
    path = "/v1/docs.css",
    security((), ("token" = [])),
    responses((status = OK, body = String, content_type = "text/css; charset=utf-8"))
)]
pub(super) async fn style() -> Response {
    let headers = [(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::X_CONTENT_TYPE_OPTIONS, "nosniff")];
    (headers, STYLE).into_response()
}

/// The page for a document.
pub(super) fn render(api: &Value) -> String {
    let title = text(&api["info"]["title"]);
    let operations = operations(api);
    let schemas = object(&api["components"]["schemas"]);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) ": the admin API" }
                link rel="stylesheet" href="docs.css";
            }
            body {
                h1 { (title) " " (text(&api["info"]["version"])) ": the admin API" }
                p { (text(&api["info"]["description"])) }
                p { (text(&api["components"]["securitySchemes"]["token"]["description"])) }
                p { "For programs: " a href="openapi.json" { "openapi.json" } " (OpenAPI " (text(&api["openapi"])) ")." }
                nav aria-label="Calls" {
                    ul { @for call in &operations { li { a href={ "#" (call.anchor()) } { code { (call.name()) } } } } }
                }
                main {
                    h2 { "Calls" }
                    @for call in &operations { (described(call)) }
                    h2 { "Objects" }
                    @for (name, schema) in schemas {
                        section id=(name) {
                            h3 { (name) }
                            p { (text(&schema["description"])) }
                            (fields(schema))
                        }
                    }
                }
            }
        }
    };
    page.into_string()
}

struct Call<'a> {
    method: &'a str,
    path: &'a str,
    operation: &'a Value,
}

impl Call<'_> {
    fn name(&self) -> String {
        format!("{} {}", self.method.to_uppercase(), self.path)
    }

    fn anchor(&self) -> &str {
        text(&self.operation["operationId"])
    }
}

fn operations(api: &Value) -> Vec<Call<'_>> {
    let paths = object(&api["paths"]);
    let calls = paths
        .iter()
        .flat_map(|(path, item)| object(item).iter().map(move |(method, operation)| Call { method, path, operation }));
    calls.filter(|call| call.operation.is_object()).collect()
}

fn described(call: &Call<'_>) -> Markup {
    let operation = call.operation;
    let parameters = list(&operation["parameters"]);
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    html! {
        section id=(call.anchor()) {
            h3 { (call.name()) }
            p { (text(&operation["summary"])) }
            @for paragraph in text(&operation["description"]).split("\n\n").filter(|p| !p.is_empty()) { p { (paragraph) } }
            @if !parameters.is_empty() {
                table {
                    tr { th { "Parameter" } th { "in" } th { "is" } th { "" } }
                    @for parameter in parameters {
                        tr {
                            td { code { (text(&parameter["name"])) } }
                            td { (text(&parameter["in"])) }
                            td { (kind(&parameter["schema"])) }
                            td { (text(&parameter["description"])) }
                        }
                    }
                }
            }
            @if !body.is_null() { p { "Body: " (kind(body)) } }
            table {
                tr { th { "Answer" } th { "is" } th { "" } }
                @for (status, answer) in object(&operation["responses"]) {
                    tr {
                        td { (status) }
                        td {
                            @for (media, content) in object(&answer["content"]) {
                                @if media.contains("json") { (kind(&content["schema"])) } @else { (media) }
                            }
                        }
                        td { (text(&answer["description"])) }
                    }
                }
            }
        }
    }
}

/// An object's fields, with those of what it is made of.
fn fields(schema: &Value) -> Markup {
    let parts = list(&schema["allOf"]);
    let required = list(&schema["required"]);
    let properties = object(&schema["properties"]);
    html! {
        @if properties.is_empty() && parts.is_empty() { p { (kind(schema)) } }
        @for part in parts {
            @if part["$ref"].is_string() { p { "All of " (kind(part)) ", and:" } } @else { (fields(part)) }
        }
        @if !properties.is_empty() {
            table {
                tr { th { "Field" } th { "is" } th { "" } }
                @for (name, property) in properties {
                    tr {
                        td { code { (name) } }
                        td {
                            (kind(property))
                            @if !required.iter().any(|known| known == name) { ", optional" }
                        }
                        td { (text(&property["description"])) }
                    }
                }
            }
        }
    }
}

/// What a value is, in a few words.
fn kind(schema: &Value) -> Markup {
    if let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) {
        return html! { a href={ "#" (name) } { (name) } };
    }
    let choices = ["oneOf", "anyOf", "allOf"].iter().flat_map(|word| list(&schema[*word])).collect::<Vec<_>>();
    let words = list(&schema["enum"]);
    let types: Vec<&str> = match &schema["type"] {
        Value::Array(types) => types.iter().map(text).collect(),
        other => vec![text(other)],
    };
    html! {
        @if !choices.is_empty() {
            @for (at, choice) in choices.into_iter().enumerate() { @if at > 0 { " or " } (kind(choice)) }
        } @else if !words.is_empty() {
            @for (at, word) in words.iter().enumerate() { @if at > 0 { ", " } code { (text(word)) } }
        } @else if types.contains(&"array") {
            "list of " (kind(&schema["items"]))
            @if types.contains(&"null") { " or null" }
        } @else if types == [""] {
            "anything"
        } @else {
            (types.join(" or "))
            @if let Some(format) = schema["format"].as_str() { " (" (format) ")" }
            @if schema["additionalProperties"].is_object() { " of " (kind(&schema["additionalProperties"])) }
        }
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn object(value: &Value) -> &Map<String, Value> {
    static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
    value.as_object().unwrap_or(&NONE)
}
