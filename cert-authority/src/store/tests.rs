//! Tests of the store: offices, codes, certificates, the change log.

use super::*;
use crate::profile::Profile;
use crate::request::PublicKey;
use crate::testing::office;
use rcgen::{KeyPair, PublicKeyData};

const NOW: i64 = 1_800_000_000;

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
}

async fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Store::open(&dir.path().join("ra.sqlite"), &dir.path().join("audit")).await.unwrap();
    Bench { _dir: dir, store }
}

fn data(name: &str) -> OfficeData {
    let service_types = ["43", "15", "43"].iter().map(|code| code.parse().unwrap()).collect();
    let number = "1370000001".parse().unwrap();
    OfficeData { number, name: name.into(), service_types, medical: false }
}

fn public_key() -> PublicKey {
    PublicKey::from_spki(&KeyPair::generate().unwrap().subject_public_key_info()).unwrap()
}

async fn add_code(store: &Store, id: &str) {
    let identity = office();
    let code = NewCode {
        id,
        secret: "SECRET",
        identity: &identity,
        profile: Profile::OfficeBrowser,
        not_after_s: None,
        issued_at: NOW,
        expires_at: NOW + 100,
    };
    store.add_code(&code).await.unwrap();
}

async fn claim(store: &Store, id: &str, key: &PublicKey, now: i64) -> Result<Claim, Error> {
    let serial = crate::key::random_serial().unwrap();
    store.claim(&Claimant { code_id: id, key, serial, now }).await
}

async fn snapshot(store: &Store) -> (Position, Vec<Fact>) {
    let mut snapshot = store.snapshot().await.unwrap();
    let texts: Vec<String> = snapshot.facts().try_collect().await.unwrap();
    let facts = texts.iter().map(|text| fact_of(text).unwrap()).collect();
    (snapshot.position, facts)
}

#[tokio::test]
async fn an_office_is_registered_once_and_suspension_is_published() {
    let Bench { store, .. } = &bench().await;
    let (office, new) = store.add_office(data("A"), NOW).await.unwrap();
    assert!(new && !office.suspended);
    assert_eq!(office.data.service_types.len(), 2, "sorted, each once");
    assert!(!store.add_office(data("A"), NOW + 1).await.unwrap().1);
    assert!(matches!(store.add_office(data("B"), NOW).await, Err(Error::OfficeDiffers(_))));
    let number = office.data.number;
    let (_, seq) = store.set_suspended(number, true, "why").await.unwrap();
    assert_eq!(seq, 2);
    assert_eq!(store.set_suspended(number, true, "again").await.unwrap().1, 2);
    let (position, facts) = snapshot(store).await;
    assert_eq!(position.seq, 2);
    assert!(matches!(facts.as_slice(), [Fact::Office { suspended: true, .. }]));
}

#[tokio::test]
async fn an_office_whose_fact_tells_no_name_is_told_again_once() {
    let Bench { store, .. } = &bench().await;
    let (office, _) = store.add_office(data("見本事業所"), NOW).await.unwrap();
    assert_eq!(store.tell_office_names().await.unwrap(), 0, "it told its name");
    // What the RA published before offices told their names.
    let number = office.data.number;
    let old = Fact::Office {
        number,
        service_types: office.data.service_types.clone(),
        medical: false,
        suspended: false,
        name: String::new(),
    };
    let mut write = store.begin().await.unwrap();
    write.publish(&old).await.unwrap();
    write.commit().await.unwrap();
    assert_eq!(store.tell_office_names().await.unwrap(), 1);
    assert_eq!(store.tell_office_names().await.unwrap(), 0);
    let (position, facts) = snapshot(store).await;
    assert_eq!(position.seq, 3);
    assert!(
        matches!(facts.as_slice(), [Fact::Office { name, .. }] if name == "見本事業所"),
        "{facts:?}"
    );
    let changes = store.changes_after(1, 9).await.unwrap();
    let mut head = store.changes_after(0, 1).await.unwrap()[0].head.clone();
    for Change { seq, fact, head: told } in changes {
        head = next_head(&head, seq, &serde_json::to_string(&fact).unwrap());
        assert_eq!(head, told, "the chain that a gateway counts is the one that was stored");
    }
}

