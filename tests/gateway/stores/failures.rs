//! Every way in which a Redis can be away: it is told, costs no waiting, and ends by itself.

use std::net::SocketAddr;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tollhouse_filters::world::Away;

use super::{Kept, kept, kept_as};
use crate::harness::{Authority, Kind, Redis, refusing, soon, until, write_pair};

/// Budgets are counted again, or still.
async fn decides(kept: &Kept, key: &str) {
    kept.back().await;
    assert_eq!((kept.spend(key, 1).await, kept.spend(key, 1).await), (Ok(true), Ok(false)));
}

#[tokio::test]
async fn a_store_that_ends_and_starts_again_is_away_in_between() {
    let mut redis = Redis::start().await;
    let kept = kept(&redis, json!({"on_failure": "open"}));
    decides(&kept, "a").await;
    redis.kill();
    kept.away("").await;
    assert_eq!(kept.spend("a", 1).await, Err(Away));
    assert_eq!(kept.decisions("open"), 1);
    redis.restart().await;
    // It begins anew, and without the script.
    decides(&kept, "a").await;
}

#[tokio::test]
async fn a_store_that_is_not_there_yet_is_found_when_it_is() {
    let mut redis = Redis::later(&[]);
    let kept = kept(&redis, json!({}));
    kept.away("no connection").await;
    assert_eq!(kept.spend("a", 1).await, Err(Away));
    redis.restart().await;
    decides(&kept, "a").await;
}

#[tokio::test]
async fn a_store_that_stands_still_is_given_up_and_found_again() {
    let redis = Redis::start().await;
    let kept = kept(&redis, json!({"timeout": "50ms"}));
    kept.back().await;
    redis.pause(true);
    // Nobody waits longer than the deadline, and after a few nobody waits at all.
    soon("an end of the waiting", async {
        while kept.store.view().up {
            assert_eq!(kept.spend("a", 1).await, Err(Away));
        }
    })
    .await;
    kept.away("no answer within").await;
    let before = kept.decisions("local");
    for _ in 0..10_000 {
        assert_eq!(kept.spend("a", 1).await, Err(Away));
    }
    assert_eq!(kept.decisions("local"), before + 10_000);
    redis.pause(false);
    kept.back().await;
}

#[tokio::test]
async fn a_store_that_stands_still_while_nobody_asks_is_noticed() {
    let redis = Redis::start().await;
    let kept = kept(&redis, json!({"timeout": "50ms"}));
    kept.back().await;
    redis.pause(true);
    kept.away("no answer within").await;
    redis.pause(false);
    kept.back().await;
}

#[tokio::test]
async fn a_script_that_was_lost_is_sent_again_without_anybody_noticing() {
    let redis = Redis::start().await;
    let kept = kept(&redis, json!({}));
    kept.back().await;
    assert_eq!(kept.spend("a", 2).await, Ok(true));
    let () = redis.ask(&["SCRIPT", "FLUSH"]);
    assert_eq!(kept.spend("a", 2).await, Ok(true));
    assert_eq!(kept.spend("a", 2).await, Ok(false));
    assert!(kept.store.view().up);
}

#[tokio::test]
async fn a_connection_that_the_store_ends_is_made_anew() {
    let redis = Redis::start().await;
    let kept = kept(&redis, json!({}));
    kept.back().await;
    let ours = redis.clients().remove(0);
    let () = redis.ask(&["CLIENT", "KILL", "ID", ours.trim_start_matches("id=")]);
    until("another connection", || redis.clients().iter().any(|id| *id != ours).then_some(())).await;
    decides(&kept, "a").await;
}

#[tokio::test]
async fn a_replica_is_away_until_it_is_a_master_again() {
    let redis = Redis::start().await;
    let master = refusing().await;
    let kept = kept(&redis, json!({}));
    kept.back().await;
    let port = master.port().to_string();
    let () = redis.ask(&["REPLICAOF", "127.0.0.1", &port]);
    // Noticed by the next request, or within a second.
    kept.away("as a replica").await;
    let () = redis.ask(&["REPLICAOF", "NO", "ONE"]);
    decides(&kept, "a").await;
}

