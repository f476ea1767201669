//! HTTP/JSON: every unary RPC under its `google.api.http` paths, and as JSON posted to its gRPC path.
//!
//! Works from the descriptors, so a new RPC is here as soon as it is in the protos. Each call becomes
//! a gRPC call to our own router in this process: callers, limits, deadlines and errors exist once.

use std::{collections::HashMap, sync::Arc};

use axum::{Router, body::Body, extract::Request, response::IntoResponse, response::Response};
use http::{
    Extensions, HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header, request::Parts,
};
use prost::Message as _;
use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, ExtensionDescriptor, Kind,
    MessageDescriptor, MethodDescriptor,
};
use serde_json::{Map, Value};

use super::template::{Bindings, Template};
use crate::{
    app::App,
    grpc::{
        body::{Intake, Limit, Received},
        inward::Inward,
        status::{self, JsonError},
    },
};

pub(super) struct Gateway {
    /// By HTTP method and number of path segments.
    rules: HashMap<(Method, usize), Vec<Rule>>,
    /// By gRPC path.
    methods: HashMap<String, MethodDescriptor>,
    grpc: Router,
    intake: Arc<Intake>,
    limit: Limit,
}

/// One way to reach an RPC.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) verb: Method,
    pub(super) template: Template,
    pub(super) method: MethodDescriptor,
    /// Empty, `*`, or the field that the body is.
    pub(super) body: String,
}

/// The outcome of a call: a message, or an error ready to be shown.
type Outcome = Result<DynamicMessage, JsonError>;

/// Headers that mean the same to gRPC.
const PASSED_ON: [&str; 5] = [
    "authorization",
    "user-agent",
    "grpc-timeout",
    "traceparent",
    "x-forwarded-for",
];

impl Gateway {
    pub(super) fn new(app: &App, pool: &DescriptorPool, grpc: Router, limit: Limit) -> Self {
        let mut by_shape: HashMap<_, Vec<Rule>> = HashMap::new();
        for rule in rules(pool) {
            by_shape
                .entry((rule.verb.clone(), rule.template.length()))
                .or_default()
                .push(rule);
        }
        let methods = pool
            .services()
            .flat_map(|service| service.methods().collect::<Vec<_>>());
        let methods = methods.filter(|method| !method.is_server_streaming());
        let methods = methods.map(|method| (grpc_path(&method), method)).collect();
        Self {
            rules: by_shape,
            methods,
            grpc,
            intake: Arc::clone(&app.intake),
            limit,
        }
    }

    /// Serves a request that is not gRPC.
    pub(super) async fn serve(&self, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        if let Some(method) = self.methods.get(&path) {
            return match parts.method {
                Method::POST => respond(self.run(method, "*", Bindings::new(), &parts, body).await),
                _ => not_allowed(&[Method::POST]),
            };
        }
        let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(&path).split('/').collect();
        match self.find(&parts.method, &segments) {
            Some((rule, bound)) => respond(
                self.run(&rule.method, &rule.body, bound, &parts, body)
                    .await,
            ),
            None => {
                let offered: Vec<Method> = self
                    .rules
                    .keys()
                    .map(|(verb, _)| verb)
                    .filter(|verb| self.find(verb, &segments).is_some())
                    .cloned()
                    .collect();
                if offered.is_empty() {
                    show(status::to_json(&status::unknown(&path)))
                } else {
                    not_allowed(&offered)
                }
            }
        }
    }

    fn find(&self, verb: &Method, path: &[&str]) -> Option<(&Rule, Bindings)> {
        let rules = self.rules.get(&(verb.clone(), path.len()))?;
        rules
            .iter()
            .find_map(|rule| Some((rule, rule.template.matches(path)?)))
    }

