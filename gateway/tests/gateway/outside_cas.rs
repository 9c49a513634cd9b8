//! Certificates of a CA that is not ours and writes no SAN, and its revocation lists.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use policies::feed::Fact;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{OFFICE, Party, Setup, World, now};
use crate::live_swap::counted;
use crate::{CARD, bearer};

const HOUR: i64 = 3_600;
const LOADED: &str = "sekisho_outside_crl_loads_total{outcome=\"loaded\"}";

/// 国保中央会's part.
struct Kokuho {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Kokuho {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "電子請求受付システム認証局");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let ca = Self { dir, issuer: Issuer::new(params, key) };
        ca.publish(1, HOUR, &[]);
        ca
    }

    fn list(&self) -> PathBuf {
        self.dir.path().join("ca.crl")
    }

    /// The part of the configuration about it, `crl` besides the file.
    fn entry(&self, place: &str, more: &str) -> String {
        let anchors = self.dir.path().join("ca.pem");
        let anchors = anchors.display();
        format!(
            "\n[[outside_cas]]\nname = \"kokuho\"\nanchors = \"{anchors}\"\n\
             identity = \"kokuho-subject\"\ncrl = {{ {place}, refresh_ms = 50{more} }}\n"
        )
    }

    async fn world(&self, more: &str) -> World {
        let place = format!("file = \"{}\"", self.list().display());
        World::start_with(Setup { tables: self.entry(&place, more), ..Setup::default() }).await
    }

    fn crl(&self, number: u8, due_in: i64, revoked: &[u8]) -> Vec<u8> {
        let at = |seconds| OffsetDateTime::from_unix_timestamp(now() as i64 + seconds).unwrap();
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from_slice(&[*serial; 16]),
            revocation_time: at(-HOUR),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: at(-2 * HOUR),
            next_update: at(due_in),
            crl_number: SerialNumber::from_slice(&[number]),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().der().to_vec()
    }

    fn publish(&self, number: u8, due_in: i64, revoked: &[u8]) {
        self.put(&self.crl(number, due_in, revoked));
    }

    fn put(&self, list: &[u8]) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, list).unwrap();
        std::fs::rename(new, self.list()).unwrap();
    }

    fn office(&self, kind: &str, serial: u8) -> Party {
        self.leaf(Some(kind), Vec::new(), serial)
    }

    fn leaf(&self, kind: Option<&str>, names: Vec<SanType>, serial: u8) -> Party {
        issue(&self.issuer, kind, names, serial)
    }
}

fn issue(
    issuer: &Issuer<'static, KeyPair>,
    kind: Option<&str>,
    names: Vec<SanType>,
    serial: u8,
) -> Party {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, OFFICE);
    if let Some(kind) = kind {
        params.distinguished_name.push(DnType::OrganizationalUnitName, kind);
    }
    params.subject_alt_names = names;
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number = Some(SerialNumber::from_slice(&[serial; 16]));
    let der = params.signed_by(&key, issuer).unwrap().der().clone();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &der);
    Party {
        chain: vec![der],
        key: PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap(),
        serial: hex::encode([serial; 16]),
        sha256: base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, digest),
    }
}

fn headers(world: &World, party: &Party) -> String {
    bearer(&world.token(party, "s1", now() + 600))
}

async fn is_served(world: &World, party: &Party) -> bool {
    let config = Arc::new(world.client_config(Some(party)));
    match world.connect(config).await {
        Ok(mut client) => {
            client.get(CARD, &headers(world, party)).await.is_ok_and(|it| it.status == 200)
        }
        Err(_) => false,
    }
}

