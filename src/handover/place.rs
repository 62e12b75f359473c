//! Where a running gateway is asked to let another process take its place: a socket in a private folder.

use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Type};

use super::Channel;

/// Of a service's own folder; `$RUNTIME_DIRECTORY` names it (systemd.exec(5)).
const IN_RUNTIME_DIRECTORY: &str = "upgrade.sock";
/// Of the folder that a user's programs share (XDG Base Directory Specification).
const IN_XDG_RUNTIME_DIR: &str = "tollhouse-upgrade.sock";
/// Where the shipped unit has it.
const OF_THE_SERVICE: &str = "/run/tollhouse/upgrade.sock";
/// What is said where there is none.
const NOBODY: &str =
    "no gateway listens there; at its start, each says where it does, or that it cannot be upgraded";

/// The path of an upgrade socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place(PathBuf);

impl Place {
    /// This path.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where a gateway has its socket that is not told where: `None` when the environment names no folder for it.
    #[must_use]
    pub fn usual() -> Option<Self> {
        Self::usual_in(|name| std::env::var(name).ok())
    }

    fn usual_in(environment: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let folder = |name| environment(name).filter(|folder| folder.starts_with('/'));
        if let Some(folders) = folder("RUNTIME_DIRECTORY") {
            let first = folders.split(':').next().unwrap_or_default();
            return Some(Self(Path::new(first).join(IN_RUNTIME_DIRECTORY)));
        }
        Some(Self(Path::new(&folder("XDG_RUNTIME_DIR")?).join(IN_XDG_RUNTIME_DIR)))
    }

    /// Where to look for a gateway that nothing is known of: as [`usual`](Self::usual), else where a service has it.
    #[must_use]
    pub fn likely() -> Self {
        let usual = Self::usual().filter(|place| place.0.exists());
        usual.unwrap_or_else(|| Self(OF_THE_SERVICE.into()))
    }

    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Listens here.
    ///
    /// # Errors
    /// Others may enter the folder, somebody else answers here, or the system refuses.
    pub fn listen(&self) -> Result<UnixListener, PlaceError> {
        self.check_free()?;
        self.beside()?.take()
    }

    /// That nobody listens here; what a dead process left behind is nobody's.
    ///
    /// # Errors
    /// Somebody answers here, or there is something else.
    pub fn check_free(&self) -> Result<(), PlaceError> {
        if self.0.symlink_metadata().is_ok() && !is_stale(&self.0) {
            return Err(self.failed("another gateway answers there, or it is no socket"));
        }
        Ok(())
    }

    /// Whether this is the same socket, which may be called otherwise.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        let file = |place: &Self| fs::metadata(&place.0).ok().map(|about| (about.dev(), about.ino()));
        self == other || file(self).is_some_and(|known| file(other) == Some(known))
    }

    /// Listens beside this place, to take it from the process that listens here.
    ///
    /// # Errors
    /// Others may enter the folder, or the system refuses.
    pub fn beside(&self) -> Result<Beside, PlaceError> {
        private(self.0.parent().unwrap_or(Path::new("/"))).map_err(|reason| self.failed(reason))?;
        let listener = self.bind_beside().map_err(|error| self.failed(error.to_string()))?;
        Ok(Beside { place: self.clone(), listener })
    }

    fn bind_beside(&self) -> io::Result<UnixListener> {
        let fresh = self.fresh();
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        fs::set_permissions(&fresh, Permissions::from_mode(0o600))?;
        Ok(listener)
    }

    /// The path beside this one.
    fn fresh(&self) -> PathBuf {
        let mut fresh = self.0.clone().into_os_string();
        fresh.push(".new");
        fresh.into()
    }

    fn failed(&self, reason: impl Into<String>) -> PlaceError {
        PlaceError { path: self.0.clone(), reason: reason.into() }
    }

    /// Takes the socket away.
    pub fn leave(&self) {
        let _ = fs::remove_file(&self.0);
    }

    /// Reaches the gateway that listens here.
    ///
    /// # Errors
    /// There is none, or it is somebody else's.
    pub fn connect(&self) -> Result<Channel, PlaceError> {
        UnixStream::connect(&self.0).map(Channel::new).map_err(|error| {
            let reason = match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => NOBODY.into(),
                _ => error.to_string(),
            };
            self.failed(reason)
        })
    }
}

/// A socket beside a place.
#[derive(Debug)]
pub struct Beside {
    place: Place,
    listener: UnixListener,
}

impl Beside {
    /// Takes the place: whoever asks finds the old socket or this one, and never none.
    ///
    /// # Errors
    /// The system refuses.
    pub fn take(self) -> Result<UnixListener, PlaceError> {
        let Self { place, listener } = self;
        let taken = fs::rename(place.fresh(), &place.0);
        taken.map(|()| listener).map_err(|error| place.failed(error.to_string()))
    }
}

