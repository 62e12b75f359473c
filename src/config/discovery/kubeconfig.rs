//! A kubeconfig: how a cluster of Kubernetes is reached, as `kubectl` reads it
//! (<https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/>). What is not known of it is not looked at.

use std::path::PathBuf;

use serde::Deserialize;
use tollhouse_filters::values::{Secret, Url};

/// A file's contents.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Kubeconfig {
    #[serde(default)]
    current_context: String,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    users: Vec<NamedUser>,
}

/// What a context leads to.
#[derive(Debug)]
pub struct Chosen<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Who the gateway is to it; none for nobody in particular.
    pub user: Option<&'a User>,
    /// Where things are that are not said to be elsewhere.
    pub namespace: Option<&'a str>,
}

#[derive(Debug, Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Debug, Deserialize)]
struct Context {
    cluster: String,
    #[serde(default)]
    user: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Debug, Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

/// How a cluster is reached and known.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Cluster {
    /// The API server.
    pub server: Option<Url>,
    /// The name that its certificate is for, if that is not its host.
    pub tls_server_name: Option<String>,
    /// Whether its certificate is not verified.
    pub insecure_skip_tls_verify: bool,
    /// Its authorities: PEM in Base64.
    pub certificate_authority_data: Option<String>,
    /// Its authorities: a file.
    pub certificate_authority: Option<PathBuf>,
    proxy_url: Option<String>,
}

#[derive(Debug, Deserialize)]
struct NamedUser {
    name: String,
    user: User,
}

/// What proves who the gateway is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct User {
    /// A certificate: PEM in Base64.
    pub client_certificate_data: Option<String>,
    /// A certificate: a file.
    pub client_certificate: Option<PathBuf>,
    /// Its key: PEM in Base64.
    pub client_key_data: Option<Secret>,
    /// Its key: a file.
    pub client_key: Option<PathBuf>,
    /// A bearer's token.
    pub token: Option<Secret>,
    /// A file that holds one, which may change.
    #[serde(rename = "tokenFile")]
    pub token_file: Option<PathBuf>,
    /// A name for HTTP's basic authentication.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
    #[serde(rename = "as")]
    impersonated: Option<String>,
    exec: Option<serde::de::IgnoredAny>,
    auth_provider: Option<serde::de::IgnoredAny>,
}

impl Kubeconfig {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// What is wrong, without a word of the file: it holds secrets.
    pub fn read(text: &str) -> Result<Self, String> {
        serde_yaml::from_str(text).map_err(|error| {
            let place = error.location();
            let place = place.map(|at| format!(": line {}, column {}", at.line(), at.column()));
            format!("is no kubeconfig{}", place.unwrap_or_default())
        })
    }

    /// What a context leads to, the current one without a name.
    ///
    /// # Errors
    /// There is no such context, or the gateway cannot do what it needs.
    pub fn choose(&self, context: Option<&str>) -> Result<Chosen<'_>, String> {
        let wanted = context.unwrap_or(&self.current_context);
        if wanted.is_empty() {
            return Err("has no `current-context`; name one with `context`".to_owned());
        }
        let context = self.contexts.iter().find(|named| named.name == wanted);
        let context = &context.ok_or_else(|| format!("has no context `{wanted}`"))?.context;
        let cluster = self.clusters.iter().find(|named| named.name == context.cluster);
        let cluster = &cluster.ok_or_else(|| format!("has no cluster `{}`", context.cluster))?.cluster;
        let user = match context.user.as_str() {
            "" => None,
            name => {
                let user = self.users.iter().find(|named| named.name == name);
                Some(&user.ok_or_else(|| format!("has no user `{name}`"))?.user)
            }
        };
        if cluster.proxy_url.is_some() {
            return Err(cannot("proxy-url", "a proxy before the API server"));
        }
        user.map_or(Ok(()), User::check)?;
        let namespace = Some(context.namespace.as_str()).filter(|namespace| !namespace.is_empty());
        Ok(Chosen { cluster, user, namespace })
    }
}