#[tokio::test]
async fn no_code_for_an_unknown_or_suspended_office() {
    let Bench { store, .. } = &bench().await;
    let identity = office();
    let code = NewCode {
        id: "A",
        secret: "S",
        identity: &identity,
        profile: Profile::OfficeBrowser,
        not_after_s: None,
        issued_at: NOW,
        expires_at: NOW,
    };
    assert!(matches!(store.add_code(&code).await, Err(Error::UnknownOffice(_))));
    let (office, _) = store.add_office(data("A"), NOW).await.unwrap();
    store.set_suspended(office.data.number, true, "why").await.unwrap();
    assert!(matches!(store.add_code(&code).await, Err(Error::OfficeSuspended(_))));
}

#[tokio::test]
async fn five_wrong_secrets_lock_that_code_only() {
    let Bench { store, .. } = &bench().await;
    store.add_office(data("A"), NOW).await.unwrap();
    add_code(store, "A").await;
    add_code(store, "B").await;
    for _ in 0..5 {
        let wrong = store.open_code("A", "WRONG").await;
        assert!(matches!(wrong, Err(Error::CodeWrong { counted: true })));
    }
    assert!(matches!(store.open_code("A", "SECRET").await, Err(Error::CodeLocked)));
    assert!(store.open_code("B", "SECRET").await.is_ok());
    let unknown = store.open_code("C", "SECRET").await;
    assert!(matches!(unknown, Err(Error::CodeWrong { counted: false })));
}

#[tokio::test]
async fn a_code_gives_one_certificate_to_one_key() {
    let Bench { store, .. } = &bench().await;
    store.add_office(data("A"), NOW).await.unwrap();
    add_code(store, "A").await;
    let key = public_key();
    assert!(matches!(claim(store, "A", &key, NOW + 101).await, Err(Error::CodeExpired)));
    assert!(matches!(claim(store, "A", &key, NOW).await, Ok(Claim::Sign(_))));
    assert!(matches!(claim(store, "A", &public_key(), NOW).await, Err(Error::CodeUsed)));

    let serial = crate::key::random_serial().unwrap();
    let again = Claimant { code_id: "A", key: &key, serial, now: NOW + 1 };
    let Ok(Claim::Sign(intended)) = store.claim(&again).await else { panic!("no claim") };
    assert_eq!(intended.abandoned.len(), 1, "the intent without an answer");
    let lost = store.certificate(intended.abandoned[0]).await.unwrap();
    assert_eq!(lost.state, State::Abandoned);
    assert!(lost.revocation.is_some());

    store.settle_issued(serial, b"der", (NOW, NOW + 9), NOW).await.unwrap();
    let given = claim(store, "A", &key, NOW + 1000).await;
    assert!(
        matches!(given, Ok(Claim::Again(given)) if given.der == b"der"),
        "after expiry as well"
    );
    add_code(store, "B").await;
    assert!(matches!(claim(store, "B", &key, NOW).await, Err(Error::KeyReused)));
    store.revoke(serial, Reason::KeyCompromise, NOW).await.unwrap();
    assert!(matches!(claim(store, "A", &key, NOW).await, Err(Error::Revoked)));
}

#[tokio::test]
async fn a_refusal_of_the_signer_frees_the_code() {
    let Bench { store, .. } = &bench().await;
    store.add_office(data("A"), NOW).await.unwrap();
    add_code(store, "A").await;
    let serial = crate::key::random_serial().unwrap();
    let key = public_key();
    store.claim(&Claimant { code_id: "A", key: &key, serial, now: NOW }).await.unwrap();
    store.settle_refused(serial, "rate", NOW).await.unwrap();
    assert_eq!(store.certificate(serial).await.unwrap().state, State::Refused);
    assert!(matches!(claim(store, "A", &public_key(), NOW).await, Ok(Claim::Sign(_))));
}

#[tokio::test]
async fn a_suspended_office_gets_no_certificate_for_a_code_it_has() {
    let Bench { store, .. } = &bench().await;
    let (office, _) = store.add_office(data("A"), NOW).await.unwrap();
    add_code(store, "A").await;
    store.set_suspended(office.data.number, true, "why").await.unwrap();
    let refused = claim(store, "A", &public_key(), NOW).await;
    assert!(matches!(refused, Err(Error::OfficeSuspended(_))));
}

