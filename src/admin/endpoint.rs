//! Registers endpoints: the router and the OpenAPI document grow from the same calls.

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::{JsonSchema, Schema};
use serde_json::{Map, Value, json};

use super::admission::{self, Admission};
use super::auth::{self, Guard};
use super::problem::Details;
use super::{AdminState, conditional};

/// Who may use an endpoint; [`auth`] decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Open,
    /// Loopback, or the token's holder.
    Read,
    /// The token's holder.
    Write,
}

/// Endpoints registered so far.
pub(super) struct Api {
    guard: Guard,
    admission: Admission,
    router: Router<AdminState>,
    paths: Map<String, Value>,
    questions: SchemaGenerator,
    answers: SchemaGenerator,
}

/// One endpoint on its way into an [`Api`].
pub(super) struct Endpoint<'a> {
    api: &'a mut Api,
    method: Method,
    path: &'static str,
    access: Access,
    conditional: bool,
    admitted: Option<usize>,
    longest: Option<usize>,
    document: Value,
}

impl Api {
    pub(super) fn new(guard: Guard, admission: Admission) -> Self {
        let settings = || {
            let mut settings = SchemaSettings::draft2020_12();
            settings.definitions_path = "/components/schemas".into();
            settings
        };
        Self {
            guard,
            admission,
            router: Router::new(),
            paths: Map::new(),
            questions: settings().into_generator(),
            answers: settings().for_serialize().into_generator(),
        }
    }