    async fn run(
        &self,
        method: &MethodDescriptor,
        body_field: &str,
        bound: Bindings,
        parts: &Parts,
        body: Body,
    ) -> Outcome {
        let received = self.receive(body, self.limit).await?;
        let body = &received.bytes;
        // Other types can be sent by any web page without asking first, so they are not taken for JSON.
        if !body.is_empty() && !super::is_of_type(&parts.headers, "application/json") {
            return Err(malformed("the content-type of a body is application/json"));
        }
        let query = if body_field == "*" {
            None
        } else {
            parts.uri.query()
        };
        let message = message(&method.input(), body_field, body, query, bound)
            .map_err(|text| malformed(&text))?;
        drop(received);
        self.call(method, &message, &parts.headers, parts.extensions.clone())
            .await
    }

    /// The body of a request, for endpoints that are not RPCs too.
    pub(super) async fn receive(&self, body: Body, limit: Limit) -> Result<Received, JsonError> {
        let received = self.intake.receive(body, limit);
        received.await.map_err(|status| status::to_json(&status))
    }

    /// Calls an RPC by its name, for endpoints that are not RPCs themselves.
    pub(super) async fn call_named(
        &self,
        path: &str,
        request: Value,
        parts: &Parts,
    ) -> Result<Value, JsonError> {
        let method = self
            .methods
            .get(path)
            .ok_or_else(|| malformed("no such RPC"))?;
        let message = DynamicMessage::deserialize(method.input(), request)
            .map_err(|error| malformed(&error.to_string()))?;
        let answer = self
            .call(method, &message, &parts.headers, parts.extensions.clone())
            .await?;
        serde_json::to_value(&answer).map_err(|error| malformed(&error.to_string()))
    }

    async fn call(
        &self,
        method: &MethodDescriptor,
        message: &DynamicMessage,
        headers: &HeaderMap,
        extensions: Extensions,
    ) -> Outcome {
        let passed_on = PASSED_ON.iter().flat_map(|name| {
            let values = headers.get_all(*name).iter();
            values.map(|value| (HeaderName::from_static(name), value.clone()))
        });
        let call = Inward {
            rpc: &grpc_path(method),
            message: &message.encode_to_vec(),
            headers: passed_on.collect(),
            // The peer's address and plane.
            extensions,
        };
        let answer = call.send(self.grpc.clone()).await;
        let answer = answer.map_err(|status| status::to_json(&status))?;
        DynamicMessage::decode(method.output(), answer)
            .map_err(|error| malformed(&error.to_string()))
    }
}

/// Every path of every unary RPC.
pub(super) fn rules(pool: &DescriptorPool) -> Vec<Rule> {
    let http = pool
        .get_extension_by_name("google.api.http")
        .expect("the protos import it");
    let services = pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    services
        .filter(|method| !method.is_server_streaming())
        .flat_map(|m| rules_of(&m, &http))
        .collect()
}

fn rules_of(method: &MethodDescriptor, http: &ExtensionDescriptor) -> Vec<Rule> {
    let options = method.options();
    if !options.has_extension(http) {
        return Vec::new();
    }
    let binding = options.get_extension(http);
    let Some(first) = binding.as_message() else {
        return Vec::new();
    };
    let more = first.get_field_by_name("additional_bindings");
    let more = more
        .as_ref()
        .and_then(|list| list.as_list())
        .unwrap_or_default();
    let text = |binding: &DynamicMessage, field: &str| {
        let value = binding.get_field_by_name(field);
        value
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    let rule = |binding: &DynamicMessage| {
        [
            Method::GET,
            Method::PUT,
            Method::POST,
            Method::DELETE,
            Method::PATCH,
        ]
        .into_iter()
        .map(|verb| (text(binding, &verb.as_str().to_lowercase()), verb))
        .find(|(path, _)| !path.is_empty())
        .map(|(path, verb)| Rule {
            verb,
            template: Template::parse(&path),
            method: method.clone(),
            body: text(binding, "body"),
        })
    };
    let more = more.iter().filter_map(|value| value.as_message());
    std::iter::once(first)
        .chain(more)
        .filter_map(rule)
        .collect()
}

fn grpc_path(method: &MethodDescriptor) -> String {
    format!("/{}/{}", method.parent_service().full_name(), method.name())
}

/// The request message of body, query and path, which win in this order from last to first: proto3
/// JSON all of it, so there is one set of rules.
fn message(
    input: &MessageDescriptor,
    body_field: &str,
    body: &[u8],
    query: Option<&str>,
    bound: Bindings,
) -> Result<DynamicMessage, String> {
    let mut object = Map::new();
    if !body_field.is_empty() && !body.is_empty() {
        let value: Value = serde_json::from_slice(body)
            .map_err(|error| format!("the body is not JSON: {error}"))?;
        match (body_field, value) {
            ("*", Value::Object(fields)) => object = fields,
            ("*", _) => return Err("the body must be a JSON object".to_owned()),
            (field, value) => drop(object.insert(field.to_owned(), value)),
        }
    } else if !body.is_empty() {
        return Err("this call has no body".to_owned());
    }
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        set(&mut object, input, &name, value.into_owned(), false)?;
    }
    for (field, value) in bound {
        set(&mut object, input, &field, value, true)?;
    }
    let options = DeserializeOptions::new().deny_unknown_fields(true);
    DynamicMessage::deserialize_with_options(input.clone(), Value::Object(object), &options)
        .map_err(|error| error.to_string())
}

