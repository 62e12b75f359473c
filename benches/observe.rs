//! What observing costs each request: counting it and formatting its line.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use criterion::{Criterion, criterion_group, criterion_main};
use tollhouse::observe::Registry;
use tollhouse::observe::access_log::{Access, Layout, format_line};
use tollhouse::observe::redact::Redactor;

fn access() -> Access<'static> {
    Access {
        time: SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600),
        request_id: "0199f3a1c2d34e5f8a7b6c5d4e3f2a1b",
        listener: "public",
        client: IpAddr::from([192, 0, 2, 7]),
        method: "GET",
        scheme: "https",
        host: b"api.example.com",
        path: b"/v1/users/123456/orders",
        query: Some(b"page=2&limit=50&access_token=abcdefghijklmnop"),
        protocol: "HTTP/1.1",
        tls: None,
        route: "users-read",
        service: Some("users"),
        version: None,
        variant: None,
        upstream: Some("users"),
        backend: Some("127.0.0.1:9001"),
        attempts: 1,
        tries: None,
        status: 200,
        bytes_in: 0,
        bytes_out: 4096,
        elapsed: Duration::from_micros(1234),
        throttled: None,
        cache: None,
        upstream_elapsed: Some(Duration::from_micros(1100)),
        consumer: None,
        identity: None,
        denied_by: None,
        reason: None,
        user_agent: Some(b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)"),
        referer: Some(b"https://www.example.com/account?tab=orders"),
        error: None,
    }
}

fn access_line(criterion: &mut Criterion) {
    let redactor = Redactor::new(&[]);
    let access = access();
    let mut buffer = Vec::with_capacity(1024);
    criterion.bench_function("access line", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            format_line(black_box(&access), &redactor, &mut buffer);
        });
    });
}

fn template_line(criterion: &mut Criterion) {
    let layout = Layout::parse(
        "${client.address} - - [${time.common}] \"${request.line}\" ${status} ${bytes_out} \"${referer}\" \"${user_agent}\"",
    );
    let (layout, redactor, access) = (layout.expect("a template"), Redactor::new(&[]), access());
    let mut buffer = Vec::with_capacity(1024);
    criterion.bench_function("access line of a template", |bencher| {
        bencher.iter(|| {
            buffer.clear();
            layout.write(black_box(&access), &redactor, &mut buffer);
        });
    });
}

fn record(criterion: &mut Criterion) {
    let registry = Registry::new(1000);
    let series = registry.route("public", "users-read", "users");
    criterion.bench_function("record a request", |bencher| {
        bencher.iter(|| series.record(black_box(200), Duration::from_micros(1234), 0, 4096));
    });
}

fn render(criterion: &mut Criterion) {
    let registry = Registry::new(20_000);
    for route in 0..1000 {
        let series = registry.route("public", &format!("route-{route}"), "users");
        series.record(200, Duration::from_micros(1234), 0, 4096);
    }
    criterion.bench_function("render 1000 routes", |bencher| bencher.iter(|| registry.render()));
}

criterion_group!(benches, access_line, template_line, record, render);
criterion_main!(benches);
