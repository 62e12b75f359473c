//! The access log in its formats, written by the real binary and changed while it serves.

use crate::harness::{Gateway, exchange, get, until};

const ROUTES: &str = "routes: [{name: all, respond: {body: pong}}]";

/// Has the gateway write its log another way.
async fn reformat(gateway: &Gateway, format: &str, count: usize) {
    let text = gateway.text(ROUTES).replace("access_log: {", &format!("access_log: {{format: '{format}', "));
    std::fs::write(gateway.file(), text).expect("write");
    until("a reload", || (gateway.said("configuration reloaded") >= count).then_some(())).await;
}

async fn last_line(gateway: &Gateway, part: &str) -> String {
    until("a line in the access log", || {
        let text = gateway.log_text();
        let line = text.split_inclusive('\n').find(|line| line.contains(part) && line.ends_with('\n'));
        line.map(|line| line.trim_end().to_owned())
    })
    .await
}

/// Apache's and NGINX's `combined`, with `\xHH` for what could end its quotes.
#[tokio::test]
async fn a_combined_line_is_one_that_tools_read() {
    let gateway = Gateway::start(ROUTES).await;
    reformat(&gateway, "combined", 1).await;
    let request = "GET /a%22b?api_key=s3cret HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\
                   User-Agent: x\" 200 1 \"\\\r\nReferer: https://r.test/?access_token=s3cret\r\n\r\n";
    exchange(gateway.address(), request).await.expect("an answer");
    let line = last_line(&gateway, "/a%22b").await;
    let pattern = regex::Regex::new(
        "^127\\.0\\.0\\.1 - - \\[[0-9]{2}/[A-Z][a-z]{2}/[0-9]{4}:[0-9:]{8} \\+0000\\] (.*)$",
    );
    let found = pattern.expect("a pattern").captures(&line).map(|found| found[1].to_owned());
    assert_eq!(
        found.as_deref(),
        Some(
            "\"GET /a%22b?api_key=*** HTTP/1.1\" 200 4 \"https://r.test/?access_token=***\" \
             \"x\\x22 200 1 \\x22\\x5C\""
        ),
        "{line}"
    );
}

#[tokio::test]
async fn a_template_takes_effect_on_reload() {
    let gateway = Gateway::start(ROUTES).await;
    get(gateway.address(), "/json").await;
    gateway.log_line(|line| line["path"] == "/json").await;
    reformat(&gateway, "${request.method} ${request.path} ${status} ${bytes_out} ${route} ${upstream}", 1)
        .await;
    get(gateway.address(), "/template").await;
    assert_eq!(last_line(&gateway, "/template").await, "GET /template 200 4 all -");
}
