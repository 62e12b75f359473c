//! How a cluster is reached and who the gateway is to it: by the account of its Pod, or by a kubeconfig.
//!
//! Everything is read anew whenever the API server is followed anew, and files of tokens for each request: tokens of
//! accounts are replaced before they expire (<https://kubernetes.io/docs/concepts/storage/projected-volumes/>).

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use tollhouse_filters::values::{Scalar, Secret, Url};
use zeroize::Zeroizing;

use crate::config::discovery::KubernetesDiscovery;
use crate::config::discovery::kubeconfig::{Cluster, Kubeconfig, User};
use crate::upstream::discovery::server::{Server, joined};
use crate::upstream::trust::Trust;

/// Where the account of a Pod is.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where a Service is whose namespace nobody says.
const DEFAULT: &str = "default";
/// Most bytes of a file.
const MOST: u64 = 4 << 20;

/// A cluster that can be asked.
pub(super) struct Access {
    pub(super) server: Server,
    pub(super) namespace: Box<str>,
    credential: Credential,
}

enum Credential {
    None,
    Token(Secret),
    TokenFile(PathBuf),
    Basic(String, Secret),
}

/// The cluster that the gateway runs in, if it runs in one.
#[derive(Debug, Clone)]
pub(super) struct Here {
    pub(super) host: Option<String>,
    pub(super) port: Option<String>,
    pub(super) account: PathBuf,
}

impl Here {
    /// As the environment of the process says.
    pub(super) fn of_process() -> Self {
        let (host, port) = (env::var("KUBERNETES_SERVICE_HOST"), env::var("KUBERNETES_SERVICE_PORT"));
        Self { host: host.ok(), port: port.ok(), account: ACCOUNT.into() }
    }
}

impl Access {
    /// As is written; a kubeconfig is relative to `base`.
    ///
    /// # Errors
    /// Why the cluster cannot be asked, without secrets.
    pub(super) fn of(written: &KubernetesDiscovery, base: &Path, here: &Here) -> Result<Self, String> {
        let mut access = match &written.kubeconfig {
            Some(file) => {
                let path = base.join(file);
                let text = Zeroizing::new(text(&path)?);
                let below = path.parent().unwrap_or(base);
                Kubeconfig::read(&text)
                    .and_then(|config| Self::by_kubeconfig(&config, written.context.as_deref(), below))
                    .map_err(|why| format!("{} {why}", file.display()))?
            }
            None => Self::by_account(here)?,
        };
        if let Some(namespace) = &written.namespace {
            access.namespace = namespace.as_str().into();
        }
        Ok(access)
    }

    fn by_account(here: &Here) -> Result<Self, String> {
        let (Some(host), Some(port)) = (&here.host, &here.port) else {
            return Err("the gateway runs in no cluster (KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not \
                        set); name a `kubeconfig`"
                .to_owned());
        };
        let name = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        let url = Url::read(&format!("https://{name}:{port}"))
            .ok_or("KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not those of a server")?;
        let token = here.account.join("token");
        // Said at once, and not when the server refuses who has none.
        text(&token)?;
        // Without the file, the authorities of the system count; one that cannot be read is no reason for that.
        let ca = here.account.join("ca.crt");
        let ca = if fs::exists(&ca).unwrap_or(true) { Some(text(&ca)?.into_bytes()) } else { None };
        let namespace = text(&here.account.join("namespace")).unwrap_or_default();
        let namespace = Some(namespace.trim()).filter(|namespace| !namespace.is_empty()).unwrap_or(DEFAULT);
        let trust = Trust::from_pem(&url.origin().host, true, ca.as_deref(), None)?;
        let server = server(&url)?.trusting(trust);
        Ok(Self { server, namespace: namespace.into(), credential: Credential::TokenFile(token) })
    }