#[tokio::test]
async fn a_store_whose_memory_is_full_is_away_until_there_is_some() {
    let redis = Redis::start().await;
    let kept = kept(&redis, json!({}));
    kept.back().await;
    let () = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]);
    kept.away("its memory is full").await;
    let () = redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    decides(&kept, "a").await;
}

#[tokio::test]
async fn a_wrong_password_is_told_and_a_right_one_works() {
    let redis = Redis::with(&["--requirepass", "0pen-sesame"]).await;
    for wrong in [json!({}), json!({"password": "wr0ng"}), json!({"username": "who", "password": "wr0ng"})] {
        let kept = kept(&redis, wrong);
        kept.away("refuses the user or password").await;
        assert!(!format!("{:?}", kept.store.view()).contains("wr0ng"));
    }
    decides(&kept(&redis, json!({"password": "0pen-sesame"})), "a").await;
    let url = format!("{}?pass=0pen-sesame&db=3", redis.url());
    decides(&kept(&redis, json!({"url": url})), "a").await;
    let () = redis.ask(&["SWAPDB", "0", "3"]);
    let keys: Vec<String> = redis.ask(&["KEYS", "tollhouse:0:*"]);
    assert!(!keys.is_empty(), "it counted in another database");
}

#[tokio::test]
async fn a_user_who_may_do_only_what_is_needed_is_enough() {
    let redis = Redis::start().await;
    let commands = ["+eval", "+evalsha", "+script|load", "+time", "+mget", "+set"];
    let user = [&["ACL", "SETUSER", "gate", "on", ">s3cret", "~tollhouse:*"][..], &commands].concat();
    let () = redis.ask(&user);
    decides(&kept(&redis, json!({"username": "gate", "password": "s3cret"})), "a").await;
    let () = redis.ask(&["ACL", "SETUSER", "gate", "resetkeys", "~elsewhere:*"]);
    kept(&redis, json!({"username": "gate", "password": "s3cret"})).away("may not run scripts").await;
}

/// Whatever it is sent, answers with this.
async fn parrot(answer: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_answers_with_errors_or_is_no_redis_is_away_and_says_why() {
    for (answer, reason) in [
        ("-LOADING Redis is loading the dataset in memory\r\n", "loading its data"),
        ("-MOVED 3999 127.0.0.1:6381\r\n", "part of a cluster"),
        ("-MISCONF Errors writing to disk\r\n", "it refuses: MISCONF"),
        ("-ERR Error running script: @user_script: 40: -READONLY You can't write\r\n", "as a replica"),
        ("+OK\r\n", "does not speak"),
        ("HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak"),
        ("$3\r\nabc\r\n", "it refuses"),
    ] {
        let kept = kept_as(json!({"type": "redis", "url": format!("redis://{}", parrot(answer).await)}));
        let found =
            until("a reason", || kept.store.view().reason.filter(|text| !text.contains("nobody"))).await;
        let fits = found.contains(reason) || reason == "it refuses" && found.contains("does not speak");
        assert!(fits, "{answer:?}: {found}");
        assert_eq!(kept.spend("a", 1).await, Err(Away));
    }
}

#[tokio::test]
async fn over_tls_the_certificate_has_to_be_of_the_authority_and_for_the_host() {
    let folder = tempfile::tempdir().expect("a folder");
    let authority = Authority::new("stores");
    write_pair(folder.path(), "redis", &authority.sign(&["localhost"], Kind::Ecdsa));
    std::fs::write(folder.path().join("ca.pem"), &authority.pem).expect("written");
    let file = |name: &str| folder.path().join(name).display().to_string();
    let [cert, key, ca] = ["redis.pem", "redis.key", "ca.pem"].map(file);
    let port = refusing().await.port();
    let tls_port = port.to_string();
    let options = ["--tls-port", &tls_port, "--tls-auth-clients", "no", "--tls-cert-file", &cert];
    let options = [&options[..], &["--tls-key-file", &key, "--tls-ca-cert-file", &ca]].concat();
    let redis = Redis::with(&options).await;
    let store = |host: &str, tls: serde_json::Value| {
        kept(&redis, json!({"url": format!("rediss://{host}:{port}"), "tls": tls}))
    };
    decides(&store("localhost", json!({"ca": ca})), "a").await;
    store("localhost", json!(null)).away("no connection").await;
    store("127.0.0.1", json!({"ca": ca})).away("no connection").await;
}