/// Whether this is the file of a socket on which nobody answers: it outlived its process, and is in nobody's use.
pub(crate) fn is_stale(path: &Path) -> bool {
    let is_socket = path.symlink_metadata().is_ok_and(|meta| meta.file_type().is_socket());
    is_socket && probe(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Non-blocking, since a living listener with a full queue would hold us up.
fn probe(path: &Path) -> io::Result<()> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

/// Who can connect can have programs started as us.
fn private(folder: &Path) -> Result<(), String> {
    let facts = fs::metadata(folder).map_err(|error| format!("its folder: {error}"))?;
    if facts.uid() != rustix::process::geteuid().as_raw() {
        return Err("its folder belongs to another user".to_owned());
    }
    match facts.mode() & 0o077 {
        0 => Ok(()),
        _ => Err("its folder is open to others: `chmod 700` it".to_owned()),
    }
}

/// Why there is no upgrade socket.
#[derive(Debug)]
pub struct PlaceError {
    path: PathBuf,
    reason: String,
}

impl fmt::Display for PlaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.reason)
    }
}

impl std::error::Error for PlaceError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(mode: u32) -> (tempfile::TempDir, Place) {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(mode)).unwrap();
        let place = Place::at(folder.path().join("upgrade.sock"));
        (folder, place)
    }

    #[test]
    fn the_usual_place_is_in_the_folder_of_the_service_else_of_the_user() {
        let usual = |known: &[(&str, &str)]| {
            let place = Place::usual_in(|name| {
                known.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
            });
            place.map(|place| place.path().to_str().unwrap().to_owned())
        };
        let service = ("RUNTIME_DIRECTORY", "/run/tollhouse:/run/other");
        let user = ("XDG_RUNTIME_DIR", "/run/user/7");
        assert_eq!(usual(&[service, user]).as_deref(), Some("/run/tollhouse/upgrade.sock"));
        assert_eq!(usual(&[user]).as_deref(), Some("/run/user/7/tollhouse-upgrade.sock"));
        assert_eq!(usual(&[("XDG_RUNTIME_DIR", "")]), None);
        assert_eq!(usual(&[]), None);
    }

    #[test]
    fn a_folder_that_others_may_enter_is_refused() {
        for mode in [0o755, 0o710, 0o701] {
            let (_folder, place) = folder(mode);
            let error = place.listen().unwrap_err().to_string();
            assert!(error.ends_with("upgrade.sock: its folder is open to others: `chmod 700` it"), "{error}");
        }
        let missing = Place::at("/nonexistent/upgrade.sock".into());
        assert!(missing.listen().unwrap_err().to_string().contains("its folder: No such file"));
    }

    #[test]
    fn only_a_successor_takes_a_place_that_somebody_has() {
        let (_folder, place) = folder(0o700);
        let first = place.listen().unwrap();
        assert!(place.listen().unwrap_err().to_string().contains("another gateway answers there"));
        let second = place.beside().unwrap().take().unwrap();
        place.connect().unwrap();
        second.accept().unwrap();
        first.set_nonblocking(true).unwrap();
        while first.accept().is_ok() {}
        place.connect().unwrap();
        assert_eq!(first.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(second);
        place.listen().expect("what a dead process left behind is nobody's");
    }

    #[test]
    fn a_place_is_the_same_by_whatever_path_it_is_called() {
        let (folder, place) = folder(0o700);
        let _listener = place.listen().unwrap();
        let (real, linked) = (folder.path().join("real"), folder.path().join("linked"));
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(folder.path(), &linked).unwrap();
        assert!(place.is_same(&Place::at(linked.join("upgrade.sock"))));
        assert!(!place.is_same(&Place::at(real.join("upgrade.sock"))));
    }

    #[test]
    fn a_place_is_its_holders_as_long_as_it_is_not_taken() {
        let (_folder, place) = folder(0o700);
        let first = place.listen().unwrap();
        let beside = place.beside().unwrap();
        place.connect().unwrap();
        first.accept().unwrap();
        drop(beside);
        place.connect().unwrap();
        first.accept().unwrap();
        place.beside().expect("what was left there is nobody's");
    }

    #[test]
    fn the_socket_is_for_its_user_only_and_goes_with_the_gateway() {
        let (_folder, place) = folder(0o700);
        let _listener = place.listen().unwrap();
        assert_eq!(fs::metadata(place.path()).unwrap().mode() & 0o777, 0o600);
        place.leave();
        assert!(place.connect().unwrap_err().to_string().ends_with(NOBODY));
    }
}
