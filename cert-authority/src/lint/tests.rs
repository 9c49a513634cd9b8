//! Tests of the lint: each field that differs is named.

use super::*;
use crate::profile::{Profile, Rules};
use crate::testing::{Ca, office, openssl_accepts, rules, sign, webpki_accepts};
use rcgen::{KeyPair, PublicKeyData};
use time::Duration;

fn template(rules: &Rules) -> Template {
    let serial = crate::key::random_serial().unwrap();
    let now = OffsetDateTime::now_utc();
    rules.client(Profile::OfficeBrowser, &office(), None, serial, now).unwrap()
}

fn findings(result: Result<Read, Error>) -> Vec<&'static str> {
    match result {
        Err(Error::Findings(findings)) => findings,
        other => panic!("{other:?}"),
    }
}

#[test]
fn openssl_and_webpki_accept_what_passes_the_lint() {
    let (ca, key) = (Ca::new(), KeyPair::generate().unwrap());
    for demo in [false, true] {
        let leaf = sign(&ca.issuer, template(&rules(demo)), &key);
        assert!(openssl_accepts(&ca.root, &ca.issuing, &leaf, "sslclient"));
        assert!(!openssl_accepts(&ca.root, &ca.issuing, &leaf, "sslserver"));
        assert!(webpki_accepts(&ca.issuing, &[], &leaf), "issuing CA as anchor");
        assert!(webpki_accepts(&ca.root, &[&ca.issuing], &leaf), "root as anchor");
        assert!(!webpki_accepts(&Ca::new().issuing, &[], &leaf), "foreign CA");
    }
}

#[test]
fn every_field_that_differs_is_named() {
    let (ca, key) = (Ca::new(), KeyPair::generate().unwrap());
    let good = template(&rules(true));
    let leaf = sign(&ca.issuer, good.clone(), &key);
    let authority = Authority::from_certificate(&ca.issuing).unwrap();
    let spki = key.subject_public_key_info();
    check(&leaf, &good, &spki, &authority).unwrap();

    let change = |change: fn(&mut Template)| {
        let mut template = good.clone();
        change(&mut template);
        findings(check(&leaf, &template, &spki, &authority))
    };
    let later = |t: &mut Template| t.not_after += Duration::SECOND;
    let uri = |t: &mut Template| {
        let policy = "2.999.1.1.1".parse().unwrap();
        t.role = Role::Client { uri: "https://id.sekisho.example/operator/a".into(), policy };
    };
    let policy = |t: &mut Template| {
        if let Role::Client { policy, .. } = &mut t.role {
            *policy = "2.999.1.1.2".parse().unwrap();
        }
    };
    assert_eq!(change(|t| t.serial = "41".parse().unwrap()), ["serialNumber"]);
    assert_eq!(change(later), ["validity"]);
    assert_eq!(change(|t| t.subject.common_name.push('x')), ["subject"]);
    assert_eq!(change(|t| t.subject.unit = None), ["subject"]);
    assert_eq!(change(uri), ["subjectAltName"]);
    assert_eq!(change(policy), ["certificatePolicies"]);
    assert_eq!(change(|t| t.marker = None), ["list of extensions"]);
    let as_ca = change(|t| t.role = Role::Ca { path_len: 0, usage: Some(Usage::Client) });
    for field in ["keyUsage", "basicConstraints", "subjectAltName", "list of extensions"] {
        assert!(as_ca.contains(&field), "{field}: {as_ca:?}");
    }
    let as_server = change(|t| t.role = Role::Server { names: vec![], addresses: vec![] });
    assert!(as_server.contains(&"extKeyUsage"), "{as_server:?}");

    let other = KeyPair::generate().unwrap().subject_public_key_info();
    assert_eq!(findings(check(&leaf, &good, &other, &authority)), ["subjectPublicKeyInfo"]);
}

#[test]
fn another_issuer_is_found_by_name_key_and_signature() {
    let (ca, key) = (Ca::new(), KeyPair::generate().unwrap());
    let good = template(&rules(true));
    let leaf = sign(&ca.issuer, good.clone(), &key);
    let spki = key.subject_public_key_info();
    let authority = Authority::from_certificate(&ca.issuing).unwrap();
    let foreign = Authority::from_certificate(&Ca::new().issuing).unwrap();
    assert_eq!(
        findings(check(&leaf, &good, &spki, &foreign)),
        ["signature", "authorityKeyIdentifier"]
    );
    let root = Authority::from_certificate(&ca.root).unwrap();
    let named = Authority { name: root.name, ..authority.clone() };
    assert_eq!(findings(check(&leaf, &good, &spki, &named)), ["issuer"]);
    let mut broken = leaf.clone();
    *broken.last_mut().unwrap() ^= 1;
    assert_eq!(findings(check(&broken, &good, &spki, &authority)), ["signature"]);
    assert!(is_signed_by(&leaf, &authority) && !is_signed_by(&leaf, &foreign));
}

#[test]
fn bytes_after_or_missing_from_a_certificate_are_malformed() {
    let (ca, key) = (Ca::new(), KeyPair::generate().unwrap());
    let mut leaf = sign(&ca.issuer, template(&rules(false)), &key);
    leaf.push(0);
    assert_eq!(Read::from_der(&leaf).unwrap_err(), Error::Malformed);
    assert_eq!(Read::from_der(&leaf[..leaf.len() - 2]).unwrap_err(), Error::Malformed);
    assert!(Authority::from_certificate(&leaf[..leaf.len() - 1]).is_err(), "a leaf is no CA");
}

#[test]
fn a_certificate_never_outlives_its_ca() {
    let (ca, key) = (Ca::new(), KeyPair::generate().unwrap());
    let mut late = template(&rules(false));
    late.not_after += Duration::days(3000);
    let error = ca.issuer.prepare(late, &key).err().unwrap();
    assert!(matches!(error, crate::issuer::Error::OutlivesIssuer(_)));
}