    /// An endpoint that shows something.
    pub(super) fn get(&mut self, path: &'static str, name: &str, summary: &str) -> Endpoint<'_> {
        self.endpoint(Method::GET, path, name, summary)
    }

    /// An endpoint that takes something.
    pub(super) fn post(&mut self, path: &'static str, name: &str, summary: &str) -> Endpoint<'_> {
        self.endpoint(Method::POST, path, name, summary)
    }

    /// An endpoint that takes something away.
    pub(super) fn delete(&mut self, path: &'static str, name: &str, summary: &str) -> Endpoint<'_> {
        self.endpoint(Method::DELETE, path, name, summary)
    }

    fn endpoint(&mut self, method: Method, path: &'static str, name: &str, summary: &str) -> Endpoint<'_> {
        let mut document = json!({"operationId": name, "summary": summary, "responses": {}});
        let parameters: Vec<Value> = path.split('/').filter_map(parameter).collect();
        if !parameters.is_empty() {
            document["parameters"] = parameters.into();
        }
        Endpoint {
            api: self,
            method,
            path,
            access: Access::Read,
            conditional: false,
            admitted: None,
            longest: None,
            document,
        }
    }

    /// The router, and the OpenAPI 3.1 document of all that it routes.
    pub(super) fn finish(mut self) -> (Router<AdminState>, Value) {
        let mut schemas = self.answers.take_definitions(true);
        schemas.extend(self.questions.take_definitions(true));
        let document = json!({
            "openapi": "3.1.1",
            "info": {
                "title": "Tollhouse admin API",
                "version": env!("CARGO_PKG_VERSION"),
                "description": "Looks at a running gateway, and asks it for reloads.",
                "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
            },
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "securitySchemes": {
                    "token": {"type": "http", "scheme": "bearer", "description": "The token of `admin.token`."},
                },
            },
        });
        (self.router, document)
    }
}

impl Endpoint<'_> {
    /// Needs neither loopback nor token.
    pub(super) fn open(mut self) -> Self {
        self.access = Access::Open;
        self
    }

    /// Changes something: always needs the token.
    pub(super) fn write(mut self) -> Self {
        self.access = Access::Write;
        self
    }

    /// Answers with this type as JSON.
    pub(super) fn answers<T: JsonSchema>(self, status: u16, description: &str) -> Self {
        self.answers_as::<T>(status, description, "application/json")
    }

    /// Answers with plain text.
    pub(super) fn answers_text(self, status: u16, description: &str) -> Self {
        self.answers_as::<String>(status, description, "text/plain")
    }

    /// Answers with a problem (RFC 9457), perhaps with more members than usual.
    pub(super) fn fails<T: JsonSchema>(self, status: u16, description: &str) -> Self {
        self.answers_as::<T>(status, description, "application/problem+json")
    }

    /// Has an entity tag, and answers 304 to who has this content already.
    pub(super) fn conditional(mut self) -> Self {
        self.conditional = true;
        let header = |schema: Value, text: &str| json!({"schema": schema, "description": text});
        self.document["responses"]["200"]["headers"] = json!({
            "ETag": header(json!({"type": "string"}), "A strong entity tag of the content."),
        });
        self.document["responses"]["304"] = json!({"description": "The content is one of `If-None-Match`."});
        let mut parameters = self.document["parameters"].as_array().cloned().unwrap_or_default();
        parameters.push(json!({
            "name": "If-None-Match", "in": "header", "required": false, "schema": {"type": "string"},
        }));
        self.document["parameters"] = parameters.into();
        self
    }

    /// Takes a parameter in the query.
    pub(super) fn query(mut self, name: &str, required: bool, description: &str) -> Self {
        let mut parameters = self.document["parameters"].as_array().cloned().unwrap_or_default();
        parameters.push(json!({
            "name": name, "in": "query", "required": required, "schema": {"type": "string"},
            "description": description,
        }));
        self.document["parameters"] = parameters.into();
        self
    }

    /// Takes JSON of this type, of at most so many bytes, which is no work at all.
    pub(super) fn takes_little<T: JsonSchema>(mut self, bytes: usize) -> Self {
        let schema = self.api.questions.subschema_for::<T>();
        self.longest = Some(bytes);
        self.document["requestBody"] =
            json!({"required": true, "content": {"application/json": {"schema": schema}}});
        self.fails::<Details>(413, "The body is too large.")
    }

    /// Takes JSON of this type, of at most so many bytes; few such requests run at a time.
    pub(super) fn takes<T: JsonSchema>(self, bytes: usize) -> Self {
        let schema = self.api.questions.subschema_for::<T>();
        self.takes_as(bytes, "application/json", &schema)
    }

    /// Takes a document in YAML or JSON, of at most so many bytes; few such requests run at a time.
    pub(super) fn takes_document(self, bytes: usize) -> Self {
        self.takes_as(bytes, "*/*", &schemars::json_schema!({"type": "string"}))
    }

    fn takes_as(mut self, bytes: usize, kind: &str, schema: &Schema) -> Self {
        self.admitted = Some(bytes);
        self.document["requestBody"] = json!({"required": true, "content": {kind: {"schema": schema}}});
        self.fails::<Details>(408, "The body comes too slowly.")
            .fails::<Details>(413, "The body is too large.")
            .fails::<Details>(503, "As many such requests as allowed are being worked on; see `Retry-After`.")
    }

    fn answers_as<T: JsonSchema>(mut self, status: u16, description: &str, kind: &str) -> Self {
        let schema = self.api.answers.subschema_for::<T>();
        let response = &mut self.document["responses"][status.to_string()];
        response["description"] = description.into();
        response["content"] = json!({kind: {"schema": schema}});
        self
    }

    /// Routes it to this handler, and adds it to the document.
    pub(super) fn to<T: 'static>(mut self, handler: impl Handler<T, AdminState>) {
        let filter = MethodFilter::try_from(self.method.clone()).expect("GET, POST and DELETE have filters");
        let mut route: MethodRouter<AdminState> = on(filter, handler);
        if self.conditional {
            route = route.route_layer(from_fn(conditional::answer));
        }
        if let Some(bytes) = self.admitted {
            let admission = self.api.admission.clone().at_most(bytes);
            route = route.route_layer(from_fn_with_state(admission, admission::admit));
        }
        if let Some(bytes) = self.longest {
            route = route.route_layer(DefaultBodyLimit::max(bytes));
        }
        if self.access != Access::Open {
            let guard = Guard { write: self.access == Access::Write, ..self.api.guard.clone() };
            route = route.route_layer(from_fn_with_state(guard, auth::check));
            self.document["security"] = match self.access {
                Access::Write => json!([{"token": []}]),
                _ => json!([{}, {"token": []}]),
            };
            self = self
                .fails::<Details>(401, "The token is missing or wrong.")
                .fails::<Details>(403, "No token is configured, or `Host` is foreign.");
        }
        let Self { api, method, path, document, .. } = self;
        let item = api.paths.entry(path).or_insert_with(|| json!({}));
        item[method.as_str().to_ascii_lowercase()] = document;
        api.router = std::mem::take(&mut api.router).route(path, route);
    }
}

/// The parameter that a segment of a path stands for.
fn parameter(segment: &str) -> Option<Value> {
    let name = segment.strip_prefix('{')?.strip_suffix('}')?;
    Some(json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}))
}