#[tokio::test]
async fn revoking_twice_gives_the_same_answer() {
    let Bench { store, .. } = &bench().await;
    store.add_office(data("A"), NOW).await.unwrap();
    add_code(store, "A").await;
    let (key, serial) = (public_key(), crate::key::random_serial().unwrap());
    store.claim(&Claimant { code_id: "A", key: &key, serial, now: NOW }).await.unwrap();
    store.settle_issued(serial, b"der", (NOW, NOW + 9), NOW).await.unwrap();
    let first = store.revoke(serial, Reason::Superseded, NOW + 1).await.unwrap();
    let second = store.revoke(serial, Reason::KeyCompromise, NOW + 2).await.unwrap();
    assert_eq!(first, second);
    assert!(first.1, "known");
    let counts = store.counts().await.unwrap();
    assert_eq!((counts.offices, counts.certificates, counts.revoked), (1, 1, 1));
}

#[tokio::test]
async fn a_serial_that_is_not_ours_is_revoked_and_published() {
    let Bench { store, .. } = &bench().await;
    let serial = crate::key::random_serial().unwrap();
    let (first, known) = store.revoke(serial, Reason::KeyCompromise, NOW).await.unwrap();
    assert!(!known);
    let (_, facts) = snapshot(store).await;
    assert!(matches!(facts.as_slice(), [Fact::Revoked { serial: found, .. }] if *found == serial));
    assert_eq!(store.revoke(serial, Reason::Superseded, NOW + 1).await.unwrap(), (first, false));
    assert_eq!(store.counts().await.unwrap().revoked, 1);
}

#[tokio::test]
async fn a_serial_can_be_revoked_before_its_answer_and_be_abandoned_after() {
    let Bench { store, .. } = &bench().await;
    store.add_office(data("A"), NOW).await.unwrap();
    add_code(store, "A").await;
    let (key, serial) = (public_key(), crate::key::random_serial().unwrap());
    store.claim(&Claimant { code_id: "A", key: &key, serial, now: NOW }).await.unwrap();
    let (first, known) = store.revoke(serial, Reason::KeyCompromise, NOW).await.unwrap();
    assert!(known, "it may be issued");
    store.abandon_serial(serial, "lost", NOW + 1).await.unwrap();
    assert_eq!(store.certificate(serial).await.unwrap().revocation, Some(first));
}

#[tokio::test]
async fn a_lost_database_is_not_replaced_by_an_empty_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, audit) = (dir.path().join("ra.sqlite"), dir.path().join("audit"));
    std::fs::create_dir(&audit).unwrap();
    std::fs::write(audit.join("lock"), "").unwrap();
    Store::open(&path, &audit).await.unwrap().close().await;
    std::fs::write(audit.join("00000001.jsonl"), "").unwrap();
    Store::open(&path, &audit).await.unwrap().close().await;
    std::fs::remove_file(&path).unwrap();
    let Err(error) = Store::open(&path, &audit).await else { panic!("replaced") };
    let expected = format!(
        "`{}` is missing, and there are audit records of it: restore it from the backup",
        path.display()
    );
    assert_eq!(error.to_string(), expected);
    assert!(!path.exists());
    std::fs::write(&path, "").unwrap();
    let Err(error) = Store::open(&path, &audit).await else { panic!("replaced") };
    assert!(error.to_string().contains("is empty, and there are audit records"));
}

#[tokio::test]
async fn the_change_log_is_gapless_and_chained_under_concurrent_writers() {
    let Bench { store, .. } = &bench().await;
    let tasks: Vec<_> = (0..20)
        .map(|n| {
            let store = store.clone();
            let number = format!("13700000{n:02}").parse().unwrap();
            let data = OfficeData { number, ..data("A") };
            tokio::spawn(async move { store.add_office(data, NOW).await.unwrap() })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let changes = store.changes_after(0, 100).await.unwrap();
    let mut head = GENESIS_HEAD.to_owned();
    for (at, change) in changes.iter().enumerate() {
        assert_eq!(change.seq, at as u64 + 1);
        head = next_head(&head, change.seq, &serde_json::to_string(&change.fact).unwrap());
        assert_eq!(change.head, head);
    }
    assert_eq!(changes.len(), 20);
    assert_eq!(store.position().await.unwrap(), Position { seq: 20, head });
    assert_eq!(*store.follow().borrow(), 20);
}
