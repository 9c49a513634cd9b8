//! Tests of the ceremony: what `init` makes, keeps, completes and refuses.

use super::*;
use crate::testing::{openssl_verify, webpki_accepts};
use std::fs;
use std::os::unix::fs::PermissionsExt;

fn plan(dir: &Path, demo: bool) -> Plan {
    let dir = dir.join("ca");
    Plan {
        root_key: dir.join("root.key"),
        dir,
        operator_name: "Test Operator".into(),
        policy_arc: "2.999.1".parse().unwrap(),
        demo,
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

fn steps(plan: &Plan) -> Vec<Step> {
    init(plan, now()).unwrap().into_iter().map(|(_, step)| step).collect()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_demo_hierarchy_is_made_once_and_then_kept() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), true);
    assert_eq!(steps(&plan), [Step::Made; 5]);
    assert_eq!(mode(&plan.dir), 0o700);
    for key in ["root.key", "issuing.key", "server-ca.key", "servers/gateway.key", "servers/ra.key"]
    {
        assert_eq!(mode(&plan.dir.join(key)), 0o600, "{key}");
    }
    let read = |name: &str| fs::read(plan.dir.join(name)).unwrap();
    let before: Vec<_> = ["root.pem", "issuing.pem", "servers/ra.pem"].map(read).into();
    assert_eq!(steps(&plan), [Step::Kept; 5]);
    let after: Vec<_> = ["root.pem", "issuing.pem", "servers/ra.pem"].map(read).into();
    assert_eq!(before, after);
}

#[test]
fn openssl_accepts_the_server_certificates_as_servers_only() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), true);
    init(&plan, now()).unwrap();
    let file = |name: &str| plan.dir.join(name);
    let (root, ca, leaf) = (file("root.pem"), file("server-ca.pem"), file("servers/gateway.pem"));
    assert!(openssl_verify(&root, &ca, &leaf, "sslserver"));
    assert!(!openssl_verify(&root, &ca, &leaf, "sslclient"));
    let root = key::read_certificates(&root).unwrap();
    let chain = key::read_certificates(&leaf).unwrap();
    assert_eq!(chain.len(), 2, "the leaf and its CA");
    assert!(!webpki_accepts(&root[0], &[&chain[1]], &chain[0]), "no client certificate");
}

#[test]
fn a_half_made_hierarchy_is_completed_from_the_keys_that_exist() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), true);
    key::make_private_dir(&plan.dir).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    key::write_new(&plan.root_key, key.serialize_pem().as_bytes(), 0o600).unwrap();
    assert_eq!(steps(&plan), [Step::Made; 5]);
    assert_eq!(fs::read_to_string(&plan.root_key).unwrap(), key.serialize_pem());
    fs::remove_file(plan.dir.join("issuing.pem")).unwrap();
    let issuing_key = fs::read(plan.dir.join("issuing.key")).unwrap();
    assert_eq!(steps(&plan)[..2], [Step::Kept, Step::Made]);
    assert_eq!(fs::read(plan.dir.join("issuing.key")).unwrap(), issuing_key);
}

#[test]
fn what_does_not_fit_together_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let demo = plan(dir.path(), true);
    init(&demo, now()).unwrap();
    let mixed = Plan { demo: false, ..demo.clone() };
    assert!(matches!(init(&mixed, now()), Err(Error::Unfit { why, .. }) if why.contains("demo")));

    let issuing_key = demo.dir.join("issuing.key");
    let held = fs::read(&issuing_key).unwrap();
    fs::remove_file(&issuing_key).unwrap();
    assert!(matches!(init(&demo, now()), Err(Error::KeyMissing { .. })));
    let other = KeyPair::generate().unwrap().serialize_pem();
    key::write_new(&issuing_key, other.as_bytes(), 0o600).unwrap();
    assert!(matches!(init(&demo, now()), Err(Error::Sign(..))));
    fs::write(&issuing_key, held).unwrap();

    fs::set_permissions(&issuing_key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(init(&demo, now()), Err(Error::Key(key::Error::Mode { .. }))));
    fs::set_permissions(&issuing_key, fs::Permissions::from_mode(0o600)).unwrap();

    fs::remove_file(demo.dir.join("root.pem")).unwrap();
    assert!(matches!(init(&demo, now()), Err(Error::RootMissing(_))));
}

#[test]
fn in_production_the_root_key_may_be_elsewhere_until_it_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let medium = dir.path().join("medium.key");
    let plan = Plan { root_key: medium.clone(), ..plan(dir.path(), false) };
    assert_eq!(steps(&plan), [Step::Made; 2]);
    assert!(!plan.dir.join("root.key").exists() && !plan.dir.join("servers").exists());
    fs::rename(&medium, dir.path().join("away")).unwrap();
    assert_eq!(steps(&plan), [Step::Kept; 2]);
    fs::remove_file(plan.dir.join("issuing.pem")).unwrap();
    assert!(matches!(init(&plan, now()), Err(Error::RootOffline(_))));
}

#[test]
fn a_server_certificate_is_renewed_for_the_same_key_before_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), true);
    init(&plan, now()).unwrap();
    let key = fs::read(plan.dir.join("servers/ra.key")).unwrap();
    let at = |days| init(&plan, now() + Duration::days(days)).unwrap()[4].1;
    assert_eq!(at(59), Step::Kept);
    assert_eq!(at(61), Step::Renewed);
    assert_eq!(fs::read(plan.dir.join("servers/ra.key")).unwrap(), key);
}

#[test]
fn two_inits_do_not_meet() {
    let dir = tempfile::tempdir().unwrap();
    let plan = plan(dir.path(), false);
    key::make_private_dir(&plan.dir).unwrap();
    let _held = lock(&plan.dir).unwrap();
    assert!(matches!(init(&plan, now()), Err(Error::Busy(_))));
}