/// Sets the field `a.b` of a JSON object to what a URL says.
fn set(
    object: &mut Map<String, Value>,
    message: &MessageDescriptor,
    path: &str,
    text: String,
    wins: bool,
) -> Result<(), String> {
    let (head, rest) = path
        .split_once('.')
        .map_or((path, None), |(head, rest)| (head, Some(rest)));
    let field = message
        .get_field_by_name(head)
        .or_else(|| message.get_field_by_json_name(head));
    let field = field.ok_or_else(|| format!("there is no field `{path}`"))?;
    // Both spellings are allowed in bodies: one of them must not survive beside the other.
    let key = if object.contains_key(field.json_name()) {
        field.json_name()
    } else {
        field.name()
    };
    if let (Some(rest), Kind::Message(inner)) = (rest, field.kind()) {
        let entry = object
            .entry(key.to_owned())
            .or_insert_with(|| Map::new().into());
        let inner_object = entry
            .as_object_mut()
            .ok_or_else(|| format!("`{head}` must be an object"))?;
        return set(inner_object, &inner, rest, text, wins);
    }
    let value = match field.kind() {
        Kind::Bool => Value::Bool(
            text.parse()
                .map_err(|_| format!("`{path}` must be true or false"))?,
        ),
        _ => Value::String(text),
    };
    if field.is_list() {
        let list = object
            .entry(key.to_owned())
            .or_insert_with(|| Value::Array(Vec::new()));
        list.as_array_mut()
            .ok_or_else(|| format!("`{path}` must be a list"))?
            .push(value);
    } else if object.insert(key.to_owned(), value).is_some() && !wins {
        return Err(format!("`{path}` is there twice"));
    }
    Ok(())
}

fn malformed(text: &str) -> JsonError {
    status::to_json(&status::malformed(text))
}

fn respond(outcome: Outcome) -> Response {
    match outcome {
        Ok(message) => match serde_json::to_vec(&message) {
            Ok(json) => {
                let headers = [
                    (
                        header::CONTENT_TYPE,
                        HeaderValue::from_static("application/json"),
                    ),
                    // Answers are about accounts; some hold secrets.
                    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
                ];
                (headers, json).into_response()
            }
            Err(error) => show(malformed(&error.to_string())),
        },
        Err(error) => show(error),
    }
}

fn show(error: JsonError) -> Response {
    let mut response = (error.code, error.body.to_string()).into_response();
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.extend(error.headers);
    response
}

fn not_allowed(offered: &[Method]) -> Response {
    let mut error = status::to_json(&status::unknown("with this method"));
    error.code = StatusCode::METHOD_NOT_ALLOWED;
    error.body["error"]["code"] = 405.into();
    let mut names: Vec<&str> = offered.iter().map(Method::as_str).collect();
    names.sort_unstable();
    names.dedup();
    if let Ok(names) = HeaderValue::from_str(&names.join(", ")) {
        error.headers.push((header::ALLOW, names));
    }
    show(error)
}
