//! What overlays refuse, what they take away, and how a wrong file is told.

use super::*;

const OFFICE: &str = "1370000001";
const MONDAY_10: &str = "2026-04-06T10:00";
const TARGET: &str = "source = \"test\"\n[applies-to]\noffices = [\"1370000001\"]\n";

fn parsed(texts: &[&str]) -> Overlays {
    let file = |(at, text): (usize, &&str)| (format!("overlays/{at}.toml"), (*text).to_owned());
    let files: Vec<_> = texts.iter().enumerate().map(file).collect();
    Overlays::parse(&files, None).unwrap()
}

fn request(at: &str, address: &str, reads_this_hour: u32) -> Request<'static> {
    Request {
        office: OFFICE.parse().unwrap(),
        service_types: &[],
        insurer: "131016".parse().ok(),
        action: Action::ViewDocument,
        document: Some(DocumentKind::InsuredCard),
        now: hours::unix(at).unwrap(),
        circumstances: Circumstances {
            address: address.parse().ok(),
            network: Some(NetworkKind::Closed),
            reads_this_hour,
        },
    }
}

fn reasons(text: &str, request: &Request<'_>) -> Vec<Reason> {
    parsed(&[&format!("{TARGET}{text}")]).gate(request).reasons.iter().collect()
}

#[test]
fn each_overlay_refuses_for_its_reason_alone() {
    let hours = "[[hours]]\ndays = [\"mon\"]\nfrom = \"09:00\"\nuntil = \"17:00\"\n";
    let addresses = "[addresses]\nallowed = [\"203.0.113.0/24\"]\n";
    let networks = "networks = [\"closed\"]\n";
    let bulk = "[bulk]\nreads-per-hour-max = 3\n";
    let paused = "[paused]\ndocuments = [\"insured-card\"]\n";
    let good = request(MONDAY_10, "203.0.113.9", 2);
    for text in [hours, addresses, bulk] {
        assert_eq!(reasons(text, &good), [], "{text}");
    }
    let late = request("2026-04-06T17:00", "203.0.113.9", 2);
    assert_eq!(reasons(hours, &late), [Reason::OutOfHours]);
    let elsewhere = request(MONDAY_10, "198.51.100.9", 2);
    assert_eq!(reasons(addresses, &elsewhere), [Reason::AddressNotAllowed]);
    let unknown = request(MONDAY_10, "", 2);
    assert_eq!(reasons(addresses, &unknown), [Reason::AddressNotAllowed]);
    for (network, refused) in [
        (Some(NetworkKind::Closed), vec![]),
        (Some(NetworkKind::Open), vec![Reason::AddressNotAllowed]),
        (None, vec![Reason::AddressNotAllowed]),
    ] {
        let circumstances = Circumstances { network, ..good.circumstances };
        let text = format!("source = \"test\"\n{networks}[applies-to]\nevery-office = true\n");
        let closed = parsed(&[&text]).gate(&Request { circumstances, ..good }).reasons;
        assert_eq!(closed.iter().collect::<Vec<_>>(), refused, "{network:?}");
    }
    let fourth = request(MONDAY_10, "203.0.113.9", 3);
    assert_eq!(reasons(bulk, &fourth), [Reason::BulkCeiling]);
    assert_eq!(reasons(paused, &good), [Reason::Paused]);
    assert_eq!(reasons("[paused]\neverything = true\n", &good), [Reason::Paused]);
    let plan = Request { document: Some(DocumentKind::HomeCarePlan), ..good };
    assert_eq!(reasons(paused, &plan), []);
}

#[test]
fn a_paused_kind_of_plan_also_stops_a_file_of_plans() {
    let text = "[paused]\ndocuments = [\"home-care-plan\"]\n";
    let file = Request {
        action: Action::SubmitCarePlanFile,
        document: None,
        ..request(MONDAY_10, "::1", 0)
    };
    assert_eq!(reasons(text, &file), [Reason::Paused]);
}

#[test]
fn a_pilot_lets_in_its_offices_and_refuses_the_others() {
    let pilot = |offices: &str| {
        parsed(&[&format!(
            "source = \"x\"\n[applies-to]\nmunicipalities = [\"131016\"]\n[pilot]\n\
             offices = [\"{offices}\"]\n"
        )])
    };
    let asked = request(MONDAY_10, "::1", 0);
    assert!(pilot(OFFICE).gate(&asked).reasons.is_empty());
    let refused = pilot("1370000019").gate(&asked).reasons;
    assert_eq!(refused, Reason::NotInPilot.into());
    let elsewhere = Request { insurer: "131024".parse().ok(), ..asked };
    assert!(pilot("1370000019").gate(&elsewhere).reasons.is_empty());
}

#[test]
fn an_overlay_applies_to_those_it_names_and_to_nobody_else() {
    let with = |target: &str| {
        parsed(&[&format!("source = \"x\"\n[applies-to]\n{target}\n[paused]\neverything = true\n")])
    };
    let fifteen = ["15".parse().unwrap()];
    let mine = Request { service_types: &fifteen, ..request(MONDAY_10, "::1", 0) };
    let other = Request {
        office: "1370000019".parse().unwrap(),
        service_types: &[],
        insurer: None,
        ..mine
    };
    for (target, reaches_other) in [
        ("offices = [\"1370000001\"]", false),
        ("service-types = [\"15\"]", false),
        ("municipalities = [\"131016\"]", false),
        ("every-office = true", true),
    ] {
        assert!(!with(target).gate(&mine).reasons.is_empty(), "{target}");
        assert_eq!(!with(target).gate(&other).reasons.is_empty(), reaches_other, "{target}");
    }
}

