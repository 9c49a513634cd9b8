//! Readiness and metrics for the operator, on loopback, read-only.
//!
//! Draining is asked for with SIGTERM, reading the policy again with SIGHUP; nothing on this
//! listener changes anything.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::audit::Recorder;
use crate::facts_feed::LiveFacts;
use crate::metrics::Metrics;
use crate::policy::LivePolicy;
use crate::staleness::Stages;

/// What the operator may look at.
pub struct Admin {
    /// The facts and their age.
    pub facts: Arc<LiveFacts>,
    /// Whether records can be written.
    pub recorder: Arc<Recorder>,
    /// The policy in force.
    pub policy: Arc<LivePolicy>,
    /// When they are too old.
    pub stages: Stages,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Turns `true` when the gateway drains.
    pub shutdown: tokio::sync::watch::Receiver<bool>,
}

/// Serves the admin listener until the gateway drains.
///
/// # Errors
/// If the socket fails.
pub async fn serve(socket: TcpListener, admin: Arc<Admin>) -> std::io::Result<()> {
    let mut shutdown = admin.shutdown.clone();
    let router = Router::new()
        .route("/metrics", get(metrics))
        .route("/readyz", get(ready))
        .route("/policy", get(policy))
        .route("/livez", get(async || "alive\n"))
        .with_state(admin);
    axum::serve(socket, router)
        .with_graceful_shutdown(async move {
            let _ = shutdown.wait_for(|draining| *draining).await;
        })
        .await
}

async fn metrics(State(admin): State<Arc<Admin>>) -> String {
    admin.metrics.feeds.show(&admin.stages, &admin.facts.feed_state());
    admin.metrics.render()
}

async fn policy(State(admin): State<Arc<Admin>>) -> Json<Value> {
    Json(admin.policy.status())
}

async fn ready(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    let (ready, body) = readiness(&admin);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(body))
}

fn readiness(admin: &Admin) -> (bool, Value) {
    let feeds = admin.facts.feed_state();
    let ca = feeds.ca_age_ms.is_some_and(|age| age < feeds.leases.ca_deny_ms);
    let hub = feeds.hub_age_ms.is_some_and(|age| age < feeds.leases.hub_consent_ms);
    let audit = admin.recorder.is_available();
    let draining = *admin.shutdown.borrow();
    let ready = ca && hub && audit && !draining;
    let body = json!({
        "ready": ready,
        "parts": {
            "feed_ca": { "ok": ca, "age_ms": feeds.ca_age_ms },
            "feed_hub": { "ok": hub, "age_ms": feeds.hub_age_ms },
            "audit": { "ok": audit },
            "draining": draining,
        },
    });
    (ready, body)
}
