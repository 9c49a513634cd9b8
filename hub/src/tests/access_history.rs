//! The person's access history, joined from the hub's rows and the gateway's record stream.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use policies::decide::Needs;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::harness::*;

const AT: &str = "2026-04-01T00:00:00.000Z";
const NAME: &str = "見本居宅介護支援事業所";
const ORIGIN: &str = "id.test/audit/gateway";

/// What the gateway's end of the stream has to tell.
#[derive(Default)]
struct Told {
    /// Each line of a record with its number, in order.
    records: Vec<(u64, String)>,
    /// What `through` says when everything was sent; else the last number.
    through: Option<u64>,
    /// The numbers that were asked for.
    asked: Vec<u64>,
    /// Tells the hashes of one log from those of another.
    log: u64,
    /// The log's name, where it is not [`ORIGIN`].
    origin: Option<&'static str>,
}

impl Told {
    fn last(&self) -> u64 {
        self.through.unwrap_or_else(|| self.records.last().map_or(0, |(number, _)| *number))
    }

    /// The hash of a record of this log.
    fn hash(&self, number: u64) -> String {
        if number == 0 { "0".repeat(64) } else { format!("{:032x}{number:032x}", self.log) }
    }
}

/// The gateway's end of the stream, on a real socket.
struct Gateway {
    told: Arc<Mutex<Told>>,
    server: Option<JoinHandle<()>>,
    pseudonym: String,
}

impl Gateway {
    /// One that does not listen yet, with what an earlier one told.
    fn new(hub: &TestHub, told: Arc<Mutex<Told>>) -> Self {
        Self { told, server: None, pseudonym: hub.hub.pseudonym.of(INSURED) }
    }

    fn start(hub: &TestHub) -> Self {
        Self::new(hub, Arc::default()).listen(hub)
    }

    fn listen(mut self, hub: &TestHub) -> Self {
        let path = hub.path("gateway.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let shared = Arc::clone(&self.told);
        self.server = Some(tokio::spawn(async move {
            let mut served = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                served.spawn(serve(stream, Arc::clone(&shared)));
            }
        }));
        self
    }

    /// Hangs up on everyone and listens no more.
    async fn stop(self) -> Arc<Mutex<Told>> {
        if let Some(server) = self.server {
            server.abort();
            let _ = server.await;
        }
        self.told
    }

    fn tell(&self, number: u64, at: &str, event: Value) {
        self.tell_named(number, at, event, None);
    }

