//! Card readers through PC/SC: is the service there, which readers, is a card on them.
//!
//! INVARIANT: nothing here connects to a card or sends it a byte; presence and ATR come from the
//! service. What may be said to a card is `apdu`'s business.

use std::time::Duration;

use pcsc::{Context, PNP_NOTIFICATION, ReaderState, Scope, State};
use serde::Serialize;

/// What PC/SC tells about this computer.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub(crate) enum Survey {
    /// The smart card service does not run.
    NoService,
    /// It runs and knows no reader.
    NoReader,
    /// Readers, in the order of the service.
    Readers { readers: Vec<Reader> },
    /// The service refuses something.
    Failed { error: String },
}

/// One reader.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Reader {
    pub(crate) name: String,
    /// Answer to reset of the card on it, lower-case hex.
    pub(crate) atr: Option<String>,
}

/// Asks the service.
pub(crate) fn survey() -> Survey {
    match ask() {
        Ok(readers) if readers.is_empty() => Survey::NoReader,
        Ok(readers) => Survey::Readers { readers },
        // Windows stops the service when the last reader goes.
        Err(pcsc::Error::NoService | pcsc::Error::ServiceStopped) => Survey::NoService,
        Err(pcsc::Error::NoReadersAvailable) => Survey::NoReader,
        Err(error) => Survey::Failed { error: error.to_string() },
    }
}

fn ask() -> Result<Vec<Reader>, pcsc::Error> {
    let context = Context::establish(Scope::User)?;
    let names = context.list_readers_owned()?;
    let mut states: Vec<ReaderState> = names
        .into_iter()
        .filter(|name| name.as_c_str() != PNP_NOTIFICATION())
        .map(|name| ReaderState::new(name, State::UNAWARE))
        .collect();
    if states.is_empty() {
        return Ok(Vec::new());
    }
    // With UNAWARE the service answers at once with the state as it is.
    context.get_status_change(STATUS_TIMEOUT, &mut states)?;
    Ok(states.iter().map(reader).collect())
}

fn reader(state: &ReaderState) -> Reader {
    let present = state.event_state().contains(State::PRESENT);
    let hex: String = state.atr().iter().map(|byte| format!("{byte:02x}")).collect();
    Reader { name: state.name().to_string_lossy().into_owned(), atr: present.then_some(hex) }
}

impl Survey {
    /// What to tell the clerk, a line each, Japanese and English.
    pub(crate) fn lines(&self) -> Vec<(String, String)> {
        let line = |ja: &str, en: &str| vec![(ja.to_owned(), en.to_owned())];
        match self {
            Self::NoService => line(
                "スマートカードのサービスが動いていません。サービスを開始し、カードリーダーを接続してください",
                "the smart card service is not running: start it (Windows: Smart Card; \
                 Linux: pcscd) and connect the reader",
            ),
            Self::NoReader => line(
                "カードリーダーが見つかりません。USB の接続とドライバーを確認してください",
                "no card reader found: check the USB cable and the driver",
            ),
            Self::Readers { readers } => readers.iter().map(Reader::line).collect(),
            Self::Failed { error } => vec![(
                format!("カードリーダーを調べられません（{error}）"),
                format!("the card readers can not be examined ({error})"),
            )],
        }
    }

    /// Whether a card could be used at this terminal.
    pub(crate) fn has_reader(&self) -> bool {
        matches!(self, Self::Readers { .. })
    }
}

impl Reader {
    fn line(&self) -> (String, String) {
        let name = &self.name;
        match &self.atr {
            None => (
                format!("リーダー「{name}」: カードがありません。カードを置いてください"),
                format!("reader \"{name}\": no card; put the card on it"),
            ),
            Some(atr) => (
                format!("リーダー「{name}」: カードがあります（ATR {atr}）"),
                format!("reader \"{name}\": a card is present (ATR {atr})"),
            ),
        }
    }
}

const STATUS_TIMEOUT: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_situation_has_its_own_words_in_both_languages() {
        let readers = |atr: Option<&str>| Survey::Readers {
            readers: vec![Reader { name: "R 00".into(), atr: atr.map(str::to_owned) }],
        };
        for (survey, ja, en, usable) in [
            (Survey::NoService, "サービス", "service is not running", false),
            (Survey::NoReader, "見つかりません", "no card reader", false),
            (readers(None), "カードを置いて", "put the card", true),
            (readers(Some("3b80")), "ATR 3b80", "ATR 3b80", true),
            (Survey::Failed { error: "E".into() }, "調べられません", "can not be examined", false),
        ] {
            let lines = survey.lines();
            assert!(lines[0].0.contains(ja), "{lines:?}");
            assert!(lines[0].1.contains(en), "{lines:?}");
            assert_eq!(survey.has_reader(), usable);
        }
    }

    #[test]
    fn asking_this_computer_gives_an_answer_whatever_it_has() {
        assert!(!survey().lines().is_empty());
    }
}
