//! `server.cache.disk`: there after a restart, whole or not at all, and no trouble to requests.

use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::harness::cached::{Cached, numbered};
use crate::harness::{Answer, refused_to_start, soon};

const FRESH: &str = "cache-control: max-age=3600\r\n";
const LARGE: usize = 700 << 10;

/// What `server.cache` has for this directory, and memory that large answers are too large for.
fn at(folder: &Path) -> String {
    format!("memory: 1MiB, disk: {{path: \"{}\", size: 64MiB}}", folder.display())
}

/// A gateway whose cache has this directory; below `/large`, the origin's answers are.
async fn kept_in(folder: &Path) -> Cached {
    kept(&at(folder)).await
}

/// The same with this in `server.cache`.
async fn kept(server: &str) -> Cached {
    Cached::kept(server, "[cache: {}]", |nth, head| {
        if !head.target().starts_with("/large") {
            return numbered(nth, FRESH);
        }
        let body = nth.to_string().repeat(LARGE);
        let body = &body[..LARGE];
        format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n{FRESH}\r\n{body}")
    })
    .await
}

fn is_hit(answer: &Answer) -> bool {
    answer.field("cache-status").is_some_and(|status| status.starts_with("tollhouse; hit"))
}

/// The files of stored answers.
fn files(folder: &Path) -> Vec<PathBuf> {
    let all = |folder: &Path| fs::read_dir(folder).expect("ours").map(|found| found.expect("ours").path());
    let folders = all(folder).filter(|path| path.is_dir());
    folders.flat_map(|folder| all(&folder).collect::<Vec<_>>()).collect()
}

#[tokio::test]
async fn a_restart_serves_hits_at_once() {
    const PATHS: [&str; 8] = ["/0", "/1", "/2", "/3", "/4", "/5", "/6", "/large"];
    let folder = TempDir::new().expect("a temporary directory");
    let cached = kept_in(&folder.path().join("made/by/it")).await;
    let mut before = Vec::new();
    for path in PATHS {
        before.push(cached.get(path).await.body);
    }
    cached.stored(PATHS.len()).await;
    let cached = cached.restart(|| ()).await;
    for (path, body) in PATHS.iter().zip(&before) {
        let answer = cached.get(path).await;
        assert!(is_hit(&answer) && answer.status == 200, "{path}: {:?}", answer.head);
        assert!(answer.body == *body, "{path}");
    }
    assert_eq!(cached.asked(), PATHS.len(), "the origin is not asked again");
    assert_eq!(cached.numbers().await["disk"]["reads"], 8);
}

#[tokio::test]
async fn what_waits_to_be_written_is_written_at_the_end() {
    // So few that a busy machine writes them in the five seconds that an end waits, also without optimisation.
    const ANSWERS: usize = 8;
    let folder = TempDir::new().expect("a temporary directory");
    let cached = kept(&at(folder.path()).replace("1MiB", "256MiB")).await;
    for nth in 0..ANSWERS {
        cached.get(&format!("/large/{nth}")).await;
    }
    cached.stored(ANSWERS).await;
    assert_eq!(cached.numbers().await["disk"]["dropped"], 0);
    let cached = cached.restart(|| ()).await;
    assert_eq!(cached.numbers().await["disk"]["entries"], ANSWERS);
}

#[tokio::test]
async fn what_memory_has_no_room_for_is_served_from_disk() {
    let folder = TempDir::new().expect("a temporary directory");
    let cached = kept_in(folder.path()).await;
    let first = cached.get("/large").await.body;
    cached.counts("/disk/writes", 1).await;
    for reads in 1..4 {
        let answer = cached.get("/large").await;
        assert!(is_hit(&answer) && answer.body == first, "{:?}", answer.head);
        let numbers = cached.numbers().await;
        assert_eq!((&numbers["entries"], &numbers["disk"]["reads"]), (&0.into(), &reads.into()));
    }
    assert_eq!(cached.asked(), 1);
    let metrics = cached.gateway.ask_admin("GET /metrics", "").await.text();
    for line in ["tollhouse_cache_disk_entries 1", "tollhouse_cache_disk_reads_total 3"] {
        assert!(metrics.lines().any(|known| known == line), "{line}\n{metrics}");
    }
}