    #[allow(clippy::needless_pass_by_value, reason = "tests read better with the event in place")]
    fn tell_named(&self, number: u64, at: &str, event: Value, name: Option<&str>) {
        let hash = self.lock().hash(number);
        let mut line = json!({"number": number, "at": at, "event": event, "hash": hash});
        if let Some(name) = name {
            line["party_name"] = name.into();
        }
        self.lock().records.push((number, line.to_string()));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decision(&self, request: &str, action: &str, kind: Option<&str>) -> Value {
        let mut object = json!({"insured": self.pseudonym});
        if let Some(kind) = kind {
            object["document"] = kind.into();
        }
        json!({
            "event": "decision", "request_id": request, "action": action, "object": object,
            "actor": {"principal": CARE, "office": "1370000001", "serial": "01ab", "staff": "s1",
                      "job": "care-manager"},
            "decision": "allow", "policy": "p", "facts_ca_seq": 1, "facts_hub_seq": 1,
            "client_addr": "127.0.0.1:1",
        })
    }

    fn denial(&self, request: &str, kind: &str, reasons: &[&str]) -> Value {
        let mut decision = self.decision(request, "documents.view", Some(kind));
        decision["decision"] = "deny".into();
        decision["reasons"] = json!(reasons);
        decision
    }
}

fn completion(request: &str, status: u16, outcome: &str) -> Value {
    json!({"event": "completion", "request_id": request, "status": status, "bytes_sent": 10,
           "duration_us": 5, "outcome": outcome})
}

async fn serve(stream: UnixStream, told: Arc<Mutex<Told>>) {
    let (read, mut write) = stream.into_split();
    let mut ask = String::new();
    let mut reader = BufReader::new(read);
    reader.read_line(&mut ask).await.unwrap();
    let ask: Value = serde_json::from_str(&ask).unwrap();
    let mut from = ask["from"].as_u64().unwrap();
    let hello = {
        let mut told = told.lock().unwrap();
        told.asked.push(from);
        let (log, last) = (told.origin.unwrap_or(ORIGIN), told.last());
        let mut hello = json!({"log": log, "last": last});
        if from <= last + 1 {
            hello["before"] = told.hash(from - 1).into();
        }
        format!("{hello}\n")
    };
    if write.write_all(hello.as_bytes()).await.is_err() {
        return;
    }
    loop {
        let mut lines = String::new();
        {
            let told = told.lock().unwrap();
            let first = from;
            for (number, line) in told.records.iter().filter(|(number, _)| *number >= first) {
                lines.push_str(line);
                lines.push('\n');
                from = from.max(number + 1);
            }
            let through = told.last();
            let line = json!({"through": through, "hash": told.hash(through)});
            lines.push_str(&line.to_string());
            lines.push('\n');
        }
        if write.write_all(lines.as_bytes()).await.is_err() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn status(hub: &TestHub) -> Value {
    hub.admin("GET", "/access-index", Value::Null).await.expect(200)
}

/// Waits until the index is whole up to `through`.
async fn indexed(hub: &TestHub, through: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = status(hub).await;
        if status["through"] == through && status["rebuilding"] == false {
            return;
        }
        assert!(Instant::now() < deadline, "not indexed up to {through}: {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until the log of this id is indexed up to `through`.
async fn indexed_in(hub: &TestHub, log: u64, through: u64) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while status(hub).await["log"] != log {
        assert!(Instant::now() < deadline, "log {log} is not indexed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    indexed(hub, through).await;
}

async fn page_of(hub: &TestHub, person: &str, query: &str) -> Value {
    let target = format!("/v1/insured/{person}/access-history{query}");
    let answer = hub.call(PORTAL, "GET", &target).send().await;
    assert!(!answer.text.contains("0000000001"), "{}", answer.text);
    answer.expect(200)
}

/// The page, once it says that nothing is missing: the gateway may be late on a busy machine.
async fn whole_page_of(hub: &TestHub, person: &str, query: &str) -> Value {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let page = page_of(hub, person, query).await;
        if page["complete"] == true {
            return page;
        }
        assert!(Instant::now() < deadline, "something is still missing");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn history(hub: &TestHub) -> Vec<Value> {
    let page = page_of(hub, INSURED, "").await;
    assert_eq!(page["next"], Value::Null);
    page["accesses"].as_array().unwrap().clone()
}

/// Delivers the stored card to the care office under this request id.
async fn view(hub: &TestHub, request: &str) {
    let mut call = hub.call(CARE, "GET", &person("documents/insured-card"));
    call.claims.request_id = request.into();
    call.grant("insured-card", false, Needs::NONE).send().await.expect(200);
}

async fn with_card() -> TestHub {
    let hub = TestHub::start_following().await;
    let card = json!({"valid_from": "2026-01-01", "valid_until": "2027-01-01", "care_level": "2"});
    hub.store(CITY, "insured-card", card).await.expect(201);
    hub
}

#[tokio::test]
async fn a_delivery_and_the_gateways_record_of_it_are_one_entry() {
    let hub = with_card().await;
    view(&hub, "q1").await;
    let before = history(&hub).await;
    assert_eq!(before.len(), 1, "{before:?}");
    assert_eq!(before[0]["decision"], "permitted");
    assert_eq!(before[0].get("delivered"), None, "not known yet");

    let gateway = Gateway::start(&hub);
    let decision = gateway.decision("q1", "documents.view", Some("insured-card"));
    gateway.tell_named(3, AT, decision, Some(NAME));
    indexed(&hub, 3).await;
    let open = history(&hub).await;
    assert_eq!((open.len(), open[0].get("delivered")), (1, None));
    gateway.tell(4, AT, completion("q1", 200, "complete"));
    indexed(&hub, 4).await;
    let after = history(&hub).await;
    assert_eq!(after.len(), 1, "{after:?}");
    let entry = &after[0];
    assert_eq!((&entry["delivered"], &entry["version"]), (&json!(true), &json!(1)));
    assert_eq!((&entry["party_name"], &entry["office"]), (&json!(NAME), &json!("1370000001")));
    assert_eq!(entry["action_ja"], "被保険者証を見ました");
    assert_eq!(entry["at"], before[0]["at"], "the index moves nothing");
    let text = entry["text_ja"].as_str().unwrap();
    assert!(text.ends_with(&format!("、{NAME}が、あなたの被保険者証を見ました。")), "{text}");
    assert_eq!(status(&hub).await["records"], 1);
}

#[tokio::test]
async fn denials_and_what_the_hub_keeps_no_row_of_are_entries_of_their_own() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    let denial = gateway.denial("q1", "certification-survey", &["not_registered", "not_live"]);
    gateway.tell_named(1, AT, denial, Some(NAME));
    gateway.tell(2, AT, completion("q1", 403, "complete"));
    gateway.tell_named(3, AT, gateway.decision("q2", "documents.list", None), Some(NAME));
    gateway.tell(4, AT, completion("q2", 200, "complete"));
    gateway.tell(5, AT, gateway.decision("q3", "documents.view", Some("physician-opinion")));
    gateway.tell(6, AT, completion("q3", 404, "complete"));
    gateway.tell(7, AT, gateway.decision("q4", "documents.view", Some("burden-ratio")));
    gateway.tell(8, AT, completion("q4", 200, "client_closed"));
    indexed(&hub, 8).await;
    let entries = history(&hub).await;
    let texts: Vec<&str> = entries.iter().map(|entry| entry["text_ja"].as_str().unwrap()).collect();
    let begin = "2026年4月1日 9時0分（日本時間）、";
    let (named, numbered) = (
        format!("{begin}{NAME}（介護支援専門員）が、あなたの"),
        format!("{begin}事業所番号1370000001の事業所（介護支援専門員）が、あなたの"),
    );
    assert_eq!(
        texts,
        [
            format!(
                "{numbered}負担割合証を見ようとしましたが、送信が途中で切れました\
                 （一部が届いた可能性があります）。"
            ),
            format!("{numbered}主治医意見書を見ようとしましたが、見られませんでした。"),
            format!("{named}書類の一覧を見ました。"),
            format!(
                "{named}認定調査票を見ようとしましたが、市区町村で情報の共有がまだ始まっていない\
                 ため、見られませんでした。"
            ),
        ]
    );
    let denied = &entries[3];
    assert_eq!((&denied["decision"], &denied["delivered"]), (&json!("denied"), &json!(false)));
    assert_eq!(denied["reasons"], json!(["not_registered", "not_live"]));
    let reason = "市区町村で情報の共有がまだ始まっていないためです。";
    assert_eq!(denied["reason_ja"], reason);
    assert_eq!(denied["document_kind_ja"], "認定調査票");
    assert_eq!(
        (&denied["staff_job"], &denied["at"]),
        (&json!("care-manager"), &json!("2026-04-01T00:00:00Z"))
    );
    assert!(!json!(entries).to_string().contains("\"s1\""), "staff ids are not told");
    assert_eq!(
        (&entries[1]["decision"], &entries[1]["delivered"]),
        (&json!("permitted"), &json!(false))
    );
    assert_eq!(entries[0]["delivered"], false);
}

#[tokio::test]
async fn counted_denials_are_one_entry_with_their_count() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    let other = hub.hub.pseudonym.of("131016/0000000002");
    let counted = |what: &str| {
        json!({"event": "aggregated", "what": what, "party": CARE,
               "from": "2026-04-01T00:00:00.000Z", "until": "2026-04-01T00:00:58.000Z",
               "count": 40, "reasons": {"not_registered": 40},
               "insured": {gateway.pseudonym.clone(): 37, other.clone(): 3}})
    };
    gateway.tell_named(1, AT, counted("denials"), Some(NAME));
    gateway.tell(2, AT, counted("handshake_failures"));
    indexed(&hub, 2).await;
    let entries = history(&hub).await;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!((&entries[0]["count"], &entries[0]["request_id"]), (&json!(37), &Value::Null));
    assert_eq!(entries[0]["from"], "2026-04-01T00:00:00Z");
    assert_eq!(
        entries[0]["text_ja"],
        format!(
            "2026年4月1日 9時0分（日本時間）から、{NAME}が、1分間に 37 回、あなたの情報を\
             利用しようとしましたが、担当事業所として登録されていないため、利用できませんでした。"
        )
    );
    let others = page_of(&hub, "131016/0000000002", "").await;
    assert_eq!(others["accesses"][0]["count"], 3);
}

#[tokio::test]
async fn nobody_sees_records_of_another_person() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    let mut foreign = gateway.decision("q1", "documents.view", Some("insured-card"));
    foreign["object"]["insured"] = hub.hub.pseudonym.of("131016/0000000002").into();
    // The same request id as a delivery of this person, with another person's completion.
    view(&hub, "q1").await;
    gateway.tell_named(1, AT, foreign, Some("よその事業所"));
    gateway.tell(2, AT, completion("q1", 200, "complete"));
    let mut nobody = gateway.decision("q2", "documents.view", None);
    nobody["object"] = json!({});
    gateway.tell(3, AT, nobody);
    indexed(&hub, 3).await;
    let entries = history(&hub).await;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!((&entries[0]["party_name"], entries[0].get("delivered")), (&Value::Null, None));
    let others = page_of(&hub, "131016/0000000002", "").await;
    assert_eq!(others["accesses"].as_array().unwrap().len(), 1);
    assert_eq!(others["accesses"][0]["party_name"], "よその事業所");
}

#[tokio::test]
async fn what_the_portal_lists_for_the_person_is_no_entry_and_its_denials_are() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    let by_portal = |mut decision: Value| {
        decision["actor"] = json!({"principal": PORTAL, "serial": "01"});
        decision
    };
    gateway.tell(1, AT, by_portal(gateway.decision("q1", "access-history.view", None)));
    gateway.tell(2, AT, by_portal(gateway.decision("q2", "documents.list", None)));
    gateway.tell(3, AT, by_portal(gateway.denial("q3", "certification-survey", &["not_shared"])));
    indexed(&hub, 3).await;
    let entries = history(&hub).await;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(
        (&entries[0]["party"], &entries[0]["office"]),
        (&json!("system/portal"), &Value::Null)
    );
}

#[tokio::test]
async fn an_inbox_item_read_by_the_municipality_is_joined_through_the_hubs_own_row() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    let mut call = hub.call(CARE, "POST", &person("care-plan-requests"));
    call.claims.request_id = "file".into();
    let notice = call.json(json!({"starts_on": "2026-12-01", "person_agreed": true}));
    notice.send().await.expect(201);
    let mut call = hub.call(CITY, "GET", "/v1/municipalities/131016/inbox/1");
    call.claims.request_id = "q1".into();
    call.send().await.expect(200);
    let mut decision = gateway.decision("q1", "inbox.view", None);
    decision["object"] = json!({"name": "municipality/131016"});
    decision["actor"] = json!({"principal": CITY, "serial": "01"});
    gateway.tell(1, AT, decision);
    gateway.tell(2, AT, completion("q1", 200, "complete"));
    indexed(&hub, 2).await;
    let entries = history(&hub).await;
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0]["delivered"], true);
    assert_eq!(entries[0]["action_ja"], "居宅サービス計画作成依頼届出を見ました");
}

