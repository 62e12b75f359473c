//! Loading from real files, in temporary directories.

mod include;
mod substitute;
mod watch;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{Loaded, Problems, load_with};

/// A directory that goes with the test.
struct Temp(PathBuf);

impl Temp {
    fn new(files: &[(&str, &str)]) -> Temp {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name =
            format!("tollhouse-source-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let temp = Temp(fs::canonicalize(std::env::temp_dir()).unwrap().join(name));
        fs::create_dir(&temp.0).unwrap();
        files.iter().for_each(|(name, text)| temp.write(name, text));
        temp
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn load(&self) -> Result<Loaded, Problems> {
        self.load_in(&[])
    }

    fn load_in(&self, environment: &[(&str, &str)]) -> Result<Loaded, Problems> {
        self.load_partly(environment).and_then(Loaded::sound)
    }

    /// The document, whatever is wrong with it.
    fn load_partly(&self, environment: &[(&str, &str)]) -> Result<Loaded, Problems> {
        let environment: HashMap<_, _> = environment.iter().copied().collect();
        load_with(&self.path("main.yaml"), &|name| environment.get(name).map(|value| (*value).to_owned()))
    }

    fn json(&self) -> serde_json::Value {
        let loaded = self.load().unwrap_or_else(|problems| panic!("{problems}"));
        serde_json::to_value(&*loaded.root).unwrap()
    }

    /// The problems, one a line, without this directory's name.
    fn problems(&self) -> Vec<String> {
        let problems = match self.load() {
            Err(problems) => problems,
            Ok(Loaded { duplicates, files, .. }) => Problems::located(duplicates, &files),
        };
        assert!(!problems.list.is_empty(), "a wrong document");
        problems
            .to_string()
            .replace(&format!("{}/", self.0.display()), "")
            .lines()
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