#[tokio::test]
async fn a_variant_that_is_only_on_disk_is_served_beside_one_in_memory() {
    const LANGUAGES: [&str; 2] = ["Accept-Language: de\r\n", "Accept-Language: en\r\n"];
    let folder = TempDir::new().expect("a temporary directory");
    let cached = Cached::kept(&at(folder.path()), "[cache: {}]", |nth, head| {
        let fields = format!("{FRESH}vary: accept-language\r\n");
        if head.field("accept-language") == Some("en") {
            return numbered(nth, &fields);
        }
        let body = "x".repeat(LARGE);
        format!("HTTP/1.1 200 OK\r\ncontent-length: {LARGE}\r\n{fields}\r\n{body}")
    })
    .await;
    for (language, writes) in LANGUAGES.iter().zip(1..) {
        cached.send("GET /", language).await;
        cached.counts("/disk/writes", writes).await;
    }
    for (language, length) in LANGUAGES.iter().zip([LARGE, "answer 2".len()]) {
        let answer = cached.send("GET /", language).await;
        assert!(is_hit(&answer) && answer.body.len() == length, "{language}: {:?}", answer.head);
    }
    assert_eq!(cached.asked(), 2);
}

#[tokio::test]
async fn purges_hold_over_restarts() {
    const PATHS: [&str; 4] = ["/url", "/prefix/a", "/prefix/b", "/other"];
    let folder = TempDir::new().expect("a temporary directory");
    let cached = kept_in(folder.path()).await;
    for path in PATHS {
        cached.get(path).await;
    }
    cached.counts("/disk/writes", 4).await;
    for wish in [r#"{"url": "http://example.test/url"}"#, r#"{"prefix": "http://example.test/prefix/"}"#] {
        let answer = cached.gateway.ask_admin("POST /api/cache/purge", wish).await;
        assert_eq!(answer.status, 200, "{wish}");
    }
    let cached = cached.restart(|| ()).await;
    for (path, hit) in PATHS.iter().zip([false, false, false, true]) {
        assert_eq!(is_hit(&cached.get(path).await), hit, "{path}");
    }
    assert_eq!(cached.asked(), 4 + 3);
}

#[tokio::test]
async fn an_upgrade_hands_the_directory_over() {
    let folder = TempDir::new().expect("a temporary directory");
    let mut cached = kept_in(folder.path()).await;
    let body = cached.get("/large").await.body;
    cached.stored(1).await;
    let (code, said) = cached.gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    assert!(cached.gateway.ended().await.success());
    // The new process looks again and again whether the old one has ended, and then what there is.
    let taken_over = async {
        loop {
            let answer = cached.send("GET /large", "Cache-Control: only-if-cached\r\n").await;
            if answer.status == 200 {
                break answer;
            }
        }
    };
    let answer = soon("the directory", taken_over).await;
    assert!(is_hit(&answer) && answer.body == body, "{:?}", answer.head);
    assert_eq!(cached.asked(), 1);
}

#[tokio::test]
async fn files_that_are_not_whole_are_misses() {
    const PATHS: [&str; 4] = ["/0", "/1", "/2", "/3"];
    let folder = TempDir::new().expect("a temporary directory");
    let cached = kept_in(folder.path()).await;
    for path in PATHS {
        cached.get(path).await;
    }
    cached.counts("/disk/writes", 4).await;
    let damage = || {
        let files = files(folder.path());
        assert_eq!(files.len(), PATHS.len(), "{files:?}");
        for (nth, file) in files.iter().enumerate() {
            let mut bytes = fs::read(file).expect("ours");
            match nth {
                0 => bytes.truncate(bytes.len() / 2),
                1 => *bytes.last_mut().expect("not empty") ^= 1,
                2 => bytes.clear(),
                _ => bytes.fill(b'x'),
            }
            fs::write(file, bytes).expect("ours");
        }
    };
    let cached = cached.restart(damage).await;
    for (path, nth) in PATHS.iter().zip(5..) {
        let answer = cached.get(path).await;
        assert_eq!((answer.status, answer.text()), (200, format!("answer {nth}")), "{path}");
        assert!(!is_hit(&answer), "{path}");
    }
    assert_eq!(cached.numbers().await["disk"]["corrupt"], 4);
    cached.counts("/disk/writes", 4).await;
    // What came instead is whole.
    let cached = cached.restart(|| ()).await;
    for (path, nth) in PATHS.iter().zip(5..) {
        assert_eq!(cached.get(path).await.text(), format!("answer {nth}"), "{path}");
    }
    assert_eq!(cached.asked(), 8);
}