#[tokio::test]
async fn the_stream_is_taken_up_again_where_it_was_left() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    gateway.tell(5, AT, gateway.denial("q1", "burden-ratio", &["not_registered"]));
    gateway.lock().through = Some(7);
    indexed(&hub, 7).await;
    assert_eq!(status(&hub).await["connected"], true);
    let told = gateway.stop().await;
    let deadline = Instant::now() + Duration::from_secs(20);
    while status(&hub).await["connected"] == true {
        assert!(Instant::now() < deadline, "still connected");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let gateway = Gateway::new(&hub, told).listen(&hub);
    gateway.lock().through = None;
    gateway.tell(9, AT, gateway.denial("q2", "burden-ratio", &["not_registered"]));
    indexed(&hub, 9).await;
    assert_eq!(gateway.lock().asked, [1, 8]);
    assert_eq!(history(&hub).await.len(), 2);
}

#[tokio::test]
async fn a_rebuilt_index_gives_the_same_history() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    view(&hub, "q1").await;
    let mut number = 0;
    for n in 0..1_700 {
        let request = if n == 0 { "q1".to_owned() } else { format!("r{n}") };
        let action = if n % 2 == 0 { "documents.view" } else { "documents.list" };
        let at = format!("2026-04-01T00:{:02}:00.000Z", n % 1_700 / 100);
        number += 1;
        gateway.tell(number, &at, gateway.decision(&request, action, Some("insured-card")));
        number += 1;
        gateway.tell(number, &at, completion(&request, 200, "complete"));
    }
    indexed(&hub, number).await;
    let first = whole_page_of(&hub, INSURED, "").await;
    let rest = format!("?before={}", first["next"].as_str().unwrap());
    let second = whole_page_of(&hub, INSURED, &rest).await;
    let count = |page: &Value| page["accesses"].as_array().unwrap().len();
    assert_eq!((count(&first), count(&second)), (1_000, 700));

    let answer = hub.admin("POST", "/access-index/rebuild", json!({"operator": "op"})).await;
    answer.expect(200);
    indexed(&hub, number).await;
    assert_eq!(gateway.lock().asked.last(), Some(&1));
    // A pager that began before goes on with the same page.
    assert_eq!(whole_page_of(&hub, INSURED, &rest).await, second);
    assert_eq!(whole_page_of(&hub, INSURED, "").await, first);
    assert_eq!(status(&hub).await["records"], 1_700);
    assert_eq!(hub.audit("access-index.rebuild"), ["intent", "effect", "outcome:done"]);
}

