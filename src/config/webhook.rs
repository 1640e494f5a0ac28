//! Where alerts are posted to, and the address at which people open the page.

use std::fmt;

use super::Webhook;

/// What an address is made of: its scheme and host, and the rest.
fn split(text: &str) -> Result<(&str, &str), String> {
    let (scheme, rest) = text.split_once("://").unwrap_or(("", text));
    if !matches!(scheme, "https" | "http") {
        return Err("it does not begin with https:// or http://".to_owned());
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let printable = text.bytes().all(|byte| byte.is_ascii_graphic());
    if rest[..end].is_empty() || !printable || ureq::http::Uri::try_from(text).is_err() {
        return Err("it is no address that can be asked".to_owned());
    }
    Ok(text.split_at(scheme.len() + 3 + end))
}

/// An address for people; empty: none.
pub(super) fn page(text: &str) -> Result<String, String> {
    if !text.is_empty() {
        split(text)?;
    }
    Ok(text.trim_end_matches('/').to_owned())
}

impl Webhook {
    /// Takes an address of HTTP or HTTPS. An error never repeats it: whoever knows it may post.
    pub fn parse(text: &str) -> Result<Webhook, String> {
        split(text).map(|_| Webhook(text.to_owned()))
    }

    /// The whole address: for posting, never for printing.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What another text says of it, without the secret.
    pub fn hidden_in(&self, text: &str) -> String {
        let secret = split(&self.0).map_or("", |(_, secret)| secret);
        let text = text.replace(&self.0, &self.to_string());
        if secret.len() < 2 { text } else { text.replace(secret, "/***") }
    }
}

impl fmt::Display for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, secret) = split(&self.0).unwrap_or_default();
        let (scheme, host) = shown.split_once("://").unwrap_or_default();
        // A name and password may stand before the host.
        let host = host.rsplit_once('@').map_or(host.to_owned(), |(_, host)| format!("***@{host}"));
        write!(f, "{scheme}://{host}{}", if secret.len() < 2 { secret } else { "/***" })
    }
}

impl fmt::Debug for Webhook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Webhook({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_is_never_shown_in_full() {
        for (text, shown) in [
            ("https://hooks.slack.com/services/T0/B0/s3cret", "https://hooks.slack.com/***"),
            ("https://ops:s3cret@example.org:8443/x", "https://***@example.org:8443/***"),
            ("http://127.0.0.1:9000?token=s3cret", "http://127.0.0.1:9000/***"),
            ("http://alerts/", "http://alerts/"),
        ] {
            let webhook = Webhook::parse(text).unwrap();
            assert_eq!(webhook.to_string(), shown);
            assert_eq!(format!("{webhook:?}"), format!("Webhook({shown})"));
            assert!(!webhook.hidden_in(&format!("no answer from {text} within 5s")).contains("s3cret"));
        }
        let webhook = Webhook::parse("https://hooks.slack.com/services/T0/B0/s3cret").unwrap();
        assert_eq!(webhook.hidden_in("POST /services/T0/B0/s3cret: gone"), "POST /***: gone");
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for text in ["", "hooks.slack.com/s3cret", "ftp://a/s3cret", "https://", "https:///s3cret", "https://a/s3 cret"]
        {
            let error = Webhook::parse(text).unwrap_err();
            assert!(!error.contains("s3"), "{error}");
        }
        assert_eq!(page("https://relay.example.org/"), Ok("https://relay.example.org".to_owned()));
        assert_eq!(page(""), Ok(String::new()));
        assert!(page("relay.example.org").is_err());
    }
}
