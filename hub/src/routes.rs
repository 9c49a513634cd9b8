//! The table of routes: exactly the operations of `policies/data/operations.toml`, each with its
//! handler. A test compares the two.

use axum::handler::Handler;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};
use axum::{Extension, Router};
use policies::reason::Reason;

use crate::permit_guard::{RouteOperation, require_permit};
use crate::refusal::Refusal;
use crate::{
    Hub, access_history, care_plans, certification, consent, documents, inbox, notices,
    registration, sharing, staff,
};

/// A method that some operation has.
#[derive(Debug, Clone, Copy)]
enum Method {
    Get,
    Post,
    Put,
    Delete,
}

/// One operation and what carries it out.
pub(crate) struct Route {
    pub(crate) operation: &'static str,
    #[cfg_attr(not(test), expect(dead_code, reason = "read by the test that compares the tables"))]
    method: Method,
    pub(crate) path: &'static str,
    handler: MethodRouter<Hub>,
}

/// The router of the request socket. The permit is asked for before anything else.
pub(crate) fn router(hub: Hub) -> Router {
    let mut router = Router::new();
    for Route { operation, path, handler, .. } in table() {
        router = router.route(path, handler.layer(Extension(RouteOperation(operation))));
    }
    router
        .fallback(no_such_operation)
        .method_not_allowed_fallback(no_such_operation)
        .layer(from_fn_with_state(hub.clone(), require_permit))
        .with_state(hub)
}

/// What an unknown path or method is answered with, after its permit was checked.
pub(crate) async fn no_such_operation() -> Refusal {
    Reason::NoSuchOperation.into()
}

/// Every route, in the order of the operations table.
pub(crate) fn table() -> Vec<Route> {
    let mut table = general();
    table.extend(about_documents());
    table.extend(about_a_person());
    table.extend(of_a_municipality());
    table
}

fn general() -> Vec<Route> {
    vec![
        route("session.login", Method::Post, "/v1/session", staff::log_in),
        route("session.refresh", Method::Post, "/v1/session/refresh", staff::refresh),
        route("session.logout", Method::Delete, "/v1/session", staff::log_out),
        route("registrations.list", Method::Get, "/v1/registrations", registration::list),
        route(
            "opinion-requests.list",
            Method::Get,
            "/v1/opinion-requests",
            notices::list_opinion_requests,
        ),
        route(
            "care-plan-files.store",
            Method::Post,
            "/v1/care-plan-files/{file}",
            care_plans::store_file,
        ),
    ]
}

fn about_documents() -> Vec<Route> {
    const ALL: &str = "/v1/insured/{insurer}/{number}/documents";
    const ONE: &str = "/v1/insured/{insurer}/{number}/documents/{kind}";
    const VERSIONS: &str = "/v1/insured/{insurer}/{number}/documents/{kind}/versions";
    const VERSION: &str = "/v1/insured/{insurer}/{number}/documents/{kind}/versions/{version}";
    vec![
        route("documents.list", Method::Get, ALL, documents::list),
        route("documents.view", Method::Get, ONE, documents::view),
        route("documents.store", Method::Post, ONE, documents::store),
        route("documents.versions", Method::Get, VERSIONS, documents::list_versions),
        route("documents.view-version", Method::Get, VERSION, documents::view_version),
    ]
}

fn about_a_person() -> Vec<Route> {
    const CONSENTS: &str = "/v1/insured/{insurer}/{number}/consents";
    const WITHDRAWAL: &str = "/v1/insured/{insurer}/{number}/consents/{consent}/withdrawal";
    const CERTIFICATION: &str = "/v1/insured/{insurer}/{number}/certification";
    const OPINION: &str = "/v1/insured/{insurer}/{number}/opinion-requests";
    const CARE_PLAN: &str = "/v1/insured/{insurer}/{number}/care-plan-requests";
    const HISTORY: &str = "/v1/insured/{insurer}/{number}/access-history";
    vec![
        route("consents.list", Method::Get, CONSENTS, consent::list),
        route("consents.record", Method::Post, CONSENTS, consent::record),
        route("consents.withdraw", Method::Post, WITHDRAWAL, consent::withdraw),
        route("certification.view", Method::Get, CERTIFICATION, certification::view),
        route("certification.advance", Method::Post, CERTIFICATION, certification::advance),
        route("opinion-requests.send", Method::Post, OPINION, notices::send_opinion_request),
        route("care-plan-requests.file", Method::Post, CARE_PLAN, notices::file_care_plan_request),
        route("access-history.view", Method::Get, HISTORY, access_history::list),
    ]
}

fn of_a_municipality() -> Vec<Route> {
    const INBOX: &str = "/v1/municipalities/{insurer}/inbox";
    const ITEM: &str = "/v1/municipalities/{insurer}/inbox/{item}";
    const RECEIPT: &str = "/v1/municipalities/{insurer}/inbox/{item}/receipt";
    const SHARING: &str = "/v1/municipalities/{insurer}/sharing";
    vec![
        route("inbox.list", Method::Get, INBOX, inbox::list),
        route("inbox.view", Method::Get, ITEM, inbox::view),
        route("inbox.receive", Method::Post, RECEIPT, inbox::receive),
        route("sharing.set", Method::Put, SHARING, sharing::set),
    ]
}

fn route<H: Handler<T, Hub>, T: 'static>(
    operation: &'static str,
    method: Method,
    path: &'static str,
    handler: H,
) -> Route {
    let filter = match method {
        Method::Get => MethodFilter::GET,
        Method::Post => MethodFilter::POST,
        Method::Put => MethodFilter::PUT,
        Method::Delete => MethodFilter::DELETE,
    };
    Route { operation, method, path, handler: on(filter, handler) }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_routes_are_the_operations_table() {
        let text = include_str!("../../policies/data/operations.toml");
        let data: toml::Table = text.parse().unwrap();
        let field = |entry: &toml::Value, name: &str| entry[name].as_str().unwrap().to_owned();
        let listed: BTreeSet<_> = data["operation"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| (field(entry, "id"), field(entry, "method"), field(entry, "path")))
            .collect();
        let routed: BTreeSet<_> = table()
            .iter()
            .map(|route| {
                let method = format!("{:?}", route.method).to_uppercase();
                (route.operation.to_owned(), method, route.path.to_owned())
            })
            .collect();
        assert_eq!(routed, listed);
        assert_eq!(table().len(), listed.len());
    }
}
