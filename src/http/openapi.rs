//! The HTTP/JSON interface as an OpenAPI 3.1 document, made from the descriptors: what the protos say
//! is what it says.

use std::collections::BTreeMap;

use prost_reflect::{
    DescriptorPool, EnumDescriptor, FieldDescriptor, Kind, MessageDescriptor,
    prost_types::FileDescriptorProto,
};
use serde_json::{Map, Value, json};

use super::gateway::{Rule, rules};
use crate::domain::access::{self, Access};

/// The document as text.
pub(super) fn document(pool: &DescriptorPool, issuer: &str) -> String {
    let comments = Comments::read(pool);
    let mut schemas = Schemas {
        comments: &comments,
        done: BTreeMap::new(),
    };
    let mut paths: Map<String, Value> = Map::new();
    // An RPC with several paths has as many operations, and their ids have to differ.
    let mut ids: BTreeMap<String, usize> = BTreeMap::new();
    for rule in rules(pool) {
        let (path, names) = rule.template.openapi();
        let mut operation = operation(&rule, &names, &comments, &mut schemas);
        let id = operation["operationId"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let uses: &mut usize = ids.entry(id.clone()).or_default();
        *uses += 1;
        if *uses > 1 {
            operation["operationId"] = format!("{id}_{uses}").into();
        }
        let item = paths.entry(path).or_insert_with(|| json!({}));
        item[rule.verb.as_str().to_lowercase()] = operation;
    }
    let mut components: Map<String, Value> = schemas.done.into_iter().collect();
    components.insert("Error".to_owned(), error_schema());
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "accountd",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": env!("CARGO_PKG_DESCRIPTION"),
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": issuer }],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
            },
        },
    })
    .to_string()
}

fn operation(
    rule: &Rule,
    names: &[String],
    comments: &Comments,
    schemas: &mut Schemas<'_>,
) -> Value {
    let method = &rule.method;
    let service = method.parent_service();
    let id = format!("{}_{}", service.name(), method.name());
    let comment = comments.of(method.full_name());
    let summary = comment
        .split("\n\n")
        .next()
        .unwrap_or_default()
        .replace('\n', " ");
    let in_path = names.iter().map(|name| {
        json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } })
    });
    let mut parameters: Vec<Value> = in_path.collect();
    if rule.body != "*" {
        let bound = rule.template.field().unwrap_or_default();
        let bound = bound.split('.').next().unwrap_or_default();
        for field in method.input().fields() {
            if field.name() != bound && field.name() != rule.body {
                query_parameters(&field, "", comments, schemas, &mut parameters);
            }
        }
    }
    let path = format!("/{}/{}", service.full_name(), method.name());
    let needs_token = access::policy(&path).is_some_and(|policy| policy.access != Access::Public);
    let mut operation = json!({
        "operationId": id,
        "tags": [service.name()],
        "summary": summary,
        "description": comment,
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "OK",
                "content": { "application/json": { "schema": schemas.of_message(&method.output()) } },
            },
            "default": {
                "description": "A google.rpc.Status; match on the reason of its ErrorInfo.",
                "content": {
                    "application/json": { "schema": { "$ref": "#/components/schemas/Error" } },
                },
            },
        },
    });
    if needs_token {
        operation["security"] = json!([{ "token": [] }]);
    }
    let body = match rule.body.as_str() {
        "" => None,
        "*" => Some(schemas.of_message(&method.input())),
        field => method
            .input()
            .get_field_by_name(field)
            .map(|field| schemas.of_field(&field)),
    };
    if let Some(schema) = body {
        operation["requestBody"] =
            json!({ "content": { "application/json": { "schema": schema } } });
    }
    operation
}

/// A field as query parameters: `externalId.source` for a field of a message.
fn query_parameters(
    field: &FieldDescriptor,
    prefix: &str,
    comments: &Comments,
    schemas: &mut Schemas<'_>,
    parameters: &mut Vec<Value>,
) {
    let name = format!("{prefix}{}", field.json_name());
    match field.kind() {
        Kind::Message(message) if !field.is_map() && well_known(&message).is_none() => {
            for inner in message.fields() {
                query_parameters(&inner, &format!("{name}."), comments, schemas, parameters);
            }
        }
        _ => parameters.push(json!({
            "name": name,
            "in": "query",
            "description": comments.of(field.full_name()),
            "schema": schemas.of_field(field),
        })),
    }
}

struct Schemas<'a> {
    comments: &'a Comments,
    done: BTreeMap<String, Value>,
}

