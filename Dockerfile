# syntax=docker/dockerfile:1
# outbox-relay as an image: docker build -t outbox-relay .
# The configuration is expected at /etc/outbox-relay/outbox-relay.toml, with the files that it names beside it.

FROM rust:1-slim-bookworm AS build
WORKDIR /build
# The dependencies as a layer of their own, which lasts until Cargo.toml or Cargo.lock changes.
COPY Cargo.toml Cargo.lock ./
# A package of tests only, but one of the workspace: cargo wants to see it.
COPY tests/model/Cargo.toml tests/model/
RUN mkdir src && echo 'fn main() {}' > src/main.rs && touch src/lib.rs && cargo build --profile dist --locked --features otlp && rm -r src
COPY src src
COPY sql sql
# The empty sources above may be younger than the real ones, by which cargo goes.
RUN touch src/main.rs src/lib.rs && cargo build --profile dist --locked --features otlp

FROM debian:bookworm-slim
LABEL org.opencontainers.image.title="outbox-relay" org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin relay
COPY --from=build /build/target/dist/outbox-relay /usr/local/bin/outbox-relay
COPY LICENSE /usr/share/doc/outbox-relay/LICENSE
# By number, so that Kubernetes can see that it is not root.
USER 10001:10001
WORKDIR /etc/outbox-relay
# Other containers are to reach the admin API. The relay refuses this address without a token (OUTBOX_RELAY_ADMIN_TOKEN or
# OUTBOX_RELAY_READ_TOKEN), and without TLS: OUTBOX_RELAY_ADMIN__TLS_CERT and OUTBOX_RELAY_ADMIN__TLS_KEY, or
# OUTBOX_RELAY_ADMIN__BEHIND_PROXY=true where a proxy or a mesh has it.
ENV OUTBOX_RELAY_ADMIN__LISTEN=0.0.0.0:8080 OUTBOX_RELAY_LOG__FORMAT=json
EXPOSE 8080
# Alive, not ready: to restart the relay would not bring a database back. It reads the configuration as the relay does, and so knows
# whether to speak TLS.
HEALTHCHECK --interval=10s --timeout=4s --start-period=30s --retries=3 CMD ["outbox-relay", "alive"]
# SIGTERM lets the current batches end, and exits 0 within ten seconds.
STOPSIGNAL SIGTERM
ENTRYPOINT ["outbox-relay"]
CMD ["run", "--config", "/etc/outbox-relay/outbox-relay.toml"]
