//! Compiles `proto/` without an installed `protoc`, and reads from the descriptors what must not be
//! written twice: the policy of every RPC, which field names the account a request is about, and
//! which fields hold secrets. An RPC without a policy or without an HTTP binding does not build.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    env,
    error::Error,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use prost_reflect::{
    DescriptorPool, DynamicMessage, Kind, MessageDescriptor, MethodDescriptor, ReflectMessage as _,
    Value,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PACKAGE: &str = "accountd.v1";

#[expect(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    reason = "how a build script talks with cargo"
)]
fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=proto");
    // sqlx reads the migrations at compile time; cargo has to know.
    println!("cargo:rerun-if-changed=migrations");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(proto_files()?)?;
    // The encoded set keeps the extensions (bindings, policies), which prost's own type drops.
    let encoded = compiler.encode_file_descriptor_set();
    let pool = DescriptorPool::decode(encoded.as_slice())?;
    fs::write(out.join("descriptors.bin"), &encoded)?;
    fs::write(out.join("policies.rs"), policies(&pool)?)?;
    fs::write(out.join("messages.rs"), messages(&pool)?)?;

    let secret: Vec<String> = ours(&pool)
        .filter(|message| !secret_fields(message).is_empty())
        .map(|message| format!(".{}", message.full_name()))
        .collect();
    tonic_prost_build::configure()
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .skip_debug(secret)
        // In one order, so that a request always has the same fingerprint.
        .btree_map(".")
        .compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}

fn proto_files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir("proto/accountd/v1")? {
        files.push(Path::new("accountd/v1").join(entry?.file_name()));
    }
    files.sort();
    Ok(files)
}

/// The table that the door consults, as a Rust array of `Policy`.
fn policies(pool: &DescriptorPool) -> Result<String> {
    let mut code = String::from("[\n");
    let mut names = BTreeSet::new();
    for rpc in rpcs(pool) {
        let path = rpc_path(&rpc);
        if !names.insert(rpc.name().to_owned()) {
            return Err(
                format!("another RPC has the name of {path}, by which operators mark it").into(),
            );
        }
        let policy = option(pool, &rpc, "accountd.v1.policy")
            .ok_or_else(|| format!("{path} has no policy"))?;
        if bindings(pool, &rpc)?.is_empty() {
            return Err(format!("{path} has no google.api.http binding").into());
        }
        let number = |field: &str| {
            let value = policy.get_field_by_name(field);
            value.and_then(|v| v.as_enum_number()).unwrap_or_default()
        };
        let allow_self = flag(&policy, "allow_self");
        let scopes = strings(&policy, "scope");
        let access = match number("access") {
            1 => "Public",
            2 => "Authenticated",
            _ if scopes.is_empty() && !allow_self => {
                return Err(format!("the policy of {path} admits nobody").into());
            }
            _ => "Restricted",
        };
        let reach = match number("reach") {
            1 => "Target",
            2 => "Found",
            _ => "All",
        };
        writeln!(
            code,
            "    Policy {{ rpc: {path:?}, access: Access::{access}, scopes: &{scopes:?}, \
             allow_self: {allow_self}, field_scopes: &{:?}, demand: {}, private: {}, \
             reach: Reach::{}, event: {:?}, may_wait: {} }},",
            strings(&policy, "field_scope"),
            demand(&policy),
            number("plane") == 1,
            reach,
            text(&policy, "event"),
            may_wait(&rpc, &policy),
        )?;
    }
    code.push(']');
    Ok(code)
}

/// Whether a call may wait for a second person: one that needs a scope, changes something and answers no secret. What
/// approves and denies is not held up itself.
fn may_wait(rpc: &MethodDescriptor, policy: &DynamicMessage) -> bool {
    !strings(policy, "scope").is_empty()
        && !text(policy, "event").is_empty()
        && secret_fields(&rpc.output()).is_empty()
        && rpc.parent_service().name() != "ChangeService"
}

/// What a person has to have shown, as a Rust expression.
fn demand(policy: &DynamicMessage) -> String {
    let number = |field: &str| policy.get_field_by_name(field).map(Cow::into_owned);
    let is_aal2 = matches!(number("assurance"), Some(Value::EnumNumber(1)));
    let max_age_s = match number("max_age_s") {
        Some(Value::I64(seconds)) if seconds > 0 => Some(seconds),
        _ => None,
    };
    if !is_aal2 && max_age_s.is_none() {
        return "None".to_owned();
    }
    let assurance = if is_aal2 { "Aal2" } else { "Aal1" };
    format!("Some(Demand {{ assurance: Assurance::{assurance}, max_age_s: {max_age_s:?} }})")
}

