//! A gateway that has too much to do refuses what matters least.

use std::time::Duration;

use crate::harness::{Gateway, Origin, request, soon};

const KEY: &str = "x-api-key: an example, not a secret\r\n";

fn document(origin: &Origin, overload: &str) -> String {
    format!(
        "server: {{overload: {{{overload}}}}}
identities: {{keys: {{type: api_key, from: [header:x-api-key]}}}}
plans: {{gold: {{limits: [{{name: burst, limit: 1000/s}}], priority: critical}}}}
consumers:
  - name: acme
    plan: gold
    credentials: [{{type: api_key, id: k1, hash: \"sha256:d2c13cf67c07f731335976254500afa5a6fa569224a2a89faf12f30fa742226b\"}}]
upstreams: [{{name: o, backends: [{{address: \"{}\"}}]}}]
routes:
  - {{name: low, match: {{paths: [/low]}}, priority: low, upstream: o}}
  - {{name: normal, match: {{paths: [/normal]}}, upstream: o}}
  - {{name: high, match: {{paths: [/high]}}, priority: high, upstream: o}}
  - {{name: critical, match: {{paths: [/critical]}}, priority: critical, respond: {{status: 200, body: well}}}}
  - name: sold
    match: {{paths: [/sold]}}
    priority: low
    filters: [authenticate: {{any_of: [keys], optional: true}}]
    upstream: o
",
        origin.address
    )
}

async fn statuses(gateway: &Gateway, fields: &str) -> [u16; 5] {
    let mut statuses = [0; 5];
    for (status, name) in statuses.iter_mut().zip(["low", "normal", "high", "critical", "sold"]) {
        *status = request(gateway.address(), &format!("GET /{name}"), fields).await.status;
    }
    statuses
}

#[tokio::test]
async fn what_matters_least_is_refused_first_and_what_is_critical_never() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    // Whatever it does, it has more in memory than this.
    let gateway = Gateway::administered(&document(&origin, "memory: 1%, memory_limit: 1MiB")).await;
    let mut seen = Vec::new();
    soon("all but what is critical to be refused", async {
        while seen.last() != Some(&[503, 503, 503, 200, 503]) {
            seen.push(statuses(&gateway, "").await);
        }
    })
    .await;
    // Who is refused is refused from then on, and nobody before who matters less.
    for pair in seen.windows(2) {
        assert!(pair[0].iter().zip(pair[1]).all(|(before, now)| *before <= now), "{seen:?}");
    }
    for [low, normal, high, critical, _] in &seen {
        assert!(low >= normal || *normal == 503, "{seen:?}");
        assert!(*critical == 200 && (*high == 200 || *low == 503), "{seen:?}");
    }
    assert_eq!(statuses(&gateway, KEY).await, [503, 503, 503, 200, 200], "a plan stands before the route");
    let refused = request(gateway.address(), "GET /low", "").await;
    assert_eq!(refused.problem(), "overloaded");
    assert!(refused.field("retry-after").is_some());
    let line = gateway.log_line(|line| line["path"] == "/low" && line["status"] == 503).await;
    assert_eq!(
        (&line["error"], &line["reason"]),
        (&"overloaded".into(), &"requests of priority `low` are refused for now".into())
    );
    gateway.says("requests of low priority are refused").await;
    assert_eq!(gateway.number("tollhouse_overload_level").await, 3);
    assert!(gateway.number("tollhouse_overload_refused_total{priority=\"low\"}").await > 0);
    assert_eq!(gateway.ask_admin("GET /readyz", "").await.status, 200, "the admin listener is not concerned");

    gateway.rewrite_administered(&document(&origin, "memory: 100%, memory_limit: 1024GiB, loop_delay: 1h"));
    gateway.signal("HUP");
    soon("all to be well", async {
        while statuses(&gateway, "").await != [200; 5] {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// Keeps the process from running for a while, so that its event loop is late, as it is when others use the processors.
async fn hold_up(gateway: &Gateway, time: Duration) {
    gateway.signal("STOP");
    tokio::time::sleep(time).await;
    gateway.signal("CONT");
}

#[tokio::test]
async fn a_late_event_loop_has_low_priority_refused_and_all_is_well_again_after_it() {
    let origin = Origin::answering("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    let gateway = Gateway::administered(&document(&origin, "loop_delay: 1s")).await;
    assert_eq!(statuses(&gateway, "").await, [200; 5]);
    hold_up(&gateway, Duration::from_millis(1500)).await;
    let line = gateway.says("requests of low priority are refused").await;
    assert!(line.contains("the event loop is late"), "{line}");
    // For two seconds at least.
    let refused = request(gateway.address(), "GET /low", "").await;
    let served = request(gateway.address(), "GET /high", "").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "overloaded"));
    assert!(refused.field("retry-after").is_some_and(|after| after.parse::<u32>().is_ok()), "{refused:?}");
    assert_eq!(served.status, 200);
    assert!(gateway.number("tollhouse_overload_refused_total{priority=\"low\"}").await > 0);
    assert_eq!(gateway.number("tollhouse_overload_refused_total{priority=\"high\"}").await, 0);
    gateway.says("no requests are refused any more").await;
    assert_eq!(statuses(&gateway, "").await, [200; 5]);
    assert_eq!(gateway.number("tollhouse_overload_level").await, 0);
}
