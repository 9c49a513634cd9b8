//! Tests of the copy on disk: what is read back, and everything that is refused.

use policies::facts::Loading;
use policies::feed::{Message, Parts, Signer, next_head};

use super::*;

const KEY: [u8; 32] = [3; 32];

/// A source, and a gateway that takes what it says and keeps it.
struct Desk {
    signer: Signer,
    source_at: Position,
    dir: tempfile::TempDir,
    facts: Facts,
    subscriber: Subscriber,
    copy: LocalCopy,
}

struct Restarted {
    facts: Facts,
    subscriber: Subscriber,
    copy: LocalCopy,
    dir: tempfile::TempDir,
}

fn fact(from: u64) -> Fact {
    Fact::Sharing { insurer: "131016".parse().unwrap(), from: Some(from) }
}

fn shared_from(facts: &Facts) -> Option<u64> {
    facts.sharing("131016".parse().unwrap())
}

impl Desk {
    fn new() -> Self {
        let signer = Signer::from_pkcs8(Source::Hub, &Signer::generate_pkcs8().unwrap()).unwrap();
        let subscriber = Subscriber::new(Source::Hub, &signer.public_key()).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let copy = open(dir.path(), KEY);
        let (source_at, facts) = (Position::genesis(), Facts::new());
        Self { signer, source_at, dir, facts, subscriber, copy }
    }

    /// One that has taken a snapshot and kept it.
    fn kept() -> Self {
        let mut desk = Self::new();
        let at = desk.source_at.clone();
        let mut loading = Loading::new(Source::Hub);
        for line in Parts::all(&desk.signer, at, 1_000, &[fact(1)]).unwrap() {
            if let Update::Part { facts, .. } = desk.subscriber.accept(&line).unwrap() {
                facts.into_iter().for_each(|fact| loading.take(fact));
            }
        }
        desk.facts.install(loading.finish());
        let standing = desk.standing();
        desk.copy.keep(vec![Keep::Snapshot(standing)]).unwrap().run();
        desk
    }

    fn standing(&self) -> Standing {
        Standing {
            facts: Arc::new(self.facts.clone()),
            position: self.subscriber.position().unwrap().clone(),
            caught_up_at_ms: self.subscriber.caught_up_at_ms(),
        }
    }

    fn write(&mut self) {
        let standing = self.standing();
        self.copy.keep(vec![Keep::Anew(standing)]).unwrap().run();
    }

    fn change(&mut self, from: u64) {
        let Position { seq, head: previous } = self.source_at.clone();
        let (seq, fact) = (seq + 1, fact(from));
        let head = next_head(&previous, seq, &serde_json::to_string(&fact).unwrap());
        self.source_at = Position { seq, head };
        let sent_at_ms = 1_000 + from;
        let change = Message::Change { seq, previous, latest_seq: seq, sent_at_ms, fact };
        let line = self.signer.line(&change).unwrap();
        let Update::Apply(fact) = self.subscriber.accept(&line).unwrap() else { panic!() };
        self.facts.apply(fact);
        assert!(self.copy.keep(vec![Keep::Changes(vec![line])]).is_none());
    }

    fn beat(&mut self, sent_at_ms: u64) {
        let Position { seq, head } = self.source_at.clone();
        let beat = Message::Heartbeat { seq, head, sent_at_ms };
        let line = self.signer.line(&beat).unwrap();
        self.subscriber.accept(&line).unwrap();
        self.copy.heard = None;
        assert!(self.copy.keep(vec![Keep::Heard(line)]).is_none());
    }

    /// What a gateway would have if the power went now: it meets the files as they are.
    fn restarted(&self) -> Result<Option<Restarted>, Refused> {
        let dir = tempfile::tempdir().unwrap();
        for name in self.names() {
            std::fs::copy(self.path(&name), dir.path().join(name)).unwrap();
        }
        let mut subscriber = Subscriber::new(Source::Hub, &self.signer.public_key()).unwrap();
        let mut copy = open(dir.path(), KEY);
        Ok(copy.load(&mut subscriber)?.map(|Kept { loaded, changes }| {
            let mut facts = Facts::new();
            facts.install(loaded);
            changes.into_iter().for_each(|fact| facts.apply(fact));
            Restarted { facts, subscriber, copy, dir }
        }))
    }

    fn refused(&self) -> Refused {
        let read = self.restarted();
        assert!(!matches!(read, Ok(None)), "nothing there");
        let refused = read.err().expect("refused");
        // Such as the log prints it: which file.
        assert!(!refused.to_string().is_empty());
        refused
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "hub.lock")
            .collect();
        names.sort();
        names
    }
}

fn open(dir: &Path, key: [u8; 32]) -> LocalCopy {
    LocalCopy::open(Source::Hub, &CopyPlace { dir: dir.to_owned(), key }).unwrap()
}

