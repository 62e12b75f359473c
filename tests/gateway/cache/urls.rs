//! What a URL stands for: as a cache counts its query, as earlier filters made it, and as the admin names it.

use super::FRESH;
use crate::harness::cached::{Cached, numbered};

#[tokio::test]
async fn what_does_not_count_of_a_query_is_not_sent_though_a_filter_made_another_path_of_it() {
    for (behind, path) in [("", "/x"), (", rewrite: {add_prefix: /v}", "/v/x")] {
        let routes = format!(
            "services: [{{name: s, upstream: o, filters: [rewrite: {{strip_prefix: /api}}]}}]\n\
             routes:\n\
             - name: a\n  service: s\n  match: {{paths: [/api/*]}}\n  \
             filters: [cache: {{key: {{query: {{except: [utm_source]}}}}}}{behind}]\n"
        );
        let cached = Cached::routed("", &routes, |nth, _| numbered(nth, FRESH)).await;
        for (query, answer) in [
            ("?a=1&utm_source=1", 1),
            ("?utm_source=2&a=1", 1),
            ("?a=1", 1),
            ("?a=2&utm_source=1", 2),
            ("?utm_source=1", 3),
            ("", 3),
        ] {
            let text = cached.get(&format!("/api/x{query}")).await.text();
            assert_eq!(text, format!("answer {answer}"), "{query}");
        }
        let sent: Vec<_> = cached.seen().iter().map(|head| head.target().to_owned()).collect();
        assert_eq!(sent, [format!("{path}?a=1"), format!("{path}?a=2"), path.to_owned()]);
    }
}

#[tokio::test]
async fn the_admin_names_a_url_as_clients_do_whatever_of_it_counts() {
    let options = "{key: {query: {except: [utm_source], sort: true}}}";
    let cached = Cached::new(options, |nth, _| numbered(nth, FRESH)).await;
    let urls = ["/x?b=1&utm_source=2&a=3", "/x?a=3&b=1", "/y/../x?utm_source=7&b=1&a=3", "/%78?b=1&a=3"];
    for (url, asked) in urls.iter().zip(1..) {
        cached.get("/x?b=1&utm_source=2&a=3").await;
        assert_eq!(cached.asked(), asked, "nothing of it was there");
        let named = format!("http://example.test{url}").replace('%', "%25").replace('&', "%26");
        let look = cached.gateway.ask_admin(&format!("GET /api/cache/lookup?url={named}"), "").await.json();
        assert_eq!(look["stored"].as_array().map(Vec::len), Some(1), "{look}");
        let wish = format!("{{\"url\": \"http://example.test{url}\"}}");
        let done = cached.gateway.ask_admin("POST /api/cache/purge", &wish).await.json();
        assert_eq!(done["purged"], 1, "{url}");
    }
}
