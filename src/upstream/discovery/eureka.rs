//! Eureka: the instances of an application that are up, asked for again and again
//! (<https://github.com/Netflix/eureka/wiki/Eureka-REST-operations>).

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use super::http::{Api, Question, encoded};
use super::polled::Polled;
use super::{Failed, Following, Instance, World};
use crate::config::discovery::{EurekaDiscovery, EurekaHost, Shared as _};

/// An application in Eureka.
pub(super) struct Eureka {
    api: Api,
    written: EurekaDiscovery,
}

/// What of `/apps/NAME` is used.
#[derive(Debug, Deserialize)]
struct Answer {
    application: Application,
}

#[derive(Debug, Deserialize)]
struct Application {
    #[serde(default)]
    instance: OneOrMore,
}

/// Servers write a list of one as what is in it.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    More(Vec<Entry>),
    One(Box<Entry>),
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    host_name: String,
    #[serde(default)]
    ip_addr: String,
    status: String,
    port: Option<Port>,
    secure_port: Option<Port>,
    #[serde(default)]
    metadata: Option<HashMap<String, Value>>,
}

/// `{"$": 8080, "@enabled": "true"}`; the number is a text in answers of servers before 1.2.2.
#[derive(Debug, Deserialize)]
struct Port {
    #[serde(rename = "$")]
    number: Value,
    #[serde(rename = "@enabled", default)]
    enabled: Value,
}

impl Default for OneOrMore {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl Port {
    /// Its number, as far as it is one; 0 else, which nobody can use.
    fn number(&self) -> u32 {
        let number = match &self.number {
            Value::String(text) => text.parse().ok(),
            number => number.as_u64(),
        };
        number.and_then(|number| u32::try_from(number).ok()).unwrap_or(0)
    }

    fn is_enabled(&self) -> bool {
        match &self.enabled {
            Value::String(text) => text.eq_ignore_ascii_case("true"),
            enabled => enabled.as_bool().unwrap_or(true),
        }
    }
}

impl Eureka {
    pub(super) fn new(written: &EurekaDiscovery, following: &Following, world: &World) -> Self {
        let api = Api::new(&written.address, written.tls.as_ref(), following.base(), world);
        Self { api, written: written.clone() }
    }

    /// Those that are up, and have the port that is wanted.
    fn usable(&self, application: Application) -> Vec<Instance> {
        let all = match application.instance {
            OneOrMore::More(all) => all,
            OneOrMore::One(one) => vec![*one],
        };
        let instance = |entry: &Entry| {
            let port = if self.written.secure { &entry.secure_port } else { &entry.port };
            let port = port.as_ref().filter(|port| port.is_enabled())?;
            let host = match self.written.host {
                EurekaHost::Ip => &entry.ip_addr,
                EurekaHost::Name => &entry.host_name,
            };
            let zone = entry.metadata.as_ref().and_then(|metadata| metadata.get("zone")?.as_str());
            Some(Instance { zone: zone.map(Into::into), ..Instance::at(host, port.number()) })
        };
        all.iter().filter(|entry| entry.status == "UP").filter_map(instance).collect()
    }
}

#[async_trait]
impl Polled for Eureka {
    fn interval(&self) -> Duration {
        self.written.interval.get()
    }

    async fn instances(&self) -> Result<Vec<Instance>, Failed> {
        let target = format!("{}/apps/{}", self.api.path(), encoded(&self.written.app));
        let mut question = Question::get(target);
        if let Some((user, password)) = self.written.credentials() {
            question.fields.push(("authorization", super::http::basic(user, password.expose())));
        }
        let answer = self.api.ask(question).await?;
        if answer.status == StatusCode::NOT_FOUND {
            // Nobody of this name is registered.
            return Ok(Vec::new());
        }
        Ok(self.usable(answer.json::<Answer>()?.application))
    }
}