#[test]
fn logging_out_and_withdrawing_a_consent_are_never_stopped() {
    let closed = parsed(&[&format!("{TARGET}[paused]\neverything = true\n")]);
    for action in [Action::Logout, Action::WithdrawConsent] {
        let asked = Request { action, document: None, ..request(MONDAY_10, "::1", 0) };
        assert_eq!(closed.gate(&asked), Narrowed::default(), "{action}");
    }
}

#[test]
fn the_lower_of_two_ceilings_counts_and_only_for_reads() {
    let ceiling = |max| format!("{TARGET}[bulk]\nreads-per-hour-max = {max}\n");
    let overlays = parsed(&[&ceiling(50), &ceiling(7)]);
    let read = request(MONDAY_10, "::1", 0);
    assert_eq!(overlays.reads_per_hour_max(&read), Some(7));
    let write = Request { action: Action::SubmitDocument, ..read };
    assert_eq!(overlays.reads_per_hour_max(&write), None);
    let many = Request { circumstances: request(MONDAY_10, "::1", 999).circumstances, ..write };
    assert!(overlays.gate(&many).reasons.is_empty());
}

/// One wrong file, and what is told of it: line, column, and words of problem and hint.
const WRONG: [(&str, (usize, usize), &[&str]); 14] = [
    ("[addresses]\nallow = [\"10.0.0.0/8\"]", (5, 1), &["addresses.allow", "only takes away"]),
    ("[adresses]\nallowed = [\"10.0.0.0/8\"]", (4, 2), &["`adresses`", "`addresses`"]),
    ("[paused]\ndocuments = [\"insured-cart\"]", (5, 14), &["insured-cart", "`insured-card`"]),
    ("[paused]\ndocuments = [\"benefit-claims\"]", (5, 14), &["benefit-claims", "write one of"]),
    ("[addresses]\nallowed = [\"10.0.0.1/8\"]", (5, 12), &["bits set", "`10.0.0.0/8`"]),
    ("[bulk]\nreads-per-hour-max = 0", (5, 22), &["1 or more"]),
    ("[bulk]\nreads-per-hour-max = -1", (5, 22), &["1 or more"]),
    ("[bulk]\nreads-per-hour-max = \"5\"", (5, 22), &["must be a number"]),
    ("[paused]\neverything = \"yes\"", (5, 14), &["true or false"]),
    ("[pilot]\noffices = [\"1370000001\"]", (4, 1), &["only a municipality", "applies-to"]),
    ("[paused]\nservice-types = [\"4\"]", (5, 18), &["`4`", "2 characters"]),
    ("[rows]\n", (4, 2), &["`rows`", "ack-widening"]),
    ("", (1, 1), &["takes nothing away"]),
    ("[paused\n", (4, 8), &["docs/policies.md"]),
];

#[test]
fn a_wrong_file_is_told_with_line_column_and_what_to_do() {
    for (text, (line, column), words) in WRONG {
        let files = [("overlays/x.toml".to_owned(), format!("{TARGET}{text}"))];
        let problems = Overlays::parse(&files, None).unwrap_err();
        let found = problems.iter().any(|problem| {
            let told = problem.to_string();
            (problem.line, problem.column) == (line, column)
                && words.iter().all(|word| told.contains(word))
        });
        assert!(found, "{text}: {problems:?}");
    }
}

#[test]
fn hours_that_mean_nothing_are_refused() {
    for (line, word) in [
        ("days = [\"monday\"]\nfrom = \"09:00\"\nuntil = \"17:00\"", "write one of sun, mon"),
        ("days = [\"mon\"]\nfrom = \"9\"\nuntil = \"17:00\"", "HH:MM"),
        ("days = [\"mon\"]\nfrom = \"19:00\"\nuntil = \"07:00\"", "two `[[hours]]`"),
        ("days = [\"mon\"]\nfrom = \"19:00\"", "`hours.until` is missing"),
        ("days = []\nfrom = \"09:00\"\nuntil = \"17:00\"", "empty list"),
    ] {
        let files = [("o.toml".to_owned(), format!("{TARGET}[[hours]]\n{line}\n"))];
        let problems = Overlays::parse(&files, None).unwrap_err();
        assert!(problems.iter().any(|it| it.to_string().contains(word)), "{line}: {problems:?}");
    }
}

#[test]
fn every_problem_of_every_file_is_told_together() {
    let files = [
        ("overlays/a.toml".to_owned(), "colour = 1\n[paused]\ndocument = [\"x\"]\n".to_owned()),
        ("overlays/b.toml".to_owned(), format!("{TARGET}[bulk]\nreads-per-hour-max = 0\n")),
    ];
    let problems = Overlays::parse(&files, None).unwrap_err();
    for word in ["`colour`", "`source`", "`applies-to` is missing", "`paused.document`", "b.toml"] {
        assert!(problems.iter().any(|it| it.to_string().contains(word)), "{word}: {problems:?}");
    }
}

#[test]
fn an_unknown_office_is_refused_and_named() {
    let files = [("overlays/a.toml".to_owned(), format!("{TARGET}[paused]\neverything = true\n"))];
    let known = |office: OfficeNumber| office.as_str() != OFFICE;
    let problems = Overlays::parse(&files, Some(&known)).unwrap_err();
    assert_eq!(problems.len(), 1);
    assert_eq!((problems[0].line, problems[0].column), (3, 12));
    assert!(problems[0].to_string().contains("sekisho office add"), "{problems:?}");
    assert!(Overlays::parse(&files, Some(&|_| true)).is_ok());
}
