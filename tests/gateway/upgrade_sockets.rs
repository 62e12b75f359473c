//! Where a gateway is asked to let another process take its place, and which cannot be asked.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;
use tollhouse::handover::{Answer, Ask, Place};

use crate::harness::{Gateway, get, until};

/// A gateway in an environment that names no folders; it is killed when dropped, and so is all that it started.
struct Alone {
    child: Child,
    said: PathBuf,
}

impl Drop for Alone {
    fn drop(&mut self) {
        let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Alone {
    /// Starts with these further keys, by this program if there is one.
    fn start(folder: &Path, by: Option<&Path>, rest: &str) -> Self {
        let (file, said) = (folder.join("tollhouse.yaml"), folder.join("said"));
        let listeners = "listeners: [{name: a, address: \"127.0.0.1:0\"}]";
        let document = format!("version: 1\nadmin: {{address: none}}\n{listeners}\n{rest}\n");
        std::fs::write(&file, document).expect("written");
        let gateway = Path::new(env!("CARGO_BIN_EXE_tollhouse"));
        let mut command = Command::new(by.unwrap_or(gateway));
        command.args(by.map(|_| gateway)).arg("run").arg("-c").arg(&file);
        for name in ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR", "NOTIFY_SOCKET"] {
            command.env_remove(name);
        }
        command.env("STATE_DIRECTORY", folder).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&said).expect("made"));
        Self { child: command.spawn().expect("it starts"), said }
    }

    /// Waits for these words on standard error.
    async fn says(&self, text: &str) {
        let said = || std::fs::read_to_string(&self.said).unwrap_or_default();
        until(text, || said().contains(text).then_some(())).await;
    }
}

#[tokio::test]
async fn a_gateway_that_nobody_can_ask_to_be_replaced_says_so() {
    let folder = TempDir::new().expect("a temporary directory");
    let gateway = Alone::start(folder.path(), None, "");
    gateway.says("this process cannot be upgraded: `server.upgrade_socket` is not set").await;
}

/// What becomes of an upgrade to this program, asked for here.
pub(super) async fn upgrade_at(socket: PathBuf, program: PathBuf) -> Answer {
    let asked = tokio::task::spawn_blocking(move || {
        let mut channel = Place::at(socket).connect().expect("it listens");
        channel.set_patience(Duration::from_secs(30)).expect("more than zero");
        channel.send(&Ask { program, config: None }).expect("sent");
        channel.receive().expect("an answer")
    });
    asked.await.expect("no panic")
}

#[tokio::test]
async fn a_gateway_whose_end_is_the_end_of_its_container_is_not_replaced() {
    let folder = TempDir::new().expect("a temporary directory");
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).expect("our own folder");
    // By its name it is the init of a container, which ends with the process that it started.
    let init = folder.path().join("tini");
    std::fs::write(&init, "#!/bin/sh\n\"$@\" &\nwait\n").expect("written");
    std::fs::set_permissions(&init, Permissions::from_mode(0o700)).expect("executable");
    let socket = folder.path().join("upgrade.sock");
    let rest = format!("server: {{upgrade_socket: \"{}\"}}", socket.display());
    let gateway = Alone::start(folder.path(), Some(&init), &rest);
    gateway.says("upgrade socket path=").await;
    match upgrade_at(socket, env!("CARGO_BIN_EXE_tollhouse").into()).await {
        Answer::Refused { reason, configuration: false } => {
            assert!(reason.starts_with("`tini` is the parent of this process"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    gateway.says("the upgrade failed; this process serves on").await;
}

#[tokio::test]
async fn a_new_process_that_nobody_could_ask_to_be_replaced_does_not_take_over() {
    let folder = TempDir::new().expect("a temporary directory");
    let open = folder.path().join("open");
    std::fs::create_dir(&open).expect("made");
    std::fs::set_permissions(&open, Permissions::from_mode(0o755)).expect("changed");
    let mut gateway = Gateway::start("routes: [{name: all, respond: {}}]").await;
    let moved = |gateway: &Gateway, socket: &Path| {
        let server = format!("server: {{upgrade_socket: \"{}\"}}", socket.display());
        let text = gateway.text(&format!("{server}\nroutes: [{{name: all, respond: {{}}}}]"));
        std::fs::write(gateway.file(), text).expect("written");
    };
    for (socket, why) in [
        ("missing/upgrade.sock", "its folder: No such file"),
        ("open/upgrade.sock", "its folder is open to others"),
    ] {
        moved(&gateway, &folder.path().join(socket));
        let (code, said) = gateway.upgrade().await;
        assert_eq!(code, Some(3), "{said}");
        assert!(said.contains("cannot open the upgrade socket") && said.contains(why), "{said}");
        assert_eq!(get(gateway.address(), "/").await.status, 200);
    }
    std::fs::set_permissions(&open, Permissions::from_mode(0o700)).expect("changed");
    let socket = open.join("upgrade.sock");
    moved(&gateway, &socket);
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    until("the new place", || Place::at(socket.clone()).connect().ok().map(drop)).await;
}

#[tokio::test]
async fn a_new_process_takes_no_socket_that_another_gateway_answers_at() {
    let document = "routes: [{name: all, respond: {}}]";
    let (mut gateway, mut other) = (Gateway::start(document).await, Gateway::start(document).await);
    let server = format!("server: {{upgrade_socket: \"{}\"}}", other.upgrade_socket().display());
    std::fs::write(gateway.file(), gateway.text(&format!("{server}\n{document}"))).expect("written");
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("cannot open the upgrade socket"), "{said}");
    assert!(said.contains("another gateway answers there"), "{said}");
    assert_eq!(get(gateway.address(), "/").await.status, 200);
    // This asserts that it was the other one that answered.
    let (code, said) = other.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    // What a dead process left behind is nobody's.
    let free = gateway.file().with_file_name("stale.sock");
    drop(UnixListener::bind(&free).expect("a socket"));
    let server = format!("server: {{upgrade_socket: \"{}\"}}", free.display());
    std::fs::write(gateway.file(), gateway.text(&format!("{server}\n{document}"))).expect("written");
    let (code, said) = gateway.upgrade().await;
    assert_eq!(code, Some(0), "{said}");
    until("the new place", || Place::at(free.clone()).connect().ok().map(drop)).await;
}
