//! Who acts when this process ends, so that no other can take its place: a container ends with its first process, which
//! ends with the one that it started, and a supervisor starts another.

use rustix::process::{Pid, getppid};

use super::Origin;

/// What such programs are called, in 15 bytes at most (proc(5), `comm`).
const KNOWN: [&str; 15] = [
    "catatonit",
    "conmon",
    "conmonrs",
    "containerd-shim",
    "docker-init",
    "dumb-init",
    "podman-init",
    "runsv",
    "s6-supervise",
    "s6-svscan",
    "supervise",
    "supervise-daemo",
    "supervisord",
    "tini",
    "tini-static",
];

/// Why no other process can take the place of this one, if so.
pub(super) fn objection(origin: Origin) -> Option<String> {
    if std::process::id() == 1 {
        return Some("this is the first process of a container: replace the container".to_owned());
    }
    // A process that took another one's place is nobody's child, whoever adopted it.
    if origin == Origin::Successor { None } else { objection_by(getppid()) }
}

/// What the parent has to say; none is given where it is outside of this process's namespace.
fn objection_by(parent: Option<Pid>) -> Option<String> {
    match parent {
        Some(parent) => objection_of(&name(parent)?),
        // What started a container waits for it there, whichever process is the first inside.
        None => Some("this process was started from outside: replace the container".to_owned()),
    }
}

fn objection_of(parent: &str) -> Option<String> {
    KNOWN.contains(&parent).then(|| {
        format!(
            "`{parent}` is the parent of this process, and acts when it ends: have that start the new \
             version, or replace the container"
        )
    })
}

fn name(process: Pid) -> Option<String> {
    let name = std::fs::read_to_string(format!("/proc/{}/comm", process.as_raw_nonzero())).ok()?;
    Some(name.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_object_that_act_when_the_process_ends_which_they_started() {
        for known in KNOWN {
            assert!(known.len() <= 15, "{known}: the system knows no longer name");
            let begin = format!("`{known}` is the parent of this process, and acts when it ends");
            assert!(objection_of(known).unwrap().starts_with(&begin));
        }
        for other in ["systemd", "init", "sh", "sshd", "tini-like"] {
            assert_eq!(objection_of(other), None);
        }
    }

    #[test]
    fn a_parent_outside_of_the_container_objects_too() {
        // getppid(2) gives 0 where the parent is in another namespace.
        assert!(objection_by(None).unwrap().starts_with("this process was started from outside"));
        assert_eq!(objection_by(Some(rustix::process::getpid())), None);
        assert_eq!(objection(Origin::Successor), None, "whoever adopted it waits for another process");
    }

    #[test]
    fn a_process_is_called_as_the_system_calls_it() {
        let own = name(rustix::process::getpid()).unwrap();
        assert!((1..=15).contains(&own.len()) && !own.contains('\n'), "{own:?}");
    }
}