impl User {
    fn check(&self) -> Result<(), String> {
        if self.exec.is_some() {
            return Err(cannot(
                "exec",
                "a program that makes credentials; use a token, or a file that holds one",
            ));
        }
        if self.auth_provider.is_some() {
            return Err(cannot(
                "auth-provider",
                "a plugin for credentials; use a token, or a file that holds one",
            ));
        }
        if self.impersonated.is_some() {
            return Err(cannot("as", "the part of another user"));
        }
        Ok(())
    }
}

fn cannot(key: &str, what: &str) -> String {
    format!("has `{key}`, {what}: the gateway cannot do that")
}

#[cfg(test)]
mod tests {
    use super::*;

    // In the shape of kubernetes.io/docs/tasks/access-application-cluster/configure-access-multiple-clusters.
    const TWO: &str = "
apiVersion: v1
kind: Config
preferences: {}
clusters:
- name: development
  cluster: {server: 'https://1.2.3.4', certificate-authority: fake-ca-file}
- name: test
  cluster: {server: 'https://5.6.7.8', insecure-skip-tls-verify: true}
users:
- name: developer
  user: {client-certificate: fake-cert-file, client-key: fake-key-seefile}
- name: experimenter
  user: {username: exp, password: some-password}
contexts:
- name: dev-frontend
  context: {cluster: development, namespace: frontend, user: developer}
- name: exp-test
  context: {cluster: test, user: experimenter}
- name: lost
  context: {cluster: nowhere, user: developer}
- name: nobody
  context: {cluster: test}
current-context: dev-frontend
";

    #[test]
    fn a_context_leads_to_a_cluster_a_user_and_a_namespace() {
        let config = Kubeconfig::read(TWO).unwrap();
        let current = config.choose(None).unwrap();
        assert_eq!(current.cluster.server.as_ref().unwrap().as_str(), "https://1.2.3.4");
        assert_eq!(current.cluster.certificate_authority.as_deref(), Some("fake-ca-file".as_ref()));
        assert_eq!(current.user.unwrap().client_key.as_deref(), Some("fake-key-seefile".as_ref()));
        assert_eq!(current.namespace, Some("frontend"));
        let other = config.choose(Some("exp-test")).unwrap();
        assert!(other.cluster.insecure_skip_tls_verify);
        assert_eq!(other.user.unwrap().username.as_deref(), Some("exp"));
        assert_eq!(other.namespace, None);
        assert!(config.choose(Some("nobody")).unwrap().user.is_none());
    }

    #[test]
    fn what_leads_nowhere_is_said() {
        let config = Kubeconfig::read(TWO).unwrap();
        assert_eq!(config.choose(Some("x")).unwrap_err(), "has no context `x`");
        assert_eq!(config.choose(Some("lost")).unwrap_err(), "has no cluster `nowhere`");
        let empty = Kubeconfig::read("{}").unwrap();
        assert!(empty.choose(None).unwrap_err().starts_with("has no `current-context`"));
    }

    #[test]
    fn what_the_gateway_cannot_do_is_said_and_not_left_out() {
        for (written, key) in [
            ("exec: {command: aws, apiVersion: client.authentication.k8s.io/v1}", "exec"),
            ("auth-provider: {name: oidc}", "auth-provider"),
            ("as: admin", "as"),
        ] {
            let text = TWO.replace("username: exp, password: some-password", written);
            let error = Kubeconfig::read(&text).unwrap().choose(Some("exp-test")).unwrap_err();
            assert!(error.starts_with(&format!("has `{key}`")), "{error}");
        }
        let text = TWO.replace("insecure-skip-tls-verify: true", "proxy-url: 'http://proxy:3128'");
        let error = Kubeconfig::read(&text).unwrap().choose(Some("exp-test")).unwrap_err();
        assert!(error.starts_with("has `proxy-url`"), "{error}");
    }

    #[test]
    fn errors_and_debug_output_hold_no_secret() {
        for text in ["users: [{name: a, user: {token: [hunter2]}}]", "users: hunter2", "{a: 'hunter2"] {
            let error = Kubeconfig::read(text).unwrap_err();
            assert!(error.starts_with("is no kubeconfig") && !error.contains("hunter2"), "{error}");
        }
        let text = "users: [{name: a, user: {token: hunter2, password: hunter2, client-key-data: hunter2}}]";
        let config = Kubeconfig::read(text).unwrap();
        assert!(!format!("{config:?}").contains("hunter2"));
    }
}
