//! Issue 6 point 6: the staff token of a browser, in a cookie, with its CSRF token.

use policies::browser_session::{csrf_digest, csrf_token};

use crate::harness::{Party, World, header, now};
use crate::{CARD, bearer, code, office};

const PLAN: &str = "/v1/insured/131016/0000000001/documents/home-care-plan";
const REFRESH: &str = "/v1/session/refresh";

struct Browser {
    world: World,
    party: Party,
    token: String,
    csrf: String,
}

async fn browser() -> Browser {
    let world = World::start().await;
    let (party, _) = office(&world, 1).await;
    let csrf = csrf_token("refresh-1");
    let token = world.token_with(&party, "s1", now() + 600, Some(&csrf_digest(&csrf)));
    Browser { world, party, token, csrf }
}

impl Browser {
    /// Asks on a connection of its own: one whose body was refused is closed.
    async fn ask(&self, method: &str, path: &str, headers: &str) -> (u16, String) {
        let body = if method == "GET" { "" } else { "Content-Length: 2\r\n" };
        let rest = if method == "GET" { "" } else { "{}" };
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}{body}\r\n{rest}");
        let reply = self.world.client(&self.party).await.raw(&request).await.unwrap();
        (reply.status, code(&reply).to_owned())
    }

    fn cookie(&self) -> String {
        format!("Cookie: theme=dark; __Host-sekisho-staff={}; a=b\r\n", self.token)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browsers_reads_need_the_cookie_and_its_writes_the_csrf_token_too() {
    let browser = browser().await;
    let (cookie, csrf) = (browser.cookie(), format!("Sekisho-Csrf: {}\r\n", browser.csrf));
    let same = "Sec-Fetch-Site: same-origin\r\n";
    assert_eq!(browser.ask("GET", CARD, &cookie).await.0, 200);
    for headers in [format!("{cookie}{csrf}"), format!("{cookie}{csrf}{same}")] {
        assert_eq!(browser.ask("POST", PLAN, &headers).await.0, 200);
    }
    let other = format!("Sekisho-Csrf: {}\r\n", csrf_token("refresh-2"));
    let digest = format!("Sekisho-Csrf: {}\r\n", csrf_digest(&browser.csrf));
    for (what, headers) in [
        ("none", cookie.clone()),
        ("an empty one", format!("{cookie}Sekisho-Csrf:\r\n")),
        ("another session's", format!("{cookie}{other}")),
        ("what the token itself says", format!("{cookie}{digest}")),
        ("two", format!("{cookie}{csrf}{csrf}")),
        ("from another site", format!("{cookie}{csrf}Sec-Fetch-Site: cross-site\r\n")),
        ("from a sibling host", format!("{cookie}{csrf}Sec-Fetch-Site: same-site\r\n")),
    ] {
        let refused = (403, "csrf_token_invalid".to_owned());
        assert_eq!(browser.ask("POST", PLAN, &headers).await, refused, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_request_has_one_token() {
    let browser = browser().await;
    let (cookie, csrf) = (browser.cookie(), format!("Sekisho-Csrf: {}\r\n", browser.csrf));
    let plain = browser.world.token(&browser.party, "s1", now() + 600);
    for (what, headers) in [
        ("bearer and cookie", format!("{cookie}{}", bearer(&plain))),
        ("the cookie twice", format!("{cookie}{cookie}")),
        ("an empty cookie", "Cookie: __Host-sekisho-staff=\r\n".to_owned()),
        ("a program's token", format!("Cookie: __Host-sekisho-staff={plain}\r\n{csrf}")),
    ] {
        let refused = (401, "staff_token_invalid".to_owned());
        assert_eq!(browser.ask("GET", CARD, &headers).await, refused, "{what}");
    }
    // The same checks as of a bearer token: another terminal has no use for it.
    let (cookie, world) = (browser.cookie(), &browser.world);
    let (other, _) = office(world, 2).await;
    let reply = world.client(&other).await.get(CARD, &cookie).await.unwrap();
    assert_eq!((reply.status, code(&reply)), (401, "token_not_bound"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_gets_a_refresh_token_with_a_refresh_and_with_nothing_else() {
    let browser = browser().await;
    let headers = format!(
        "{}Cookie: __Host-sekisho-refresh=r.t-1\r\nSekisho-Csrf: {}\r\n\
         Sekisho-Refresh-Token: forged\r\n",
        browser.cookie(),
        browser.csrf
    );
    assert_eq!(browser.ask("POST", REFRESH, &headers).await.0, 200);
    assert_eq!(browser.ask("POST", PLAN, &headers).await.0, 200);
    let forged = "Sekisho-Refresh-Token: forged\r\n";
    assert_eq!(browser.ask("POST", REFRESH, forged).await.0, 200);
    let received = browser.world.received.lock().unwrap();
    let [refresh, plan, forged] = &received[..] else { panic!("{received:?}") };
    assert_eq!(header(refresh, "sekisho-refresh-token").as_deref(), Some("r.t-1"));
    assert_eq!(header(refresh, "sekisho-csrf").as_ref(), Some(&browser.csrf));
    for request in [plan, forged] {
        assert_eq!(header(request, "sekisho-refresh-token"), None);
        assert_eq!(header(request, "sekisho-csrf"), None);
    }
    assert!(received.iter().all(|request| header(request, "cookie").is_none()));
}
