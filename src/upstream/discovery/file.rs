//! A file as a registry: a list of backends, written as in the document, by somebody who knows them.
//!
//! It is looked at, not waited for: that works the same on any file system, and for links that are replaced, as those
//! of mounted configuration are.

use std::fs::{self, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tollhouse_filters::tree::{self, FileId, Limits};

use super::{Directory, Failed, Instance, Tell};
use crate::config::discovery::FileDiscovery;
use crate::config::upstream::{Backend, Host};

/// The longest file that is read, in bytes.
const LONGEST: usize = 16 << 20;

/// A file that lists backends.
pub(super) struct File {
    path: Arc<PathBuf>,
    interval: Duration,
    seen: Mutex<Seen>,
}

/// The file as it was when it was last looked at.
#[derive(Default)]
struct Seen {
    stamp: Option<Stamp>,
    /// It is in use as it was then.
    used: bool,
}

/// What changes with a file: which one it is, its length, when it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp([i64; 7]);

impl File {
    pub(super) fn new(written: &FileDiscovery, base: &Path) -> Self {
        let path = Arc::new(base.join(&written.path));
        Self { path, interval: written.interval.get(), seen: Mutex::default() }
    }

    /// The backends, if the file is another than before and was left alone since the last look: who writes it may be
    /// in the middle of it, and a part of a list is often a list too.
    fn look(&self) -> Result<Option<Vec<Instance>>, Failed> {
        let stamp = stamp(&self.path)?;
        let mut seen = self.seen.lock();
        let is_first = seen.stamp.is_none();
        let settled = seen.stamp.replace(stamp) == Some(stamp);
        if settled && seen.used {
            return Ok(None);
        }
        if !settled && !is_first {
            seen.used = false;
            return Ok(None);
        }
        let instances = read(&self.path)?;
        // Else it was written meanwhile.
        seen.used = self::stamp(&self.path)? == stamp;
        Ok(seen.used.then_some(instances))
    }
}

#[async_trait]
impl Directory for Arc<File> {
    async fn follow(&self, tell: &Tell) -> Failed {
        // Whoever is told now may not have been told before.
        self.seen.lock().used = false;
        loop {
            let file = Self::clone(self);
            match tokio::task::spawn_blocking(move || file.look()).await {
                Ok(Ok(Some(instances))) => tell.set(instances),
                Ok(Ok(None)) if self.seen.lock().used => tell.still(),
                Ok(Ok(None)) => {}
                Ok(Err(why)) => return why,
                Err(error) => return error.to_string().into(),
            }
            tokio::time::sleep(self.interval).await;
        }
    }

    fn patience(&self) -> Duration {
        self.interval
    }
}

fn stamp(path: &Path) -> Result<Stamp, Failed> {
    let cannot = |error: std::io::Error| Failed::from(format!("cannot read {}: {error}", path.display()));
    let metadata: Metadata = fs::metadata(path).map_err(cannot)?;
    // Reading anything else may take for ever.
    if !metadata.is_file() {
        return Err(format!("{} is no file", path.display()).into());
    }
    let [device, inode] = [metadata.dev(), metadata.ino()].map(u64::cast_signed);
    let length = metadata.size().cast_signed();
    let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
    Ok(Stamp([device, inode, length, times[0], times[1], times[2], times[3]]))
}

fn read(path: &Path) -> Result<Vec<Instance>, Failed> {
    let shown = path.display();
    let mut bytes = Vec::new();
    let most = u64::try_from(LONGEST).unwrap_or(u64::MAX);
    let read = fs::File::open(path).and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot read {shown}: {error}"))?;
    if bytes.len() > LONGEST {
        return Err(format!("{shown} is longer than {} MiB", LONGEST >> 20).into());
    }
    parse(&bytes).map_err(|why| format!("{shown}: {why}").into())
}

fn parse(bytes: &[u8]) -> Result<Vec<Instance>, String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err("it is empty; `[]` says that there are no backends".to_owned());
    }
    let first = |errors: Vec<tree::Error>| errors.first().map(ToString::to_string).unwrap_or_default();
    let node = tree::parse_bytes(bytes, FileId(0), &Limits { bytes: LONGEST, ..Limits::default() });
    let backends: Vec<Backend> = tree::from_node_all(&node.map_err(first)?).map_err(first)?;
    Ok(backends.into_iter().map(instance).collect())
}

