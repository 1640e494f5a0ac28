//! The trace that an event's writer started.

/// The trace that an event belongs to: W3C Trace Context's `traceparent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceParent {
    /// 32 lower-case hex digits, not all zero.
    pub trace_id: String,
    /// 16 lower-case hex digits, not all zero: the span that wrote the event.
    pub parent_id: String,
    /// Whether the writer recorded its span.
    pub sampled: bool,
}

impl TraceParent {
    /// As in <https://www.w3.org/TR/trace-context/#traceparent-header>: `None` for whatever is not well-formed, and is
    /// then to be ignored. A later version may add fields behind those of version 00.
    pub fn parse(text: &str) -> Option<TraceParent> {
        let hex = |from: usize, to: usize| {
            let digits = text.get(from..to)?;
            digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some(digits)
        };
        let dash = |at: usize| text.as_bytes().get(at) == Some(&b'-');
        let (version, trace_id, parent_id, flags) = (hex(0, 2)?, hex(3, 35)?, hex(36, 52)?, hex(53, 55)?);
        let ends = text.len() == 55 || version != "00" && dash(55);
        let valid = |id: &str| id.bytes().any(|byte| byte != b'0');
        if !(dash(2) && dash(35) && dash(52) && ends && version != "ff" && valid(trace_id) && valid(parent_id)) {
            return None;
        }
        let sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(TraceParent { trace_id: trace_id.to_owned(), parent_id: parent_id.to_owned(), sampled })
    }

    /// From an event's `headers`: JSON text, an object with the key `traceparent`.
    pub fn from_headers(headers: &str) -> Option<TraceParent> {
        #[derive(serde::Deserialize)]
        struct Headers {
            traceparent: Option<serde_json::Value>,
        }
        let headers: Headers = serde_json::from_str(headers).ok()?;
        TraceParent::parse(headers.traceparent?.as_str()?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_standards_own_examples_are_read() {
        let parent = TraceParent::parse(EXAMPLE).unwrap();
        assert_eq!(parent.trace_id, "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(parent.parent_id, "b7ad6b7169203331");
        assert!(parent.sampled);
        assert!(!TraceParent::parse(&EXAMPLE.replace("-01", "-00")).unwrap().sampled);
        assert!(TraceParent::parse(&format!("cc{}-what-the-future-brings", &EXAMPLE[2..])).is_some());
    }

    #[test]
    fn what_is_not_well_formed_is_ignored() {
        for wrong in [
            "",
            "00",
            &format!("{EXAMPLE}-more"),
            &format!("cc{}x", &EXAMPLE[2..]),
            &format!("ff{}", &EXAMPLE[2..]),
            &EXAMPLE.to_uppercase(),
            &EXAMPLE.replace('-', "_"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        ] {
            assert_eq!(TraceParent::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn it_is_found_in_the_headers_of_an_event() {
        assert!(TraceParent::from_headers(&format!(r#"{{"a": [1], "traceparent": "{EXAMPLE}"}}"#)).is_some());
        for headers in ["", "null", "[]", "{}", r#"{"traceparent": 1}"#, r#"{"traceparent": null}"#, r#""{}""#] {
            assert_eq!(TraceParent::from_headers(headers), None, "{headers}");
        }
    }

    proptest! {
        #[test]
        fn every_well_formed_one_is_read_and_no_text_panics(trace in "[0-9a-f]{31}[1-9a-f]", span in "[0-9a-f]{15}[1-9a-f]", text in ".{0,60}") {
            let parsed = TraceParent::parse(&format!("00-{trace}-{span}-03"));
            prop_assert_eq!(parsed, Some(TraceParent { trace_id: trace, parent_id: span, sampled: true }));
            let _ = TraceParent::parse(&text);
        }
    }
}