#[test]
fn what_was_kept_is_there_again_with_its_age() {
    let mut desk = Desk::kept();
    let Restarted { facts, subscriber, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!(shared_from(&facts), Some(1));
    assert_eq!((subscriber.applied_seq(), subscriber.caught_up_at_ms()), (0, 1_000));
    desk.change(5);
    desk.change(6);
    let Restarted { facts, subscriber, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!(shared_from(&facts), Some(6));
    assert_eq!(subscriber.position(), Some(&desk.source_at));
    assert_eq!(subscriber.caught_up_at_ms(), 1_006);
    desk.beat(9_000);
    let Restarted { subscriber, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!(subscriber.caught_up_at_ms(), 9_000, "the heartbeat tells how young it is");
    // A heartbeat before the last change says nothing of it.
    desk.change(7);
    let Restarted { facts, subscriber, copy, dir } = desk.restarted().unwrap().unwrap();
    assert_eq!((shared_from(&facts), subscriber.caught_up_at_ms()), (Some(7), 1_007));
    // And it goes on from there.
    (desk.copy, desk.dir) = (copy, dir);
    desk.change(8);
    let Restarted { facts, subscriber, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!((shared_from(&facts), subscriber.applied_seq()), (Some(8), 4));
}

#[test]
fn nothing_kept_is_no_error() {
    assert!(Desk::new().restarted().unwrap().is_none());
}

#[test]
fn facts_written_anew_take_the_place_of_the_earlier_ones_and_their_journal() {
    let mut desk = Desk::kept();
    desk.change(5);
    desk.write();
    desk.change(6);
    assert_eq!(desk.names(), ["hub-1.journal", "hub.facts"]);
    let Restarted { facts, subscriber, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!((shared_from(&facts), subscriber.applied_seq()), (Some(6), 2));
}

#[test]
fn changes_that_come_while_facts_are_written_are_kept() {
    let mut desk = Desk::kept();
    desk.change(5);
    let standing = desk.standing();
    let writing = desk.copy.keep(vec![Keep::Anew(standing)]).unwrap();
    desk.change(6);
    // The power goes before they are written: the earlier facts and both journals tell all.
    assert_eq!(desk.names(), ["hub-0.journal", "hub-1.journal", "hub.facts"]);
    let Restarted { facts, subscriber, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!((shared_from(&facts), subscriber.applied_seq()), (Some(6), 2));
    writing.run();
    assert_eq!(desk.names(), ["hub-1.journal", "hub.facts"]);
    let Restarted { facts, subscriber, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!((shared_from(&facts), subscriber.applied_seq()), (Some(6), 2));
}

#[test]
fn facts_that_were_overtaken_do_not_replace_newer_ones() {
    let mut desk = Desk::kept();
    let standing = desk.standing();
    let slow = desk.copy.keep(vec![Keep::Anew(standing)]).unwrap();
    desk.change(5);
    desk.write();
    slow.run();
    let Restarted { facts, subscriber, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!((shared_from(&facts), subscriber.applied_seq()), (Some(5), 1));
}

#[test]
fn no_byte_of_the_facts_may_be_changed_or_missing() {
    let mut desk = Desk::kept();
    desk.change(5);
    let path = desk.path("hub.facts");
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        desk.refused();
    }
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        desk.refused();
    }
    std::fs::write(&path, [&whole[..], b"\n"].concat()).unwrap();
    desk.refused();
    std::fs::write(&path, whole).unwrap();
    assert!(desk.restarted().unwrap().is_some());
}

#[test]
fn facts_of_another_gateway_or_another_source_are_refused() {
    let desk = Desk::kept();
    let Desk { signer, dir, copy, .. } = desk;
    drop(copy);
    let mut subscriber = Subscriber::new(Source::Hub, &signer.public_key()).unwrap();
    let refused = open(dir.path(), [4; 32]).load(&mut subscriber).err().unwrap();
    assert!(matches!(refused, Refused::Tag(_)), "{refused}");
    assert_eq!(subscriber.position(), None, "and the subscriber knows nothing of them");
    std::fs::rename(dir.path().join("hub.facts"), dir.path().join("ca.facts")).unwrap();
    let place = CopyPlace { dir: dir.path().to_owned(), key: KEY };
    let mut other = LocalCopy::open(Source::Ca, &place).unwrap();
    let refused = other.load(&mut subscriber).err().unwrap();
    assert!(matches!(refused, Refused::Header(_)), "{refused}");
}

#[test]
fn an_older_copy_is_refused_when_a_newer_one_was_seen() {
    let mut desk = Desk::kept();
    let old = |desk: &Desk, name| std::fs::read(desk.path(name)).unwrap();
    let (facts, journal) = (old(&desk, "hub.facts"), old(&desk, "hub-0.journal"));
    desk.change(5);
    desk.beat(9_000);
    // The journal without its last line: the change that a revocation may be.
    std::fs::write(desk.path("hub-0.journal"), &journal).unwrap();
    let refused = desk.refused();
    assert!(matches!(refused, Refused::Older { have: 0, seen: 1 }), "{refused}");
    // The earlier facts in the place of newer ones, whose journal goes on from there.
    std::fs::remove_file(desk.path("hub.heard")).unwrap();
    std::fs::remove_file(desk.path("hub-0.journal")).unwrap();
    desk.write();
    std::fs::write(desk.path("hub.facts"), facts).unwrap();
    let refused = desk.refused();
    assert!(matches!(refused, Refused::Older { have: 0, seen: 1 }), "{refused}");
}

#[test]
fn a_journal_ends_where_the_power_went_and_is_refused_if_it_was_changed() {
    let mut desk = Desk::kept();
    desk.change(5);
    desk.change(6);
    let path = desk.path("hub-0.journal");
    let whole = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    let Restarted { facts, mut copy, dir, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!(shared_from(&facts), Some(5));
    copy.append(&["next".to_owned()]);
    let lines = std::fs::read_to_string(dir.path().join("hub-0.journal")).unwrap();
    assert_eq!(lines.lines().count(), 2, "the half line is gone: {lines}");
    std::fs::write(&path, lines).unwrap();
    assert!(matches!(desk.refused(), Refused::Line { line: 2, .. }));
    std::fs::write(&path, whole.replace("131016", "131017")).unwrap();
    assert!(matches!(desk.refused(), Refused::Line { line: 1, .. }));
    let beat = Message::Heartbeat { seq: 0, head: Position::genesis().head, sent_at_ms: 5 };
    let beat = desk.signer.line(&beat).unwrap();
    std::fs::write(&path, format!("{beat}\n{whole}")).unwrap();
    assert!(matches!(desk.refused(), Refused::NoChange { line: 1, .. }));
}

#[test]
fn what_is_set_aside_is_refused_once() {
    let mut desk = Desk::kept();
    desk.change(5);
    desk.beat(9_000);
    std::fs::write(desk.path("hub.facts"), b"?").unwrap();
    desk.refused();
    desk.copy.set_aside();
    assert_eq!(desk.names(), ["hub.facts.refused"]);
    assert!(desk.restarted().unwrap().is_none());
}

#[test]
fn what_cannot_be_kept_whole_is_not_kept() {
    let mut desk = Desk::kept();
    assert!(!desk.copy.is_due(), "written just now");
    // A file that takes nothing.
    desk.copy.journal.as_mut().unwrap().file = File::open(desk.path("hub-0.journal")).unwrap();
    desk.change(5);
    assert_eq!(desk.names(), Vec::<String>::new());
    assert!(desk.restarted().unwrap().is_none());
    desk.change(6);
    desk.copy.written = Instant::now().checked_sub(WRITE_INTERVAL);
    assert!(desk.copy.is_due(), "tried again a minute later");
    desk.write();
    let Restarted { facts, .. } = desk.restarted().unwrap().unwrap();
    assert_eq!(shared_from(&facts), Some(6));
}

#[test]
fn a_snapshot_leaves_nothing_of_before_that_could_pass_for_whole() {
    let mut desk = Desk::kept();
    desk.change(5);
    let standing = desk.standing();
    let writing = desk.copy.keep(vec![Keep::Snapshot(standing)]).unwrap();
    // The power goes before it is written, and it may have been acknowledged.
    assert_eq!(desk.names(), ["hub-1.journal"]);
    assert!(desk.restarted().unwrap().is_none());
    writing.run();
    assert_eq!(desk.restarted().unwrap().unwrap().subscriber.applied_seq(), 1);
}

#[test]
fn facts_that_cannot_be_written_leave_no_half_file_and_are_tried_again() {
    let mut desk = Desk::kept();
    let standing = desk.standing();
    let mut writing = desk.copy.keep(vec![Keep::Anew(standing)]).unwrap();
    // A folder in the place of the file: it can not be renamed over.
    writing.path = desk.path("taken");
    std::fs::create_dir_all(writing.path.join("by a folder")).unwrap();
    writing.run();
    assert_eq!(desk.names(), ["hub-0.journal", "hub.facts", "taken"]);
    assert!(!desk.copy.is_due(), "not at once");
    desk.copy.written = Instant::now().checked_sub(WRITE_INTERVAL);
    assert!(desk.copy.is_due());
    desk.write();
    desk.copy.written = Instant::now().checked_sub(WRITE_INTERVAL);
    assert!(!desk.copy.is_due(), "written");
}

#[test]
fn two_gateways_do_not_share_a_folder() {
    let desk = Desk::kept();
    let place = CopyPlace { dir: desk.dir.path().to_owned(), key: KEY };
    let refused = LocalCopy::open(Source::Hub, &place).err().unwrap();
    assert!(refused.to_string().contains("another gateway"), "{refused}");
}
