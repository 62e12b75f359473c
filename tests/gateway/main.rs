//! The gateway as its clients and origins see it: the real binary, over real sockets.

mod access_log;
mod amounts;
mod balancing;
mod bodies;
mod cache;
mod cache_attacks;
mod cache_bodies;
mod cache_disk;
mod cache_fills;
mod cache_invalidation;
mod cache_shared;
mod compression;
mod consumers;
mod counts;
mod credentials;
mod decompression;
mod direct;
mod direct_http2;
mod discovery;
mod failures;
mod fallbacks;
mod faults;
mod filters;
mod floods;
mod forward_auth;
mod forwarding;
mod grpc;
mod h2_faults;
mod harness;
mod health;
mod hedges;
mod identity;
mod limits;
mod login;
mod mirror;
mod names;
mod oidc;
mod overload;
mod paths;
mod protocols;
mod proxy_protocol;
mod proxying;
mod ramps;
mod rate_limit;
mod registries;
mod releases;
mod reload;
mod request_filters;
mod resilience;
mod retries;
mod revocations;
mod shared_login;
mod slow;
mod sse;
mod start;
mod stopping;
mod stores;
mod tls;
mod unsent;
mod upgrade;
mod upgrade_sockets;
mod upstream_auth;
mod upstream_tls;
mod waiting;
mod websocket;

#[path = "../conformance/rfc5861.rs"]
mod rfc5861;
#[path = "../conformance/rfc7239.rs"]
mod rfc7239;
#[path = "../conformance/rfc9110.rs"]
mod rfc9110;
#[path = "../conformance/rfc9111.rs"]
mod rfc9111;
#[path = "../conformance/rfc9112.rs"]
mod rfc9112;
#[path = "../conformance/rfc9113.rs"]
mod rfc9113;
#[path = "../conformance/rfc9211.rs"]
mod rfc9211;
#[path = "../conformance/rfc9213.rs"]
mod rfc9213;
#[path = "../conformance/rfc9457.rs"]
mod rfc9457;
#[path = "../conformance/rules.rs"]
mod rules;
