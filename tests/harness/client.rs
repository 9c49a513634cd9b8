//! One HTTP exchange by curl, written as a sentence:
//! `system.curl("portal").get("/v1/…").send()`.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::programs::run;
use crate::system::System;

/// A request that is being put together.
pub struct Call<'a> {
    system: &'a System,
    method: String,
    path: String,
    base: String,
    args: Vec<String>,
    body: Option<Vec<u8>>,
}

/// What came back.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The HTTP status.
    pub status: u16,
    /// `1.1` or `2`.
    pub http_version: String,
    /// The headers of the answer, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as it came.
    pub body: Vec<u8>,
    /// The body as JSON; null when it is none.
    pub json: Value,
}

/// curl got no HTTP answer.
#[derive(Debug, Clone)]
pub struct CurlFailed {
    /// curl's exit code: 35 TLS handshake, 56 cut while reading, …
    pub code: i32,
    /// What curl said.
    pub message: String,
}

impl Reply {
    /// The first header of that name (lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// The reason code of a refusal.
    pub fn code(&self) -> &str {
        // The enrolment listener's admin socket answers in a form of its own.
        let code = self.json["code"].as_str().or_else(|| self.json["error"]["code"].as_str());
        code.unwrap_or("")
    }

    /// Stops the test unless status and reason code are these. The code of a success is empty.
    pub fn expect(self, status: u16, code: &str) -> Self {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!((self.status, self.code()), (status, code), "{text}\n{:?}", self.headers);
        self
    }
}

impl<'a> Call<'a> {
    pub(crate) fn new(system: &'a System) -> Self {
        let trust = system.trust().to_string_lossy().into_owned();
        Self {
            system,
            method: "GET".into(),
            path: "/".into(),
            base: system.gateway().to_owned(),
            args: vec!["--cacert".into(), trust],
            body: None,
        }
    }

    /// Presents this certificate.
    pub fn cert(self, cert: &Path, key: &Path) -> Self {
        self.arg("--cert").arg(cert.to_str().unwrap()).arg("--key").arg(key.to_str().unwrap())
    }

    /// Goes to the enrolment listener.
    pub fn to_enrol(mut self) -> Self {
        self.base = self.system.enrol().to_owned();
        self
    }

    /// Goes to another gateway, by its base URL.
    pub fn to(mut self, base: &str) -> Self {
        self.base = base.to_owned();
        self
    }

    /// Goes to a unix socket, in clear.
    pub fn over_socket(mut self, socket: &Path) -> Self {
        self.base = "http://localhost".into();
        self.arg("--unix-socket").arg(socket.to_str().unwrap())
    }

    /// Another curl argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.args.push(arg.to_owned());
        self
    }

    /// A request header, `name: value`.
    pub fn header(self, header: &str) -> Self {
        self.arg("--header").arg(header)
    }

    /// A staff token.
    pub fn token(self, token: &str) -> Self {
        self.header(&format!("authorization: Bearer {token}"))
    }

    /// Method and path (with query).
    pub fn method(mut self, method: &str, path: &str) -> Self {
        self.method = method.to_owned();
        self.path = path.to_owned();
        self
    }

    /// GET of a path.
    pub fn get(self, path: &str) -> Self {
        self.method("GET", path)
    }

    /// POST of JSON to a path.
    pub fn post(self, path: &str, body: &Value) -> Self {
        self.method("POST", path).json(body)
    }

    /// A JSON body.
    pub fn json(self, body: &Value) -> Self {
        let has_body = !body.is_null();
        let call = if has_body { self.header("content-type: application/json") } else { self };
        if has_body { call.body(body.to_string().into_bytes()) } else { call }
    }

    /// A body of bytes.
    pub fn body(mut self, body: Vec<u8>) -> Self {
        self.body = Some(body);
        self
    }

    /// Sends it; no HTTP answer stops the test.
    pub fn send(self) -> Reply {
        let (method, path) = (self.method.clone(), self.path.clone());
        self.try_send().unwrap_or_else(|failed| panic!("{method} {path}: {failed:?}"))
    }

    /// Sends it and expects that no HTTP answer comes: the connection itself is refused.
    pub fn cut_off(self) -> CurlFailed {
        match self.try_send() {
            Err(failed) => failed,
            Ok(reply) => panic!("an answer came where none may come: {reply:?}"),
        }
    }

    /// Sends it.
    ///
    /// # Errors
    /// [`CurlFailed`] when no HTTP answer came.
    pub fn try_send(self) -> Result<Reply, CurlFailed> {
        self.exchange().0
    }

    /// Sends it and gives whatever arrived, also of an answer that was cut off on its way.
    pub fn arrived(self) -> Option<Reply> {
        let (whole, part) = self.exchange();
        whole.ok().or(part)
    }

    /// The answer, and what came of one that was cut off.
    fn exchange(self) -> (Result<Reply, CurlFailed>, Option<Reply>) {
        let folder = tempfile::Builder::new().prefix("curl-").tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        let mut args: Vec<String> = ["--silent", "--show-error", "--noproxy", "*", "--path-as-is"]
            .map(str::to_owned)
            .to_vec();
        args.extend(["--max-time".into(), "30".into(), "--request".into(), self.method.clone()]);
        for (option, name) in [("--dump-header", "headers"), ("--output", "body")] {
            args.extend([option.to_owned(), path_text(&file(name))]);
        }
        args.extend(["--write-out".into(), "%{http_code} %{http_version}".into()]);
        if let Some(body) = &self.body {
            fs::write(file("request"), body).unwrap();
            args.extend(["--data-binary".into(), format!("@{}", path_text(&file("request")))]);
        }
        args.extend(self.args);
        args.push(format!("{}{}", self.base, self.path));
        let ran = run("curl", args);
        let status = ran.stdout.split(' ').next().and_then(|code| code.parse().ok());
        let status: u16 = status.unwrap_or(0);
        let body = fs::read(file("body")).unwrap_or_default();
        let reply = Reply {
            status,
            http_version: ran.stdout.split(' ').nth(1).unwrap_or("").to_owned(),
            headers: read_headers(&fs::read_to_string(file("headers")).unwrap_or_default()),
            json: serde_json::from_slice(&body).unwrap_or(Value::Null),
            body,
        };
        if ran.code == 0 && status != 0 {
            return (Ok(reply), None);
        }
        let failed = CurlFailed { code: ran.code, message: ran.stderr.trim().to_owned() };
        (Err(failed), (status != 0).then_some(reply))
    }
}

fn path_text(path: &Path) -> String {
    path.to_str().expect("a path in UTF-8").to_owned()
}

fn read_headers(text: &str) -> Vec<(String, String)> {
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.map(|(name, value)| (name.trim().to_lowercase(), value.trim().to_owned())).collect()
}