/// What the door and the idempotency record need to know of each message.
fn messages(pool: &DescriptorPool) -> Result<String> {
    let mut code = String::new();
    for rpc in rpcs(pool) {
        let input = rpc.input();
        let target = match target_field(pool, &rpc)? {
            None => r#""""#.to_owned(),
            Some(path) => match path.split_once('.') {
                None => format!("&self.{path}"),
                Some((outer, inner)) => {
                    format!(r#"self.{outer}.as_ref().map_or("", |message| &message.{inner})"#)
                }
            },
        };
        let has = |name: &str| input.get_field_by_name(name).is_some();
        let request_id = if has("request_id") {
            "&self.request_id"
        } else {
            r#""""#
        };
        let validate_only = if has("validate_only") {
            "self.validate_only"
        } else {
            "false"
        };
        writeln!(
            code,
            "impl Inbound for {} {{\n    \
                 fn target(&self) -> &str {{ {target} }}\n    \
                 fn request_id(&self) -> &str {{ {request_id} }}\n    \
                 fn validate_only(&self) -> bool {{ {validate_only} }}\n}}",
            input.name(),
        )?;
    }
    let mut answers: Vec<MessageDescriptor> = rpcs(pool).map(|rpc| rpc.output()).collect();
    answers.sort_by(|a, b| a.full_name().cmp(b.full_name()));
    answers.dedup();
    for answer in answers
        .iter()
        .filter(|message| message.package_name() == PACKAGE)
    {
        let mut clear = String::new();
        for field in secret_fields(answer) {
            let is_message = answer
                .get_field_by_name(&field)
                .is_some_and(|field| matches!(field.kind(), Kind::Message(_)));
            if is_message {
                write!(clear, " self.{field} = None;")?;
            } else {
                write!(clear, " self.{field}.clear();")?;
            }
        }
        writeln!(
            code,
            "impl Answer for {} {{ fn withhold_secrets(&mut self) {{{clear} }} }}",
            answer.name()
        )?;
    }
    for message in ours(pool).filter(|message| !secret_fields(message).is_empty()) {
        writeln!(
            code,
            "impl std::fmt::Debug for {} {{\n    \
                 fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {{\n        \
                     f.write_str({:?})\n    }}\n}}",
            rust_path(&message),
            format!("{}(withheld)", message.name()),
        )?;
    }
    Ok(code)
}

fn rpcs(pool: &DescriptorPool) -> impl Iterator<Item = MethodDescriptor> {
    let services: Vec<_> = pool.services().collect();
    services
        .into_iter()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
}

fn ours(pool: &DescriptorPool) -> impl Iterator<Item = MessageDescriptor> {
    pool.all_messages()
        .filter(|message| message.package_name() == PACKAGE)
}

fn rpc_path(rpc: &MethodDescriptor) -> String {
    format!("/{}/{}", rpc.parent_service().full_name(), rpc.name())
}

fn option(pool: &DescriptorPool, rpc: &MethodDescriptor, name: &str) -> Option<DynamicMessage> {
    let extension = pool.get_extension_by_name(name)?;
    let options = rpc.options();
    if !options.has_extension(&extension) {
        return None;
    }
    options.get_extension(&extension).as_message().cloned()
}

/// The path templates of an RPC, the additional ones included.
fn bindings(pool: &DescriptorPool, rpc: &MethodDescriptor) -> Result<Vec<String>> {
    let Some(rule) = option(pool, rpc, "google.api.http") else {
        return Ok(Vec::new());
    };
    let mut rules = vec![rule.clone()];
    if let Some(more) = rule.get_field_by_name("additional_bindings") {
        for rule in more.as_list().unwrap_or_default() {
            rules.push(
                rule.as_message()
                    .ok_or("additional_bindings holds messages")?
                    .clone(),
            );
        }
    }
    let template = |rule: &DynamicMessage| {
        ["get", "put", "post", "delete", "patch"]
            .iter()
            .map(|verb| text(rule, verb))
            .find(|path| !path.is_empty())
    };
    Ok(rules.iter().filter_map(template).collect())
}

/// The request field that the HTTP path binds: it names the resource the call is about.
fn target_field(pool: &DescriptorPool, rpc: &MethodDescriptor) -> Result<Option<String>> {
    let mut fields: Vec<String> = bindings(pool, rpc)?
        .iter()
        .filter_map(|path| path.split_once('{')?.1.split_once('='))
        .map(|(field, _)| field.to_owned())
        .collect();
    fields.dedup();
    if fields.len() > 1 {
        return Err(format!("the bindings of {} name different fields", rpc_path(rpc)).into());
    }
    Ok(fields.pop())
}

/// Top-level fields marked `debug_redact`.
fn secret_fields(message: &MessageDescriptor) -> Vec<String> {
    let marked = |field: &prost_reflect::FieldDescriptor| flag(&field.options(), "debug_redact");
    message
        .fields()
        .filter(marked)
        .map(|field| field.name().to_owned())
        .collect()
}

/// `Credential.Password` is `credential::Password` in Rust.
fn rust_path(message: &MessageDescriptor) -> String {
    match message.parent_message() {
        None => message.name().to_owned(),
        Some(outer) => format!("{}::{}", outer.name().to_lowercase(), message.name()),
    }
}

fn flag(message: &DynamicMessage, field: &str) -> bool {
    debug_assert!(message.descriptor().get_field_by_name(field).is_some());
    message
        .get_field_by_name(field)
        .and_then(|value| value.as_bool())
        .unwrap_or_default()
}

fn text(message: &DynamicMessage, field: &str) -> String {
    let value = message.get_field_by_name(field);
    value
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn strings(message: &DynamicMessage, field: &str) -> Vec<String> {
    let value = message.get_field_by_name(field);
    let list: Vec<Value> = value
        .and_then(|v| v.as_list().map(<[Value]>::to_vec))
        .unwrap_or_default();
    list.iter()
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}
