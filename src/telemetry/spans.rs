//! A span for each applied event, as a child of the span that wrote it: one trace from the application's request to the new
//! database. Sent over OTLP (HTTP, protobuf) to where the usual variables say:
//! <https://opentelemetry.io/docs/specs/otel/protocol/exporter/>.
//!
//! Only events whose `traceparent` says that the writer's span is recorded have one; whether to sample is the application's
//! choice, made when the trace began.

use std::time::Duration;

use crate::event::Event;

/// Where to, as every OpenTelemetry program is told.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

fn is_wanted() -> bool {
    ENDPOINTS.iter().any(|name| std::env::var_os(name).is_some_and(|endpoint| !endpoint.is_empty()))
}

#[cfg(not(feature = "otlp"))]
pub(super) fn init() {
    if is_wanted() {
        tracing::warn!("no traces are sent: this program was built without the feature otlp");
    }
}

/// An event was applied, and `took` so long from the lock of its lane to the commit on the source.
#[cfg(not(feature = "otlp"))]
pub fn applied(_: &Event, _: Duration) {}

/// Sends what has not been sent yet; at the end of the process.
#[cfg(not(feature = "otlp"))]
pub fn flush() {}

#[cfg(feature = "otlp")]
pub use self::otlp::{applied, flush};

#[cfg(feature = "otlp")]
pub(super) fn init() {
    if is_wanted()
        && let Err(error) = otlp::start()
    {
        tracing::error!(%error, "no traces are sent");
    }
}

#[cfg(feature = "otlp")]
mod otlp {
    use std::pin::Pin;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::SystemTime;

    use opentelemetry::trace::{
        Span as _, SpanBuilder, SpanContext, SpanId, SpanKind, TraceContextExt as _, TraceFlags, TraceId, TraceState,
        TracerProvider as _,
    };
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
    use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
    use opentelemetry_sdk::Resource;
    use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider};

    use super::{Duration, Event};
    use crate::telemetry::TraceParent;

    struct Spans {
        provider: SdkTracerProvider,
        tracer: SdkTracer,
    }

    static SPANS: OnceLock<Spans> = OnceLock::new();

    pub(super) fn start() -> Result<(), opentelemetry_otlp::ExporterBuildError> {
        let exporter = SpanExporter::builder().with_http().with_http_client(Client::default()).build()?;
        let mut resource = Resource::builder();
        if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name("outbox-relay");
        }
        let resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION"))).build();
        // Every span here has a parent that is recorded: nothing is left to sample.
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::AlwaysOn)
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .build();
        let tracer = provider.tracer("outbox-relay");
        let _ = SPANS.set(Spans { provider, tracer });
        Ok(())
    }

    /// An event was applied, and `took` so long from the lock of its lane to the commit on the source.
    pub fn applied(event: &Event, took: Duration) {
        let Some(spans) = SPANS.get() else { return };
        let Some(writer) = event.headers.as_deref().and_then(TraceParent::from_headers).filter(|p| p.sampled) else {
            return;
        };
        let (Ok(trace), Ok(parent)) = (TraceId::from_hex(&writer.trace_id), SpanId::from_hex(&writer.parent_id)) else {
            return;
        };
        let writer = SpanContext::new(trace, parent, TraceFlags::SAMPLED, true, TraceState::NONE);
        let now = SystemTime::now();
        SpanBuilder::from_name(format!("apply {}", event.aggregate.kind))
            .with_kind(SpanKind::Consumer)
            .with_start_time(now.checked_sub(took).unwrap_or(now))
            .with_attributes([
                KeyValue::new("event.id", event.id.0),
                KeyValue::new("event.event_id", event.event_id.to_string()),
                KeyValue::new("aggregate_type", event.aggregate.kind.clone()),
                KeyValue::new("event_type", event.event_type.clone()),
            ])
            .start_with_context(&spans.tracer, &Context::new().with_remote_span_context(writer))
            .end_with_timestamp(now);
    }

    /// Sends what has not been sent yet; at the end of the process.
    pub fn flush() {
        if let Some(spans) = SPANS.get() {
            // What is not sent within this time is lost, as it is when the collector is away.
            let _ = spans.provider.shutdown_with_timeout(Duration::from_secs(3));
        }
    }

    /// Sends one batch of spans. Blocking: the exporter calls it on a thread of its own.
    #[derive(Debug)]
    struct Client {
        agent: ureq::Agent,
        is_away: AtomicBool,
    }

    impl Default for Client {
        fn default() -> Client {
            let config = ureq::Agent::config_builder()
                .http_status_as_error(false)
                .timeout_global(Some(Duration::from_secs(10)))
                .user_agent(concat!("outbox-relay/", env!("CARGO_PKG_VERSION")));
            Client { agent: config.build().into(), is_away: AtomicBool::new(false) }
        }
    }

    impl Client {
        fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
            let (head, body) = request.into_parts();
            let response = self.agent.run(Request::from_parts(head, &body[..]))?;
            let (head, mut body) = response.into_parts();
            let said = Bytes::from(body.read_to_vec()?);
            if !head.status.is_success() {
                return Err(format!("{}: {}", head.status, String::from_utf8_lossy(&said)).into());
            }
            Ok(Response::from_parts(head, said))
        }
    }

    impl HttpClient for Client {
        fn send_bytes<'s, 'f>(
            &'s self,
            request: Request<Bytes>,
        ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
        where
            's: 'f,
            Self: 'f,
        {
            Box::pin(async move {
                let sent = self.send(request);
                // Told when it changes: a collector that is away for a night is one line.
                match &sent {
                    Ok(_) if self.is_away.swap(false, Ordering::Relaxed) => tracing::info!("traces are sent again"),
                    Err(error) if !self.is_away.swap(true, Ordering::Relaxed) => {
                        tracing::warn!(%error, "traces are lost until the collector takes them again");
                    }
                    _ => {}
                }
                sent
            })
        }
    }
}
