//! Issue 6 point 7: what the hub says of its answer is held against the permit. The hub here lies.

use audit_log::Event;

use crate::harness::{Client, Reply, World};
use crate::{CARD, code, office};

const LIST: &str = "/v1/insured/131016/0000000001/documents";
const CERTIFICATION: &str = "/v1/insured/131016/0000000001/certification";

const COUNTED: &str = "sekisho_response_mismatches_total";

async fn ask(client: &mut Client, headers: &str, target: &str) -> Reply {
    client.get(target, headers).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_not_the_permitted_one_is_withheld() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    // One connection for all: a lie does not cost it.
    let mut client = world.client(&party).await;
    world.metric(&format!("{COUNTED} 0")).await;
    let mut lies = 0;
    for (path, lie) in [
        (CARD, "holds=burden-ratio"),
        (CARD, "holds=insured-card,burden-ratio"),
        (CARD, "holds="),
        (CARD, "holds=nothing"),
        (CARD, "holds=insured-card+insured-card"),
        (CARD, "about=131016/0000000002"),
        (CARD, "about=271004/0000000001"),
        (CARD, "about=nothing"),
        (CARD, "about=131016/0000000001+131016/0000000001"),
        (CARD, "about=131016/0000000001+131016/0000000002"),
        (CARD, "about=nothing&holds=nothing"),
        (CARD, "about=nothing&status=404+Not+Found"),
        (CARD, "about=nothing&status=302+Found"),
        (CARD, "about=131016/0000000002&pad=200000"),
        (LIST, "holds=insured-card,certification-survey"),
        (LIST, "holds=nothing"),
        (LIST, "about=131016/0000000002"),
        (CERTIFICATION, "about=131016/0000000002"),
        (CERTIFICATION, "about=nothing"),
    ] {
        let reply = ask(&mut client, &headers, &format!("{path}?{lie}")).await;
        assert_eq!((reply.status, code(&reply)), (502, "response_mismatch"), "{lie}");
        let text = reply.body.to_string();
        for leaked in ["padding", "claims", "0000000001", "0000000002"] {
            assert!(!text.contains(leaked) && !reply.head.contains(leaked), "{lie}: {text}");
        }
        lies += 1;
    }
    world.metric(&format!("{COUNTED} {lies}")).await;
    assert_eq!(ask(&mut client, &headers, CARD).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_withheld_answer_stands_in_the_log_with_its_reason() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let path = format!("{CARD}?about=131016/0000000002");
    let delivery = client.deliver(&path, &headers).await.unwrap();
    assert_eq!(delivery.status, 502);
    let is_of = |event: &Event| {
        let Event::Completion { request_id, status, outcome, reasons, .. } = event else {
            return false;
        };
        *request_id == delivery.request_id
            && (*status, outcome.as_str()) == (502, "withheld")
            && reasons == &["response_mismatch"]
    };
    world.events_when(|events| events.iter().any(is_of)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_answer_without_a_declaration_ends_too() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    for path in [format!("{CARD}?about=nothing&empty=1"), format!("{CARD}?holds=&empty=1")] {
        assert_eq!(ask(&mut client, &headers, &path).await.status, 502, "{path}");
    }
    assert_eq!(ask(&mut client, &headers, CARD).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_inbox_item_is_about_one_of_the_municipalitys_own_people() {
    let world = World::start().await;
    let party = world.pki.client("municipality/131016/terminal/kaigo-1", 2);
    let mut client = world.client(&party).await;
    let item = "/v1/municipalities/131016/inbox/7";
    for (lie, status) in [
        ("holds=physician-opinion", 200),
        ("about=131016/0000000009", 200),
        ("about=271004/0000000001", 502),
        ("about=nothing", 502),
        ("holds=nothing", 502),
    ] {
        let reply = ask(&mut client, "", &format!("{item}?{lie}")).await;
        assert_eq!(reply.status, status, "{lie}: {}", reply.body);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_stays_with_us_and_true_answers_pass() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    for (path, status) in [
        (CARD.to_owned(), 200),
        (LIST.to_owned(), 200),
        (format!("{LIST}?holds=insured-card,burden-ratio"), 200),
        (CERTIFICATION.to_owned(), 200),
        ("/v1/registrations".to_owned(), 200),
        (format!("{CARD}?refuse=no_document&about=nothing&holds=nothing"), 403),
        (format!("{CARD}?refuse=no_document&about=131016/0000000002"), 403),
    ] {
        let reply = ask(&mut client, &headers, &path).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.body);
        let head = reply.head.to_ascii_lowercase();
        for ours in ["sekisho-insured", "sekisho-document-kind", "sekisho-refused"] {
            assert!(!head.contains(ours), "{path}: {head}");
        }
    }
    world.metric(&format!("{COUNTED} 0")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kinds_that_a_list_may_show_go_to_the_hub() {
    let world = World::start().await;
    let (party, headers) = office(&world, 1).await;
    let mut client = world.client(&party).await;
    let reply = ask(&mut client, &headers, LIST).await;
    let grants = reply.body["claims"]["grants"].as_array().unwrap().clone();
    let kinds: Vec<&str> = grants.iter().map(|grant| grant["document"].as_str().unwrap()).collect();
    assert!(kinds.contains(&"insured-card"), "{kinds:?}");
    // Without consent it is not open, and the hub is not told of it.
    assert!(!kinds.contains(&"certification-survey"), "{kinds:?}");
}
