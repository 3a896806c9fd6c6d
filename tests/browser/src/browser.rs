//! Debian's chromium, driven by its chromedriver over WebDriver.

use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};
use std::net::TcpListener;
use std::process::Stdio;
use tokio::process::{Child, Command};
use url::Url;

/// A window. Its driver ends with the value.
pub struct Browser {
    pub client: Client,
    _driver: Child,
}

/// The size of a window, in CSS pixels.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub width: u32,
    pub height: u32,
}

/// A wide screen.
pub const WIDE: Size = Size {
    width: 1280,
    height: 800,
};
/// A phone.
pub const NARROW: Size = Size {
    width: 390,
    height: 844,
};

/// A command of chromedriver beside the standard.
#[derive(Debug)]
struct Extension {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Extension {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, url::ParseError> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(self.body.to_string()))
    }
}

impl Browser {
    pub async fn start() -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let driver = Command::new("chromedriver")
            .arg(format!("--port={port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver is installed: `make page` does it");
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--disable-dev-shm-usage",
        ];
        let capabilities = json!({
            "goog:chromeOptions": {"args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
        });
        let Value::Object(capabilities) = capabilities else {
            unreachable!("it is an object")
        };
        let address = format!("http://127.0.0.1:{port}");
        let client = crate::eventually("the browser has started", async || {
            let mut builder = ClientBuilder::new(HttpConnector::new());
            builder.capabilities(capabilities.clone());
            builder.connect(&address).await.ok()
        })
        .await;
        let browser = Self {
            client,
            _driver: driver,
        };
        browser.resize(WIDE).await;
        browser
    }

    async fn command(&self, path: &'static str, body: Value) -> Value {
        self.client.issue_cmd(Extension { path, body }).await.unwrap()
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        let body = json!({"cmd": command, "params": parameters});
        self.command("goog/cdp/execute", body).await;
    }

    pub async fn resize(&self, size: Size) {
        let metrics = json!({"width": size.width, "height": size.height, "deviceScaleFactor": 1, "mobile": false});
        self.devtools("Emulation.setDeviceMetricsOverride", metrics).await;
    }

    pub async fn prefer(&self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.devtools("Emulation.setEmulatedMedia", features).await;
    }

    pub async fn open(&self, url: &str) {
        self.client.goto(url).await.unwrap();
    }

    /// The value of an expression of JavaScript.
    pub async fn value(&self, expression: &str) -> Value {
        self.client
            .execute(&format!("return {expression};"), vec![])
            .await
            .unwrap()
    }

    /// What the element of this selector says.
    pub async fn text(&self, selector: &str) -> String {
        let text = self
            .value(&format!(
                "(document.querySelector({selector:?}) || {{}}).innerText || ''"
            ))
            .await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits until the element of this selector contains `part`.
    pub async fn shows(&self, selector: &str, part: &str) {
        crate::eventually(&format!("{selector} shows {part:?}"), async || {
            self.text(selector).await.contains(part).then_some(())
        })
        .await;
    }

    /// Presses a key, by its name in WebDriver or as a character, at whatever has the focus.
    pub async fn press(&self, key: &str) {
        let key = match key {
            "Tab" => "\u{e004}",
            "Enter" => "\u{e007}",
            key => key,
        };
        let actions = json!({"actions": [{"type": "key", "id": "keyboard", "actions": [
            {"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]}]});
        self.command("actions", actions).await;
    }

    /// Fails if the console has an error, if a script was refused, or if anything was loaded from another host.
    pub async fn is_clean(&self) {
        let log = self.command("se/log", json!({"type": "browser"})).await;
        assert_eq!(log, json!([]), "the console has messages");
        let foreign = self
            .value("performance.getEntriesByType('resource').map((e) => e.name).filter((n) => !n.startsWith(location.origin + '/'))")
            .await;
        assert_eq!(foreign, json!([]), "the page has loaded something from elsewhere");
    }

    /// A picture of the whole page in a window of this width, PNG.
    pub async fn picture(&self, size: Size) -> Vec<u8> {
        self.resize(size).await;
        let height = self
            .value("document.documentElement.scrollHeight")
            .await
            .as_u64()
            .unwrap();
        let height = u32::try_from(height).unwrap().clamp(size.height.min(500), 3000);
        self.resize(Size { height, ..size }).await;
        let picture = self.client.screenshot().await.unwrap();
        self.resize(size).await;
        picture
    }

    pub async fn close(self) {
        self.client.close().await.unwrap();
    }
}