    fn by_kubeconfig(config: &Kubeconfig, context: Option<&str>, below: &Path) -> Result<Self, String> {
        let chosen = config.choose(context)?;
        let (cluster, nobody) = (chosen.cluster, User::default());
        let user = chosen.user.unwrap_or(&nobody);
        let url = cluster.server.as_ref().ok_or("has no `server` in its cluster")?;
        let mut server = server(url)?;
        if url.is_https() {
            server = server.trusting(trust(url, cluster, user, below)?);
        }
        let namespace = chosen.namespace.unwrap_or(DEFAULT).into();
        Ok(Self { server, namespace, credential: Credential::of(user, below) })
    }

    /// What proves who the gateway is, as it is now; none for nobody in particular.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn authorization(&self) -> Result<Option<HeaderValue>, String> {
        let text = match &self.credential {
            Credential::None => return Ok(None),
            Credential::Token(token) => Zeroizing::new(format!("Bearer {}", token.expose().trim())),
            Credential::TokenFile(file) => {
                let token = Zeroizing::new(text(file)?);
                Zeroizing::new(format!("Bearer {}", token.trim()))
            }
            Credential::Basic(name, password) => {
                let pair = Zeroizing::new(format!("{name}:{}", password.expose()));
                Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes())))
            }
        };
        let mut value =
            HeaderValue::from_str(&text).map_err(|_| "the token is not text on one line".to_owned())?;
        value.set_sensitive(true);
        Ok(Some(value))
    }
}

impl Credential {
    /// A file comes before a token, as in `kubectl`.
    fn of(user: &User, below: &Path) -> Self {
        match (&user.token_file, &user.token, &user.username, &user.password) {
            (Some(file), ..) => Self::TokenFile(below.join(file)),
            (None, Some(token), ..) => Self::Token(token.clone()),
            (None, None, Some(name), Some(password)) => Self::Basic(name.clone(), password.clone()),
            _ => Self::None,
        }
    }
}

fn server(url: &Url) -> Result<Server, String> {
    Server::new(url, None, Path::new("")).map_err(|problems| joined(problems).to_string())
}

fn trust(url: &Url, cluster: &Cluster, user: &User, below: &Path) -> Result<Trust, String> {
    let ca =
        pem(cluster.certificate_authority_data.as_deref(), cluster.certificate_authority.as_deref(), below)?;
    let certificate =
        pem(user.client_certificate_data.as_deref(), user.client_certificate.as_deref(), below)?;
    let key = pem(user.client_key_data.as_ref().map(Secret::expose), user.client_key.as_deref(), below)?;
    let client = match (&certificate, &key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate.as_slice(), key.as_slice())),
        _ => return Err("has only one of a client's certificate and key".to_owned()),
    };
    let host = url.origin().host;
    let name = cluster.tls_server_name.as_deref().unwrap_or(&host);
    let verify = !cluster.insecure_skip_tls_verify;
    Trust::from_pem(name, verify, ca.as_ref().map(|pem| pem.as_slice()), client)
}

/// PEM that is written in Base64, or else is in a file.
fn pem(data: Option<&str>, file: Option<&Path>, below: &Path) -> Result<Option<Zeroizing<Vec<u8>>>, String> {
    match (data, file) {
        (Some(data), _) => {
            let pem = STANDARD.decode(data.trim()).map_err(|_| "has data that is not Base64".to_owned())?;
            Ok(Some(Zeroizing::new(pem)))
        }
        (None, Some(file)) => text(&below.join(file)).map(|text| Some(Zeroizing::new(text.into_bytes()))),
        (None, None) => Ok(None),
    }
}

/// A small text file.
fn text(path: &Path) -> Result<String, String> {
    let failed = |error: std::io::Error| format!("cannot read {}: {error}", path.display());
    let about = fs::metadata(path).map_err(failed)?;
    // A pipe would block for ever.
    if !about.is_file() || about.len() > MOST {
        return Err(format!("{} is no file of at most 4 MiB", path.display()));
    }
    fs::read_to_string(path).map_err(failed)
}