#[tokio::test]
async fn an_index_is_cleared_at_once_and_filled_when_the_gateway_is_back() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    for n in 1..=1_200 {
        let request = format!("q{n}");
        gateway.tell(n, AT, gateway.denial(&request, "burden-ratio", &["not_registered"]));
    }
    indexed(&hub, 1_200).await;
    let told = gateway.stop().await;
    hub.admin("POST", "/access-index/rebuild", json!({})).await.expect(200);
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let status = status(&hub).await;
        assert_eq!((&status["through"], &status["rebuilding"]), (&json!(0), &json!(true)));
        if status["records"] == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "not cleared: {status}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    view(&hub, "q1").await;
    assert_eq!(history(&hub).await.len(), 1, "what the hub delivered is always there");
    let _gateway = Gateway::new(&hub, told).listen(&hub);
    indexed(&hub, 1_200).await;
    let first = page_of(&hub, INSURED, "").await;
    assert_eq!(first["accesses"].as_array().unwrap().len(), 1_000);
}

#[tokio::test]
async fn a_rebuild_is_refused_where_no_stream_is_configured() {
    let hub = TestHub::start().await;
    let answer = hub.admin("POST", "/access-index/rebuild", Value::Null).await;
    assert_eq!(answer.refused(422), "body_invalid");
    let answer = hub.admin("POST", "/access-index/rebuild", json!({})).await;
    assert_eq!(answer.refused(409), "access_index_not_configured");
    let expected = json!({"through": 0, "records": 0, "connected": false, "rebuilding": false,
                          "log": 1});
    assert_eq!(status(&hub).await, expected);
}

