//! Posting to the webhook.
//!
//! Guarantees: an answer or an error within [`WITHIN`], and an error that does not tell the address.

use std::time::Duration;

use super::message::Message;
use crate::config::Webhook;

/// For one try. Shorter than a shutdown waits.
const WITHIN: Duration = Duration::from_secs(5);

/// Why a message was not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) why: String,
    /// How long the other side asked to be left alone.
    pub(super) wait: Option<Duration>,
}

/// Posts one message, once. A redirection is an error: an address that moved may have moved to somebody else.
pub(super) async fn post(webhook: &Webhook, message: &Message) -> Result<(), Refused> {
    let refused = |why: String| Refused { why: webhook.hidden_in(&why), wait: None };
    let body = serde_json::to_string(message).map_err(|error| refused(error.to_string()))?;
    let address = webhook.expose().to_owned();
    let asked = move || {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("outbox-relay/", env!("CARGO_PKG_VERSION")))
            .timeout_global(Some(WITHIN))
            .build();
        ureq::Agent::from(config).post(&address).content_type("application/json").send(&body)
    };
    let response = tokio::task::spawn_blocking(asked).await.map_err(|error| refused(error.to_string()))?;
    let response = response.map_err(|error| refused(error.to_string()))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let wait = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
    Err(Refused { wait: wait.map(Duration::from_secs), ..refused(format!("it answered {status}")) })
}