async fn refused(world: &World, party: &Party, reason: &str) {
    world.refused(Arc::new(world.client_config(Some(party))), reason).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn both_kinds_for_care_are_an_office_and_no_other_kind_is() {
    let ca = Kokuho::new();
    let world = ca.world("").await;
    for (serial, kind) in [(1, "介護保険"), (2, "介護DX"), (3, "介護保険証明書")] {
        let party = ca.office(kind, serial);
        let mut client = world.client(&party).await;
        let reply = client.get(CARD, &headers(&world, &party)).await.unwrap();
        assert_eq!(reply.status, 200, "{kind}: {}", reply.body);
        let principal = &reply.body["claims"]["principal"];
        assert_eq!((&principal["kind"], &principal["number"]), (&"office".into(), &OFFICE.into()));
        assert!(principal["terminal"].as_str().unwrap().starts_with("kokuho-"), "{principal}");
        let log = world.audit_with(&format!(r#""serial":"{}""#, party.serial)).await;
        assert!(log.contains("terminal/kokuho-"));
    }
    for (serial, kind) in [(4, "障害者総合支援"), (5, "代理人"), (6, "介護・障害共通"), (7, "x")]
    {
        let party = ca.office(kind, serial);
        refused(&world, &party, "wrong_certificate_kind").await;
        let log = world.audit_with(&format!("certificate kind `{kind}` is not for care")).await;
        assert!(log.contains(&party.serial), "{kind}");
    }
    let without_kind = ca.leaf(None, Vec::new(), 8);
    refused(&world, &without_kind, "wrong_certificate_kind").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_one_is_cut_and_refused_and_equal_serials_of_ours_are_not() {
    let ca = Kokuho::new();
    let world = ca.world("").await;
    let (gone, kept) = (ca.office("介護保険", 1), ca.office("介護保険", 2));
    let own_terminal = format!("office/{OFFICE}/terminal/front-1");
    let own = world.pki.client(&own_terminal, 1);
    let config = Arc::new(world.client_config(Some(&gone)));
    let mut open = world.connect(config.clone()).await.unwrap();
    assert_eq!(open.get(CARD, &headers(&world, &gone)).await.unwrap().status, 200);
    let mut bystander = world.client(&kept).await;
    let mut own_open = world.client(&own).await;
    ca.publish(2, HOUR, &[1]);
    let start = Instant::now();
    while open.get(CARD, &headers(&world, &gone)).await.is_ok_and(|reply| reply.status == 200) {
        assert!(start.elapsed() < Duration::from_secs(5), "still served");
    }
    eprintln!("from the list to refusal, fetched each 50 ms: {:?}", start.elapsed());
    world.refused(config, "revoked").await;
    refused(&world, &gone, "revoked").await;
    assert_eq!(bystander.get(CARD, &headers(&world, &kept)).await.unwrap().status, 200);
    assert_eq!(own_open.get(CARD, &headers(&world, &own)).await.unwrap().status, 200);
    assert!(is_served(&world, &own).await, "an outside list revoked one of ours");

    // And the other way: our CA revokes a serial that the outside CA gave too.
    let second = world.pki.client(&own_terminal, 2);
    assert!(is_served(&world, &second).await);
    world.ca.send(Fact::Revoked { serial: second.serial.parse().unwrap(), at: now() });
    refused(&world, &second, "revoked").await;
    assert!(is_served(&world, &kept).await, "our CA revoked one of the outside CA's");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_list_refuses_unless_the_operator_said_warn() {
    let ca = Kokuho::new();
    ca.publish(1, -HOUR, &[2]);
    let party = ca.office("介護保険", 1);
    let world = ca.world("").await;
    refused(&world, &party, "revocation_unknown").await;
    counted(&world, "sekisho_outside_crls_stale", "1").await;
    ca.publish(2, HOUR, &[2]);
    counted(&world, "sekisho_outside_crls_stale", "0").await;
    assert!(is_served(&world, &party).await);

    let ca = Kokuho::new();
    ca.publish(1, -HOUR, &[2]);
    let party = ca.office("介護保険", 1);
    let world = ca.world(", when_stale = \"warn\"").await;
    assert!(is_served(&world, &party).await, "warn refuses");
    refused(&world, &ca.office("介護保険", 2), "revoked").await;
    counted(&world, "sekisho_outside_crls_stale", "1").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_gone_counts_until_its_lists_are_too_old() {
    let ca = Kokuho::new();
    let party = ca.office("介護保険", 1);
    let world = ca.world(", max_age_ms = 1500").await;
    let mut open = world.client(&party).await;
    assert_eq!(open.get(CARD, &headers(&world, &party)).await.unwrap().status, 200);
    std::fs::remove_file(ca.list()).unwrap();
    let start = Instant::now();
    while open.get(CARD, &headers(&world, &party)).await.is_ok_and(|reply| reply.status == 200) {
        assert!(start.elapsed() < Duration::from_secs(10), "served with an old list");
    }
    refused(&world, &party, "revocation_unknown").await;

    let none = Kokuho::new();
    std::fs::remove_file(none.list()).unwrap();
    let world = none.world(", when_stale = \"warn\"").await;
    refused(&world, &none.office("介護保険", 1), "revocation_unknown").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_that_is_forged_old_or_broken_changes_nothing() {
    let ca = Kokuho::new();
    ca.publish(5, HOUR, &[2]);
    let world = ca.world("").await;
    let (good, revoked) = (ca.office("介護保険", 1), ca.office("介護保険", 2));
    assert!(is_served(&world, &good).await);
    // The same name, another key.
    let forged = Kokuho::new().crl(6, HOUR, &[1]);
    let mut flipped = ca.crl(6, HOUR, &[1]);
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    for (what, list) in [
        ("forged", forged),
        ("its signature changed", flipped),
        ("an older number", ca.crl(4, HOUR, &[])),
        ("no list", b"hello".to_vec()),
        ("nothing", Vec::new()),
    ] {
        let before = refusals(&world).await;
        ca.put(&list);
        let start = Instant::now();
        while refusals(&world).await == before {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}: never read");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(is_served(&world, &good).await, "{what} revoked");
        assert!(!is_served(&world, &revoked).await, "{what} took a revocation back");
        ca.publish(5, HOUR, &[2]);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    ca.publish(6, HOUR, &[1]);
    refused(&world, &good, "revoked").await;
}

async fn refusals(world: &World) -> u64 {
    let metrics = world.admin_get("/metrics").await;
    let name = "sekisho_outside_crl_loads_total{outcome=\"refused\"} ";
    let line = metrics.lines().find_map(|line| line.strip_prefix(name));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_ca_passes_by_the_rule_of_the_other() {
    let ca = Kokuho::new();
    let world = ca.world("").await;
    let uri = SanType::URI(
        "https://id.sekisho.example/municipality/131016/terminal/a".try_into().unwrap(),
    );
    // The outside CA says "municipality" as our CA would: it is the office of its subject.
    let party = ca.leaf(Some("介護保険"), vec![uri.clone()], 1);
    let mut client = world.client(&party).await;
    let reply = client.get(CARD, &headers(&world, &party)).await.unwrap();
    assert_eq!(reply.body["claims"]["principal"]["kind"], "office", "{}", reply.body);
    // With nothing else to go by, it is nobody.
    refused(&world, &ca.leaf(None, vec![uri], 2), "wrong_certificate_kind").await;
    // Our CA names an office in the subject as the outside CA would.
    let own = world.pki.subject_only(OFFICE, "介護保険", 3);
    refused(&world, &own, "no_identity").await;
    // A CA of the outside CA's name is not it.
    let stranger = Kokuho::new().office("介護保険", 4);
    refused(&world, &stranger, "chain_invalid").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_fetched_from_a_server() {
    let ca = Kokuho::new();
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = server.local_addr().unwrap();
    let path = ca.list();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = server.accept().await {
            let mut request = [0; 1_024];
            let read = tcp.read(&mut request).await.unwrap();
            assert!(request[..read].starts_with(b"GET /ca.crl HTTP/1.1\r\n"));
            let list = std::fs::read(&path).unwrap();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", list.len());
            let _ = tcp.write_all(&[head.as_bytes(), &list].concat()).await;
        }
    });
    let place = format!("url = \"http://{address}/ca.crl\"");
    let setup = Setup { tables: ca.entry(&place, ""), ..Setup::default() };
    let world = World::start_with(setup).await;
    let party = ca.office("介護DX", 1);
    let start = Instant::now();
    while !is_served(&world, &party).await {
        assert!(start.elapsed() < Duration::from_secs(10), "never fetched");
    }
    ca.publish(2, HOUR, &[1]);
    refused(&world, &party, "revoked").await;
    assert!(world.admin_get("/metrics").await.contains(LOADED));
}