/// What a gateway of the log number `log` tells: `count` denials, with requests of this name.
fn denials_of(hub: &TestHub, log: u64, name: &str, count: u64) -> Gateway {
    let gateway = Gateway::new(hub, Arc::default());
    gateway.lock().log = log;
    for n in 1..=count {
        let request = format!("{name}{n}");
        gateway.tell(n, AT, gateway.denial(&request, "burden-ratio", &["not_registered"]));
    }
    gateway
}

async fn requests(hub: &TestHub) -> Vec<String> {
    let entries = history(hub).await;
    let mut ids: Vec<String> =
        entries.iter().map(|entry| entry["request_id"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    ids
}

#[tokio::test]
async fn another_log_of_the_gateway_is_indexed_beside_the_one_before() {
    // Shorter, as long and longer ones; of the same name and of another.
    for (count, origin) in
        [(1, None), (3, None), (8, None), (8, Some("id.test/audit/other/gateway"))]
    {
        let hub = with_card().await;
        let gateway = denials_of(&hub, 1, "old", 3).listen(&hub);
        indexed(&hub, 3).await;
        drop(gateway.stop().await);
        let gateway = denials_of(&hub, 2, "new", count);
        gateway.lock().origin = origin;
        let gateway = gateway.listen(&hub);
        indexed_in(&hub, 2, count).await;
        let mut expected: Vec<String> = (1..=count).map(|n| format!("new{n}")).collect();
        expected.extend((1..=3).map(|n| format!("old{n}")));
        assert_eq!(requests(&hub).await, expected);
        assert_eq!(gateway.lock().asked, [4, 1]);
        let records = hub.audit("access-index.other-log");
        assert_eq!(records, ["intent", "effect", "outcome:done"]);

        // A new index is one of the newest log only.
        hub.admin("POST", "/access-index/rebuild", json!({})).await.expect(200);
        indexed_in(&hub, 2, count).await;
        assert_eq!(requests(&hub).await, expected);
    }
}

#[tokio::test]
async fn a_log_restored_from_a_backup_tells_nothing_twice() {
    let hub = with_card().await;
    let gateway = denials_of(&hub, 1, "q", 3).listen(&hub);
    let counted = json!({"event": "aggregated", "what": "denials", "party": CARE,
        "from": AT, "until": "2026-04-01T00:00:58.000Z", "count": 7,
        "reasons": {"not_registered": 7}, "insured": {gateway.pseudonym.clone(): 7}});
    gateway.tell(4, AT, counted.clone());
    gateway.tell(5, AT, gateway.denial("lost", "burden-ratio", &["not_registered"]));
    indexed(&hub, 5).await;
    drop(gateway.stop().await);
    let gateway = denials_of(&hub, 1, "q", 3);
    gateway.tell(4, AT, counted);
    let gateway = gateway.listen(&hub);
    indexed_in(&hub, 2, 4).await;
    gateway.tell(5, AT, gateway.denial("new", "burden-ratio", &["not_registered"]));
    indexed_in(&hub, 2, 5).await;
    let entries = history(&hub).await;
    let counts = entries.iter().filter(|entry| entry["count"] == 7).count();
    assert_eq!((entries.len(), counts), (3 + 1 + 2, 1), "{entries:?}");
}

#[tokio::test]
async fn a_history_says_whether_it_is_complete() {
    let hub = with_card().await;
    let complete = async || page_of(&hub, INSURED, "").await["complete"].clone();
    assert_eq!(complete().await, false, "the gateway is away");
    let becomes = async |expected: bool| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while complete().await != expected {
            assert!(Instant::now() < deadline, "never {expected}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let gateway = denials_of(&hub, 1, "q", 3).listen(&hub);
    becomes(true).await;
    assert_eq!(history(&hub).await.len(), 3);
    drop(gateway.stop().await);
    becomes(false).await;
}

#[tokio::test]
async fn what_was_refused_after_the_permit_is_denied_with_its_reason() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    let mut number = 0;
    for (request, action, status, outcome, reason) in [
        ("hub", "documents.view", 403, "complete", "consent_withdrawn"),
        ("withheld", "documents.view", 503, "withheld", "facts_stale"),
        ("missing", "documents.view", 404, "complete", "no_document"),
        ("broken", "documents.store", 502, "upstream_failed", "upstream_unavailable"),
    ] {
        number += 2;
        gateway.tell(number - 1, AT, gateway.decision(request, action, Some("burden-ratio")));
        let mut completion = completion(request, status, outcome);
        completion["reasons"] = json!([reason]);
        gateway.tell(number, AT, completion);
    }
    indexed(&hub, number).await;
    let entries = history(&hub).await;
    let entry = |request: &str| {
        let found = entries.iter().find(|entry| entry["request_id"] == request).unwrap();
        let text = found["text_ja"].as_str().unwrap().to_owned();
        (found["decision"].clone(), found["reasons"].clone(), found["reason_ja"].clone(), text)
    };
    let (decision, reasons, reason_ja, text) = entry("hub");
    assert_eq!((decision, reasons), (json!("denied"), json!(["consent_withdrawn"])));
    assert_eq!(reason_ja, "あなたが同意を撤回しているためです。");
    assert!(text.contains("あなたが同意を撤回しているため、見られませんでした"), "{text}");
    let (decision, reasons, _, _) = entry("withheld");
    assert_eq!((decision, reasons), (json!("denied"), json!(["facts_stale"])));
    let (decision, reasons, reason_ja, text) = entry("missing");
    assert_eq!((decision, reasons), (json!("permitted"), json!(["no_document"])));
    assert_eq!(reason_ja, Value::Null);
    assert!(text.ends_with("見られませんでした。"), "{text}");
    let (decision, reasons, _, text) = entry("broken");
    assert_eq!((decision, reasons), (json!("permitted"), json!([])));
    assert!(
        text.ends_with("登録しようとしましたが、登録できたかどうかは確認できません。"),
        "{text}"
    );
}

#[tokio::test]
async fn counted_denials_in_several_records_of_one_moment_are_not_mixed_up() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    let part = |insured: Value, count: u64| {
        json!({"event": "aggregated", "what": "denials", "party": CARE, "from": AT,
               "until": "2026-04-01T00:00:58.000Z", "count": count,
               "reasons": {"not_registered": count}, "insured": insured})
    };
    let other = hub.hub.pseudonym.of("131016/0000000002");
    gateway.tell(1, AT, part(json!({"p": 1, other: 5}), 6));
    gateway.tell(2, AT, part(json!({gateway.pseudonym.clone(): 3}), 3));
    gateway.tell(3, AT, part(json!({gateway.pseudonym.clone(): 2}), 2));
    indexed(&hub, 3).await;
    let entries = history(&hub).await;
    let counts: Vec<_> = entries.iter().map(|entry| entry["count"].as_u64().unwrap()).collect();
    assert_eq!(counts, [2, 3]);
    let others = page_of(&hub, "131016/0000000002", "").await;
    let counts = (&others["accesses"][0]["count"], &others["accesses"][1]);
    assert_eq!(counts, (&json!(5), &Value::Null));
}

#[tokio::test]
async fn a_refusal_tells_the_gateway_its_code_and_the_log_its_metrics() {
    let hub = with_card().await;
    let call = hub.call(CARE, "GET", &person("documents/burden-ratio"));
    let answer = call.grant("burden-ratio", false, Needs::NONE).send().await;
    assert_eq!(answer.refused(404), "no_document");
    assert!(answer.head.contains("sekisho-refused: no_document\r\n"), "{}", answer.head);
    let text = hub.admin("GET", "/metrics", Value::Null).await.text;
    assert!(text.contains("sekisho_audit_available 1"), "{text}");
}

#[tokio::test]
async fn a_malformed_line_is_asked_for_again_and_never_skipped() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    gateway.tell(1, AT, gateway.denial("q1", "burden-ratio", &["not_registered"]));
    gateway.lock().records.push((2, "{\"number\": 2, \"at\": \"yesterday\"".into()));
    gateway.tell(3, AT, gateway.denial("q3", "burden-ratio", &["not_registered"]));
    indexed(&hub, 1).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while gateway.lock().asked.len() < 3 {
        assert!(Instant::now() < deadline, "asked {:?}", gateway.lock().asked);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(gateway.lock().asked[..3], [1, 2, 2]);
    assert_eq!(status(&hub).await["through"], 1, "nothing after it was taken");
    let denial = gateway.denial("q2", "burden-ratio", &["not_registered"]);
    let hash = gateway.lock().hash(2);
    let line = json!({"number": 2, "at": AT, "event": denial, "hash": hash}).to_string();
    gateway.lock().records[1].1 = line;
    indexed(&hub, 3).await;
    assert_eq!(history(&hub).await.len(), 3);
}

#[tokio::test]
async fn a_line_without_end_and_a_number_that_goes_back_end_the_connection() {
    for bad in ["x".repeat(200 * 1024), json!({"through": 1}).to_string()] {
        let hub = with_card().await;
        let gateway = Gateway::start(&hub);
        gateway.tell(1, AT, gateway.denial("q1", "burden-ratio", &["not_registered"]));
        gateway.tell(2, AT, gateway.denial("q2", "burden-ratio", &["not_registered"]));
        gateway.lock().records.push((3, bad));
        let deadline = Instant::now() + Duration::from_secs(30);
        while gateway.lock().asked.len() < 3 {
            assert!(Instant::now() < deadline, "asked {:?}", gateway.lock().asked);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(gateway.lock().asked[..2], [1, 3]);
    }
}

#[tokio::test]
async fn pages_part_entries_of_the_same_time_without_loss_or_repetition() {
    let hub = with_card().await;
    let gateway = Gateway::start(&hub);
    // 2026-04-01T00:00:00Z, in the second of the gateway's records.
    hub.sql(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 800)
         INSERT INTO accesses (insurer, number, at, party, principal, kind, version, action,
         request_id)
         SELECT '131016', '0000000001', 1775001600, 'office/1370000001', 'p', 'insured-card', 1,
         'documents.view', 'd' || i FROM n",
    )
    .await;
    for n in 1..=1_500 {
        // Some are of requests that the hub has rows of.
        let request = if n <= 100 { format!("d{n}") } else { format!("g{n}") };
        gateway.tell(n, AT, gateway.decision(&request, "documents.view", Some("insured-card")));
    }
    indexed(&hub, 1_500).await;
    let (mut seen, mut query) = (Vec::new(), String::new());
    loop {
        let page = page_of(&hub, INSURED, &query).await;
        let entries = page["accesses"].as_array().unwrap();
        assert!(!entries.is_empty());
        seen.extend(entries.iter().map(|entry| entry["request_id"].as_str().unwrap().to_owned()));
        // What is delivered meanwhile moves no page.
        view(&hub, &format!("g{}", 1_500 - seen.len() / 10)).await;
        view(&hub, &format!("g{}", 101 + seen.len() / 100)).await;
        match page["next"].as_str() {
            Some(next) => query = format!("?before={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 800 + 1_400);
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 800 + 1_400, "an entry came twice");
}
