//! Style sheet, script and icon: in the binary, and the only things that a page loads.

use std::sync::OnceLock;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

/// One file.
pub(super) struct Asset {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
    version: OnceLock<String>,
}

pub(super) static STYLE: Asset =
    Asset::new("/assets/page.css", "text/css; charset=utf-8", include_str!("assets/page.css"));
pub(super) static SCRIPT: Asset =
    Asset::new("/assets/page.js", "text/javascript; charset=utf-8", include_str!("assets/page.js"));
pub(super) static ICON: Asset = Asset::new("/assets/icon.svg", "image/svg+xml", include_str!("assets/icon.svg"));

/// What is served without being signed in.
pub(super) static ALL: [&Asset; 3] = [&STYLE, &SCRIPT, &ICON];

impl Asset {
    const fn new(path: &'static str, kind: &'static str, text: &'static str) -> Asset {
        Asset { path, kind, text, version: OnceLock::new() }
    }

    /// Without the version.
    pub(super) fn path(&self) -> &'static str {
        self.path
    }

    /// With it: a new program's page never meets an old one's style sheet.
    pub(super) fn address(&self) -> String {
        format!("{}?v={}", self.path, &self.version()[..12])
    }

    fn version(&self) -> &str {
        self.version.get_or_init(|| {
            let digest = ring::digest::digest(&ring::digest::SHA256, self.text.as_bytes());
            digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
        })
    }

    /// Serves it; a browser that has it is told so.
    pub(super) fn serve<S: Clone + Send + Sync + 'static>(&'static self) -> MethodRouter<S> {
        get(move |headers: HeaderMap| async move { self.answer(&headers) })
    }

    fn answer(&self, headers: &HeaderMap) -> Response {
        let tag = format!("\"{}\"", &self.version()[..32]);
        let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok());
        let known = known.is_some_and(|list| list.split(',').any(|it| it.trim().trim_start_matches("W/") == tag));
        let mut response = if known {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            ([(header::CONTENT_TYPE, self.kind)], self.text).into_response()
        };
        let headers = response.headers_mut();
        if let Ok(tag) = HeaderValue::from_str(&tag) {
            headers.insert(header::ETAG, tag);
        }
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        response
    }
}
