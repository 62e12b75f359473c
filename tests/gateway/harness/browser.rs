//! What a browser does of logins: cookies, redirects and forms.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::{Answer, Wire};

/// A browser. The host `app.test` is the gateway, however it is reached; others are addresses.
#[derive(Clone)]
pub(crate) struct Browser {
    gateway: SocketAddr,
    /// Cookies by host and name.
    pub(crate) cookies: BTreeMap<(String, String), String>,
    /// Where it is.
    pub(crate) url: String,
}

impl Browser {
    pub(crate) fn new(gateway: SocketAddr) -> Self {
        Self { gateway, cookies: BTreeMap::new(), url: String::new() }
    }

    /// Goes to a page of the gateway, and wherever it is sent from there.
    pub(crate) async fn visit(&mut self, path: &str) -> Answer {
        self.go(&format!("https://app.test{path}")).await
    }

    /// Goes somewhere, and wherever it is sent from there.
    pub(crate) async fn go(&mut self, url: &str) -> Answer {
        let answer = self.step(url).await;
        self.follow(answer).await
    }

    /// Goes on for as long as it is sent on.
    pub(crate) async fn follow(&mut self, mut answer: Answer) -> Answer {
        for _ in 0..20 {
            let Some(location) = answer.field("location").map(str::to_owned) else { return answer };
            let next = self.absolute(&location);
            answer = self.step(&next).await;
        }
        panic!("sent on without end: {answer:?}");
    }

    /// Goes somewhere and stays.
    pub(crate) async fn step(&mut self, url: &str) -> Answer {
        self.send("GET", url, None, "Accept: text/html,application/xhtml+xml;q=0.9\r\n").await
    }

    /// Fills in the form of a page and sends it, without going on.
    pub(crate) async fn submit(&mut self, page: &Answer, filled: &[(&str, &str)]) -> Answer {
        let text = page.text();
        let form = text.split("<form").nth(1).unwrap_or_else(|| panic!("no form: {text}"));
        let action = attribute(form.split('>').next().unwrap_or_default(), "action");
        let url = self.absolute(&action.replace("&amp;", "&"));
        let inputs = form.split("</form>").next().unwrap_or_default().split("<input").skip(1);
        let hidden = inputs.filter(|input| input.contains("type=\"hidden\""));
        let mut pairs: Vec<String> = hidden
            .map(|input| format!("{}={}", attribute(input, "name"), encoded(&attribute(input, "value"))))
            .collect();
        pairs.extend(filled.iter().map(|(name, value)| format!("{name}={}", encoded(value))));
        self.send("POST", &url, Some(&pairs.join("&")), "Accept: text/html\r\n").await
    }

    /// Logs in as this user at the provider whose page it is, and agrees to what is asked.
    pub(crate) async fn log_in(&mut self, page: &Answer, user: &str) -> Answer {
        let answer = self.submit(page, &[("login", user), ("password", "any")]).await;
        let consent = self.follow(answer).await;
        assert!(consent.text().contains("value=\"consent\""), "{}", consent.text());
        let agreed = self.submit(&consent, &[]).await;
        self.until_home(agreed).await
    }

    /// Follows up to the last redirect that leads back to the gateway, which is not followed.
    async fn until_home(&mut self, mut answer: Answer) -> Answer {
        loop {
            let location = answer.field("location").unwrap_or_else(|| panic!("{answer:?}")).to_owned();
            let next = self.absolute(&location);
            if next.starts_with("https://app.test/") {
                return answer;
            }
            answer = self.step(&next).await;
        }
    }

    /// Sends a request with the cookies for its host, and keeps those that come.
    pub(crate) async fn send(&mut self, method: &str, url: &str, form: Option<&str>, fields: &str) -> Answer {
        let rest = url.split_once("://").unwrap_or_else(|| panic!("no URL: {url}")).1;
        let (host, target) = rest.split_once('/').unwrap_or((rest, ""));
        let address = if host == "app.test" { self.gateway } else { host.parse().expect("an address") };
        let target = target.split('#').next().unwrap_or_default();
        let (name, cookies) = (host.split(':').next().unwrap_or(host), self.cookies_of(host));
        let body = form.unwrap_or_default();
        let kind = match form {
            Some(_) => format!(
                "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
                body.len()
            ),
            None => String::new(),
        };
        let mut wire = Wire::connect(address).await;
        wire.send(format!(
            "{method} /{target} HTTP/1.1\r\nHost: {host}\r\n{cookies}{fields}{kind}\r\n{body}"
        ))
        .await;
        let answer = wire.answer_to(method).await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
        for line in answer.head.all("set-cookie") {
            self.keep(name, line);
        }
        self.url = url.to_owned();
        answer
    }

    fn cookies_of(&self, host: &str) -> String {
        let name = host.split(':').next().unwrap_or(host);
        let own = self.cookies.iter().filter(|((of, _), _)| of == name);
        let pairs: Vec<String> = own.map(|((_, name), value)| format!("{name}={value}")).collect();
        if pairs.is_empty() { String::new() } else { format!("Cookie: {}\r\n", pairs.join("; ")) }
    }

    fn keep(&mut self, host: &str, line: &str) {
        let mut parts = line.split(';').map(str::trim);
        let (name, value) = parts.next().and_then(|pair| pair.split_once('=')).expect("a pair");
        let attributes: Vec<String> = parts.map(str::to_ascii_lowercase).collect();
        let key = (host.to_owned(), name.to_owned());
        let is_over = attributes.iter().any(|one| one == "max-age=0" || one.contains("01 jan 1970"));
        match value.is_empty() || is_over {
            true => drop(self.cookies.remove(&key)),
            false => drop(self.cookies.insert(key, value.to_owned())),
        }
    }

    fn absolute(&self, location: &str) -> String {
        if location.contains("://") {
            return location.to_owned();
        }
        let (scheme, rest) = self.url.split_once("://").expect("a URL");
        let host = rest.split('/').next().unwrap_or_default();
        // As browsers read it: two slashes lead to another host.
        match location.strip_prefix("//") {
            Some(elsewhere) => format!("{scheme}://{elsewhere}"),
            None => format!("{scheme}://{host}{location}"),
        }
    }
}

fn attribute(tag: &str, name: &str) -> String {
    let value = tag.split(&format!(" {name}=\"")).nth(1).unwrap_or_default();
    value.split('"').next().unwrap_or_default().to_owned()
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte.is_ascii_alphanumeric() {
            true => char::from(byte).to_string(),
            false => format!("%{byte:02X}"),
        })
        .collect()
}