fn instance(backend: Backend) -> Instance {
    let host = match backend.address.host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name,
    };
    Instance {
        weight: Some(backend.weight.into()),
        priority: Some(backend.priority.into()),
        zone: backend.zone.map(Into::into),
        ..Instance::at(&host, backend.address.port.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::discovery::{Discovery, Registry};

    fn file(folder: &Path) -> File {
        let written = json!({"type": "file", "path": "users.yaml"});
        let written: Discovery = serde_json::from_value(written).unwrap();
        let Ok(Registry::File(written)) = written.registry() else { panic!("a file") };
        File::new(written, folder)
    }

    fn hosts(looked: Result<Option<Vec<Instance>>, Failed>) -> Option<Vec<String>> {
        looked.unwrap().map(|found| found.iter().map(|instance| instance.host.to_string()).collect())
    }

    #[test]
    fn a_list_is_read_as_yaml_or_json_with_all_that_a_backend_has() {
        let yaml = parse(b"- {address: 'a.test:80', weight: 3, priority: 1, zone: z}\n").unwrap();
        let json = parse(br#"[{"address": "a.test:80", "weight": 3, "priority": 1, "zone": "z"}]"#).unwrap();
        let whole = Instance {
            weight: Some(3),
            priority: Some(1),
            zone: Some("z".into()),
            ..Instance::at("a.test", 80)
        };
        assert_eq!((&yaml, &json), (&vec![whole.clone()], &vec![whole]));
        assert!(parse(b"[]").unwrap().is_empty());
    }

    #[test]
    fn what_is_no_list_of_backends_is_refused_with_its_place() {
        for (text, why) in [
            ("", "it is empty; `[]` says that there are no backends"),
            ("[{\"address\": \"a.test:80\"", "2:1: [0]: not YAML"),
            ("- address: a.test:80\n- adress: b.test:80\n", "2:3: [1].adress: unknown key"),
            ("- address: a.test\n", "1:12: [0].address: expected an address"),
        ] {
            let refused = parse(text.as_bytes()).unwrap_err();
            assert!(refused.starts_with(why), "{text:?}: {refused}");
        }
    }

    #[test]
    fn a_file_is_taken_once_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = (folder.path().join("users.yaml"), file(folder.path()));
        assert!(file.look().unwrap_err().to_string().contains("users.yaml"));
        fs::write(&path, "- address: a.test:80\n").unwrap();
        assert_eq!(hosts(file.look()), Some(vec!["a.test".to_owned()]));
        assert_eq!(hosts(file.look()), None, "nothing changed");
        fs::write(&path, "- address: a.test:80\n- address: b.test:80\n").unwrap();
        assert_eq!(hosts(file.look()), None, "somebody may be at it");
        fs::write(&path, "- address: a.test:80\n- address: b.test:80\n- address: c.test:80\n").unwrap();
        assert_eq!(hosts(file.look()), None, "somebody is");
        assert_eq!(hosts(file.look()).unwrap().len(), 3);
        assert_eq!(hosts(file.look()), None);
    }

    #[test]
    fn a_file_put_in_the_place_of_another_is_another_file() {
        let folder = tempfile::tempdir().unwrap();
        let (path, file) = (folder.path().join("users.yaml"), file(folder.path()));
        fs::write(&path, "- address: a.test:80\n").unwrap();
        file.look().unwrap();
        let new = folder.path().join("new");
        fs::write(&new, "- address: b.test:80\n").unwrap();
        fs::rename(&new, &path).unwrap();
        assert_eq!(hosts(file.look()), None);
        assert_eq!(hosts(file.look()), Some(vec!["b.test".to_owned()]));
        fs::write(&path, "- address: [\n").unwrap();
        assert_eq!(hosts(file.look()), None);
        for _ in 0..2 {
            assert!(file.look().is_err(), "for as long as it cannot be read");
        }
        fs::create_dir(folder.path().join("folder")).unwrap();
        assert!(stamp(&folder.path().join("folder")).unwrap_err().to_string().contains("is no file"));
    }
}