impl Schemas<'_> {
    fn of_message(&mut self, message: &MessageDescriptor) -> Value {
        if let Some(schema) = well_known(message) {
            return schema;
        }
        let name = short_name(message.full_name());
        if !self.done.contains_key(&name) {
            // Entered first, so that a message that holds itself ends.
            self.done.insert(name.clone(), Value::Null);
            let mut properties = Map::new();
            for field in message.fields() {
                let mut schema = self.of_field(&field);
                let comment = self.comments.of(field.full_name());
                if !comment.is_empty() {
                    schema["description"] = comment.into();
                }
                properties.insert(field.json_name().to_owned(), schema);
            }
            let schema = json!({
                "type": "object",
                "description": self.comments.of(message.full_name()),
                "properties": properties,
            });
            self.done.insert(name.clone(), schema);
        }
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    fn of_field(&mut self, field: &FieldDescriptor) -> Value {
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else {
                return json!({});
            };
            let value = self.of_kind(&entry.map_entry_value_field().kind());
            return json!({ "type": "object", "additionalProperties": value });
        }
        let schema = self.of_kind(&field.kind());
        if field.is_list() {
            json!({ "type": "array", "items": schema })
        } else {
            schema
        }
    }

    fn of_kind(&mut self, kind: &Kind) -> Value {
        match kind {
            Kind::Bool => json!({ "type": "boolean" }),
            Kind::Int32 | Kind::Uint32 | Kind::Sint32 | Kind::Fixed32 | Kind::Sfixed32 => {
                json!({ "type": "integer", "format": "int32" })
            }
            // proto3 JSON writes 64-bit numbers as text.
            Kind::Int64 | Kind::Uint64 | Kind::Sint64 | Kind::Fixed64 | Kind::Sfixed64 => {
                json!({ "type": "string", "format": "int64" })
            }
            Kind::Float | Kind::Double => json!({ "type": "number" }),
            Kind::String => json!({ "type": "string" }),
            Kind::Bytes => json!({ "type": "string", "contentEncoding": "base64" }),
            Kind::Enum(values) => enumeration(values),
            Kind::Message(message) => self.of_message(message),
        }
    }
}

fn enumeration(values: &EnumDescriptor) -> Value {
    let names: Vec<String> = values
        .values()
        .filter(|value| value.number() != 0)
        .map(|v| v.name().to_owned())
        .collect();
    json!({ "type": "string", "enum": names })
}

/// Messages that proto3 JSON writes in a way of their own.
fn well_known(message: &MessageDescriptor) -> Option<Value> {
    Some(match message.full_name() {
        "google.protobuf.Timestamp" => json!({ "type": "string", "format": "date-time" }),
        "google.protobuf.FieldMask" => json!({ "type": "string" }),
        "google.protobuf.Struct" | "google.protobuf.Empty" => json!({ "type": "object" }),
        _ => return None,
    })
}

/// `accountd.v1.Credential.Password` is `Credential.Password`.
fn short_name(full_name: &str) -> String {
    full_name.trim_start_matches("accountd.v1.").to_owned()
}

fn error_schema() -> Value {
    json!({
        "type": "object",
        "properties": { "error": {
            "type": "object",
            "properties": {
                "code": { "type": "integer", "description": "The HTTP code." },
                "status": { "type": "string", "description": "The gRPC code, NOT_FOUND." },
                "message": { "type": "string", "description": "For people; it may change." },
                "details": { "type": "array", "items": { "type": "object" } },
            },
        } },
    })
}

/// The comments of the protos, by full name of what they stand before.
struct Comments(BTreeMap<String, String>);

impl Comments {
    fn read(pool: &DescriptorPool) -> Self {
        let mut comments = BTreeMap::new();
        for file in pool
            .files()
            .filter(|file| file.package_name() == "accountd.v1")
        {
            let proto = file.file_descriptor_proto();
            let locations = proto
                .source_code_info
                .iter()
                .flat_map(|info| &info.location);
            for location in locations {
                let text = location.leading_comments();
                if let (false, Some(name)) = (text.is_empty(), name_at(proto, &location.path)) {
                    let lines: Vec<&str> = text.lines().map(str::trim).collect();
                    comments.insert(name, lines.join("\n").trim().to_owned());
                }
            }
        }
        Self(comments)
    }

    fn of(&self, full_name: &str) -> String {
        self.0.get(full_name).cloned().unwrap_or_default()
    }
}

/// What stands at a path of field numbers and places within a file (descriptor.proto): messages,
/// their fields and nested messages, and methods.
fn name_at(file: &FileDescriptorProto, path: &[i32]) -> Option<String> {
    let place = |place: &i32| usize::try_from(*place).ok();
    match path {
        [6, service, 2, method] => {
            let service = file.service.get(place(service)?)?;
            let method = service.method.get(place(method)?)?;
            Some(format!(
                "{}.{}.{}",
                file.package(),
                service.name(),
                method.name()
            ))
        }
        [4, message, rest @ ..] => {
            let mut message = file.message_type.get(place(message)?)?;
            let mut name = format!("{}.{}", file.package(), message.name());
            let mut rest = rest;
            while let [3, nested, further @ ..] = rest {
                message = message.nested_type.get(place(nested)?)?;
                name = format!("{name}.{}", message.name());
                rest = further;
            }
            match rest {
                [] => Some(name),
                [2, field] => Some(format!(
                    "{name}.{}",
                    message.field.get(place(field)?)?.name()
                )),
                _ => None,
            }
        }
        _ => None,
    }
}
