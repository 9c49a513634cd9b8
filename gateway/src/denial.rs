//! How a refusal is answered: a problem document (RFC 9457), or a page for a person whose browser
//! asks for one. Neither says anything of a person to whom the principal may not look.

use bytes::Bytes;
use http::HeaderMap;
use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use pingora_error::Result;
use pingora_http::ResponseHeader;
use policies::problem_document::{MEDIA_TYPE, ProblemDocument};
use policies::reason::{Fixer, Reason, ReasonSet};

use crate::bulk;
use crate::client_cert;

/// An answer in the place of what was asked for.
pub struct Denial {
    /// Its head, with the body's length.
    pub head: ResponseHeader,
    /// Its body.
    pub body: Bytes,
}

impl Denial {
    /// The answer to a request with `asked` headers that is refused for `reasons`.
    ///
    /// # Errors
    /// If `status` is none of HTTP.
    pub fn new(
        status: u16,
        reasons: ReasonSet,
        request_id: &str,
        asked: &HeaderMap,
    ) -> Result<Self> {
        let problem = ProblemDocument::of(reasons, status, request_id);
        let is_page = wants_page(asked);
        let body = if is_page { page(&problem, request_id) } else { problem.to_json() };
        let body = Bytes::from(body);
        let mut head = ResponseHeader::build(status, Some(8))?;
        head.insert_header(CONTENT_TYPE, if is_page { PAGE_TYPE } else { MEDIA_TYPE })?;
        if is_page {
            head.insert_header(CONTENT_SECURITY_POLICY, PAGE_POLICY)?;
        }
        head.insert_header(CONTENT_LENGTH, body.len())?;
        head.insert_header(CACHE_CONTROL, "no-store")?;
        head.insert_header("sekisho-request-id", request_id)?;
        if status == 401 {
            head.insert_header(WWW_AUTHENTICATE, "Bearer")?;
        }
        if let Some(seconds) = retry_after_s(reasons) {
            head.insert_header(RETRY_AFTER, seconds)?;
        }
        Ok(Self { head, body })
    }

    /// The same without its body, where none may follow.
    ///
    /// # Errors
    /// If the head cannot be changed.
    pub fn without_body(mut self) -> Result<Self> {
        self.body = Bytes::new();
        self.head.insert_header(CONTENT_LENGTH, 0)?;
        Ok(self)
    }
}

/// The reason that the answer's status and words are of.
pub fn primary(reasons: ReasonSet) -> Reason {
    reasons.iter().next().unwrap_or(Reason::UpstreamUnavailable)
}

/// When a refusal for too much, or for something that is down, may be over, in seconds.
fn retry_after_s(reasons: ReasonSet) -> Option<u64> {
    if reasons.contains(Reason::RateLimited) {
        return Some(1);
    }
    if primary(reasons) == Reason::BulkCeiling {
        return Some(bulk::seconds_to_next_hour(client_cert::now()));
    }
    (primary(reasons).status() == 503).then_some(UNAVAILABLE_S)
}

/// What restarts by itself takes about as long.
const UNAVAILABLE_S: u64 = 5;

/// Browsers ask for a page first of all; programs do not ask for one.
fn wants_page(asked: &HeaderMap) -> bool {
    let accept = asked.get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    accept.split(',').next().is_some_and(|first| {
        let media_type = first.split(';').next().unwrap_or_default().trim();
        media_type.eq_ignore_ascii_case("text/html")
    })
}

/// The page; every text in it is of ours.
fn page(problem: &ProblemDocument, request_id: &str) -> String {
    let (ja, en, code) = (problem.detail_ja(), problem.detail(), problem.code());
    let (whom_ja, whom_en) = problem.fix_by().map(Fixer::words).unwrap_or_default();
    format!(
        "<!doctype html>\n<html lang=\"ja\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>表示できません</title>\n<style>{PAGE_STYLE}</style>\n<main>\n\
         <h1>表示できません</h1>\n<p class=\"why\">{ja}</p>\n<p lang=\"en\">{en}</p>\n<dl>\n\
         <dt>対応できる方</dt><dd>{whom_ja} <span lang=\"en\">({whom_en})</span></dd>\n\
         <dt>理由コード</dt><dd><code>{code}</code></dd>\n\
         <dt>要求番号</dt><dd><code>{request_id}</code></dd>\n</dl>\n\
         <p>お問い合わせの際は、要求番号をお伝えください。</p>\n</main>\n</html>\n"
    )
}

const PAGE_TYPE: &str = "text/html; charset=utf-8";
/// Nothing is loaded and nothing runs; only the style that stands in the page counts.
const PAGE_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'";
const PAGE_STYLE: &str = "body{margin:0;background:#f4f5f7;color:#1d2530;\
    font:16px/1.7 system-ui,'Noto Sans JP','Noto Sans CJK JP','Hiragino Sans',Meiryo,sans-serif}\
    main{max-width:36rem;margin:12vh auto 0;padding:2rem;background:#fff;border:1px solid #d5dae1;\
    border-radius:8px}h1{margin:0 0 1rem;font-size:1.4rem}.why{font-size:1.1rem;font-weight:600}\
    [lang=en]{color:#5a6573}dl{display:grid;grid-template-columns:8rem 1fr;gap:.4rem 1rem;\
    margin:1.5rem 0}dt{color:#5a6573}dd{margin:0;overflow-wrap:anywhere}";

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(accept: &str, reason: Reason) -> Denial {
        let asked = [(ACCEPT, accept.parse().unwrap())].into_iter().collect();
        Denial::new(reason.status(), reason.into(), "r1", &asked).unwrap()
    }

    fn text(denial: &Denial) -> &str {
        std::str::from_utf8(&denial.body).unwrap()
    }

    #[test]
    fn who_asks_for_a_page_gets_one() {
        for (accept, is_page) in [
            ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", true),
            ("Text/HTML; charset=utf-8", true),
            ("application/json, text/html", false),
            ("*/*", false),
            ("", false),
        ] {
            let denial = denial(accept, Reason::ConsentRequired);
            let kind = denial.head.headers.get(CONTENT_TYPE).unwrap();
            assert_eq!(kind == PAGE_TYPE, is_page, "{accept}");
            assert_eq!(text(&denial).contains("<h1>"), is_page, "{accept}");
            assert!(text(&denial).contains("consent_required"));
            let length = denial.head.headers.get(CONTENT_LENGTH).unwrap();
            assert_eq!(length.to_str().unwrap(), denial.body.len().to_string());
        }
    }

    #[test]
    fn who_may_try_again_is_told_when() {
        let after = |reason| denial("", reason).head.headers.get(RETRY_AFTER).cloned();
        assert_eq!(after(Reason::RateLimited).unwrap(), "1");
        assert_eq!(after(Reason::UpstreamUnavailable).unwrap(), "5");
        assert_eq!(after(Reason::FactsStale).unwrap(), "5");
        assert!(after(Reason::BulkCeiling).is_some());
        assert_eq!(after(Reason::NotRegistered), None);
    }

    #[test]
    fn an_answer_without_a_body_says_so() {
        let denial = denial("", Reason::ConsentWithdrawn).without_body().unwrap();
        assert_eq!(denial.head.headers.get(CONTENT_LENGTH).unwrap(), "0");
        assert!(denial.body.is_empty());
    }
}