#[tokio::test]
async fn a_directory_that_is_lost_fails_no_request() {
    let folder = TempDir::new().expect("a temporary directory");
    let path = folder.path().join("cache");
    let cached = kept_in(&path).await;
    cached.get("/before").await;
    cached.counts("/disk/writes", 1).await;
    // Permissions hold nobody back who is root; a file in the way does.
    fs::remove_dir_all(&path).expect("ours");
    fs::write(&path, "").expect("ours");
    for path in ["/a", "/b", "/large"] {
        assert_eq!(cached.get(path).await.status, 200, "{path}");
    }
    cached.counts("/disk/errors", 1).await;
    for path in ["/before", "/a", "/b"] {
        assert!(is_hit(&cached.get(path).await), "{path}: memory has it");
    }
    // It is on no disk, and memory has no room for it.
    let answer = cached.get("/large").await;
    assert!(answer.status == 200 && answer.body.len() == LARGE && !is_hit(&answer), "{:?}", answer.head);
    cached.gateway.says("the cache cannot write to disk").await;
}

#[tokio::test]
async fn a_directory_that_cannot_be_made_is_an_error_at_the_start() {
    let folder = TempDir::new().expect("a temporary directory");
    fs::write(folder.path().join("file"), "").expect("ours");
    let document = format!(
        "version: 1\nadmin: {{address: none}}\nlisteners: [{{name: a, address: \"127.0.0.1:0\"}}]\n\
         server: {{cache: {{{}}}}}\nroutes: [{{name: all, respond: {{}}}}]\n",
        at(&folder.path().join("file/cache"))
    );
    let (code, said) = refused_to_start(&document);
    assert_ne!(code, Some(0));
    assert!(said.contains("cannot use the directory of `server.cache.disk`: "), "{said}");
}

#[tokio::test]
async fn a_reload_gives_and_takes_a_directory() {
    let folder = TempDir::new().expect("a temporary directory");
    fs::write(folder.path().join("file"), "").expect("ours");
    let cached = Cached::kept("memory: 1MiB", "[cache: {}]", |nth, _| numbered(nth, FRESH)).await;
    assert!(cached.numbers().await.get("disk").is_none());
    let good = at(&folder.path().join("good"));
    cached.reload(&good).await;
    cached.get("/").await;
    cached.counts("/disk/writes", 1).await;
    // Another size keeps it open, and one that cannot be had changes nothing.
    cached.reload(&good.replace("64MiB", "32MiB")).await;
    let text = fs::read_to_string(cached.gateway.file()).expect("ours");
    fs::write(cached.gateway.file(), text.replace("/good\"", "/file/bad\"")).expect("ours");
    let answer = cached.gateway.ask_admin("POST /api/reload", "").await;
    assert_eq!(answer.status, 422, "{}", answer.text());
    assert!(answer.text().contains("cannot use the directory"), "{}", answer.text());
    let disk = &cached.numbers().await["disk"];
    assert_eq!((&disk["writes"], &disk["capacity"]), (&1.into(), &(32 << 20).into()));
    cached.reload("memory: 1MiB").await;
    assert!(cached.numbers().await.get("disk").is_none());
    assert!(is_hit(&cached.get("/").await), "memory has it");
    assert_eq!(files(&folder.path().join("good")).len(), 1, "what is there stays");
}
