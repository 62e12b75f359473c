//! Nacos: the instances of a service that are healthy and enabled, asked for again and again
//! (<https://nacos.io/en/docs/latest/open-api> for the first and second version of the interface,
//! <https://nacos.io/en/docs/v3.2/manual/user/open-api/> for the third).

use std::time::{Duration, Instant};

use async_trait::async_trait;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tollhouse_filters::values::Secret;

use super::http::{Api, Question, query, scaled};
use super::polled::Polled;
use super::server::brief;
use super::{Failed, Following, Instance, World};
use crate::config::discovery::{NacosApi, NacosDiscovery, Shared as _};

/// A service in Nacos.
pub(super) struct Nacos {
    api: Api,
    written: NacosDiscovery,
    token: tokio::sync::Mutex<Option<(Secret, Instant)>>,
}

/// An answer of the second and third version of the interface.
#[derive(Deserialize)]
struct Wrapped {
    code: i64,
    message: Option<String>,
    /// What was asked for, or else more of what went wrong.
    #[serde(default)]
    data: Value,
}

/// What of a list of instances is used.
#[derive(Debug, Deserialize)]
struct Listed {
    #[serde(default)]
    hosts: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    ip: String,
    port: u32,
    #[serde(default = "one")]
    weight: f64,
    #[serde(default = "yes")]
    healthy: bool,
    #[serde(default = "yes")]
    enabled: bool,
    #[serde(default)]
    cluster_name: Option<String>,
}

/// A token, and for how many seconds it is good.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Login {
    access_token: Secret,
    token_ttl: u64,
}

fn one() -> f64 {
    1.0
}

fn yes() -> bool {
    true
}

impl Nacos {
    pub(super) fn new(written: &NacosDiscovery, following: &Following, world: &World) -> Self {
        let api = Api::new(&written.address, written.tls.as_ref(), following.base(), world);
        Self { api, written: written.clone(), token: tokio::sync::Mutex::default() }
    }

    fn question(&self, token: Option<&Secret>) -> Question<'static> {
        let written = &self.written;
        let clusters = (!written.clusters.is_empty()).then(|| written.clusters.join(","));
        let (of_instances, of_clusters) = match written.api {
            NacosApi::V1 => ("v1/ns", "clusters"),
            NacosApi::V2 => ("v2/ns", "clusterName"),
            NacosApi::V3 => ("v3/client/ns", "clusterName"),
        };
        // The third version tells all, and takes the token as a field, which logs of servers do not have.
        let is_third = written.api == NacosApi::V3;
        let query = query(&[
            ("serviceName", Some(&written.service)),
            ("groupName", Some(&written.group)),
            ("namespaceId", written.namespace.as_deref()),
            (of_clusters, clusters.as_deref()),
            ("healthyOnly", (!is_third).then_some("true")),
            ("accessToken", token.filter(|_| !is_third).map(Secret::expose)),
        ]);
        let mut question = Question::get(format!("{}/{of_instances}/instance/list?{query}", self.api.path()));
        let field = token.filter(|_| is_third).map(|token| ("accesstoken", token.expose().to_owned()));
        question.fields.extend(field);
        question
    }

    /// What proves who asks, if somebody has to.
    async fn token(&self) -> Result<Option<Secret>, Failed> {
        let Some((user, password)) = self.written.credentials() else { return Ok(None) };
        let mut held = self.token.lock().await;
        if let Some((token, _)) = held.as_ref().filter(|(_, until)| Instant::now() < *until) {
            return Ok(Some(token.clone()));
        }
        let form = query(&[("username", Some(user)), ("password", Some(password.expose()))]);
        let login = if self.written.api == NacosApi::V3 { "v3/auth/user/login" } else { "v1/auth/login" };
        let mut question = Question::get(format!("{}/{login}", self.api.path()));
        question.method = Method::POST;
        question.fields.push(("content-type", "application/x-www-form-urlencoded".to_owned()));
        let answer = self.api.ask(Question { body: &form, ..question }).await?;
        let Login { access_token, token_ttl } =
            answer.json().map_err(|why| Failed::from(format!("cannot log in: {why}")))?;
        // Well before its end.
        let until = Instant::now() + Duration::from_secs(token_ttl.min(86_400)).mul_f64(0.8);
        *held = Some((access_token.clone(), until));
        Ok(Some(access_token))
    }
}

#[async_trait]
impl Polled for Nacos {
    fn interval(&self) -> Duration {
        self.written.interval.get()
    }

    async fn instances(&self) -> Result<Vec<Instance>, Failed> {
        let token = self.token().await?;
        let mut answer = self.api.ask(self.question(token.as_ref())).await?;
        if token.is_some() && matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            // It may have ended before its time, as with a server that began anew.
            *self.token.lock().await = None;
            answer = self.api.ask(self.question(self.token().await?.as_ref())).await?;
        }
        let hosts = match self.written.api {
            NacosApi::V1 => answer.json::<Listed>()?.hosts,
            NacosApi::V2 => unwrapped::<Listed>(answer.json()?)?.hosts,
            NacosApi::V3 => unwrapped(answer.json()?)?,
        };
        Ok(usable(&hosts))
    }
}

fn unwrapped<T: DeserializeOwned>(answer: Wrapped) -> Result<T, Failed> {
    let Wrapped { code, message, data } = answer;
    if code != 0 {
        let message = brief(&message.unwrap_or_default());
        return Err(format!("the registry answers code {code}: {message}").into());
    }
    serde_json::from_value(data).map_err(|_| "the registry answers something else than instances".into())
}

/// Those that may get requests. A cluster is where its instances are.
fn usable(hosts: &[Entry]) -> Vec<Instance> {
    let usable: Vec<&Entry> = hosts.iter().filter(|entry| entry.healthy && entry.enabled).collect();
    let weights = scaled(&usable.iter().map(|entry| entry.weight).collect::<Vec<_>>());
    let instance = |(entry, weight): (&&Entry, u32)| Instance {
        weight: Some(weight),
        zone: entry.cluster_name.as_deref().map(Into::into),
        ..Instance::at(&entry.ip, entry.port)
    };
    usable.iter().zip(weights).map(instance).collect()
}
