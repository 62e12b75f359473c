//! Where the file of quotas is.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::config::QuotaFile;

/// In a service's own folder; `$STATE_DIRECTORY` names it (systemd.exec(5)).
const OF_A_SERVICE: &str = "quotas.sqlite";

/// Where the quotas of the document at `path` are kept; none in memory alone, or if the environment names no
/// folder for them.
#[must_use]
pub fn place(written: Option<&QuotaFile>, document: &Path) -> Option<PathBuf> {
    place_in(written, document, |name| std::env::var(name).ok())
}

fn place_in(
    written: Option<&QuotaFile>,
    document: &Path,
    environment: impl Fn(&str) -> Option<String>,
) -> Option<PathBuf> {
    match written {
        Some(QuotaFile::None) => return None,
        Some(QuotaFile::At(path)) => return Some(path.clone()),
        None => {}
    }
    let folder = |name| environment(name).filter(|folder| folder.starts_with('/'));
    if let Some(folders) = folder("STATE_DIRECTORY") {
        let first = folders.split(':').next().unwrap_or_default();
        return Some(Path::new(first).join(OF_A_SERVICE));
    }
    // XDG Base Directory Specification.
    let state = folder("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| Some(Path::new(&folder("HOME")?).join(".local/state")))?;
    // Gateways of several documents may share the folder.
    let document = document.canonicalize().unwrap_or_else(|_| document.to_owned());
    let digest = Sha256::digest(document.as_os_str().as_encoded_bytes());
    let short: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    Some(state.join("tollhouse").join(format!("quotas-{short}.sqlite")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(written: Option<&QuotaFile>, environment: &[(&str, &str)]) -> Option<String> {
        let value = |name: &str| {
            let found = environment.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let path = place_in(written, Path::new("/no/such/tollhouse.yaml"), value)?;
        Some(path.display().to_string())
    }

    #[test]
    fn the_document_says_where_else_the_service_manager_else_the_user() {
        let all = [("STATE_DIRECTORY", "/s:/t"), ("XDG_STATE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(placed(Some(&QuotaFile::None), &all), None);
        assert_eq!(placed(Some(&QuotaFile::At("/q".into())), &all).as_deref(), Some("/q"));
        assert_eq!(placed(None, &all).as_deref(), Some("/s/quotas.sqlite"));
        assert!(placed(None, &all[1..]).is_some_and(|path| path.starts_with("/x/tollhouse/quotas-")));
        assert!(placed(None, &all[2..]).is_some_and(|path| path.starts_with("/h/.local/state/tollhouse/")));
        assert_eq!(placed(None, &[("HOME", "relative")]), None);
    }
}
