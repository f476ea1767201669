//! Every RPC × every kind of caller → its outcome, in one golden file.
//!
//! The RPCs are found through the descriptors, one row for each of their paths, so a new one appears
//! by itself. Requests hold nothing but the name of their target and `validate_only`.

use std::{collections::BTreeMap, fmt::Write as _};

use accountd::{
    config::Config,
    grpc::{DESCRIPTORS, pb},
};
use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, ReflectMessage as _, Value};
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::http::uri::PathAndQuery,
    service::interceptor::InterceptedService,
};

use crate::{
    changes, contacts, delegation, elevations,
    golden::assert_golden,
    groups,
    harness::{Actor, Engine, Refusal as _, Server, on_both_engines},
    roles, scopes,
};

on_both_engines! {
    async fn every_rpc_admits_whom_its_policy_says(engine: Engine) {
        let (server, stage) = Box::pin(Stage::set(engine)).await;
        let mut table = String::new();
        for rpc in rpcs() {
            for path in paths(&rpc) {
                let message = stage.request(&rpc, &path);
                let mut outcomes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
                for (kind, actor) in stage.callers(&path) {
                    let outcome = call(&actor, &rpc, &message).await.outcome();
                    outcomes.entry(outcome).or_default().push(kind);
                }
                let name = format!("{}/{} {path}", rpc.parent_service().name(), rpc.name());
                let _ = writeln!(table, "{}", name.trim_end());
                for (outcome, kinds) in outcomes {
                    let _ = writeln!(table, "    {outcome}: {}", kinds.join(", "));
                }
            }
        }
        assert_golden("api/golden/access.txt", &table);
        drop(server);
    }
}

/// A program that may do everything with those in a group.
async fn operator_of(server: &Server, group: &str) -> Actor {
    let (account, secret) = server.create_system_account(&[]).await;
    let operator = server.operator().await;
    let granted = delegation::grant_for(&operator, &account.name, "roles/operator", group).await;
    granted.expect("granted");
    server.client(&account.uid, &secret).await
}

/// Everything that the requests name, and everybody who sends them.
struct Stage {
    alice: String,
    robot: String,
    credential: String,
    robot_credential: String,
    contact: String,
    robot_contact: String,
    session: String,
    grant: String,
    group: String,
    entitlement: String,
    elevation: String,
    key: String,
    change: String,
    anonymous: Actor,
    user: Actor,
    system_account: Actor,
    other_user: Actor,
    frontend: Actor,
    resource_server: Actor,
    auditor: Actor,
    manager: Actor,
    operator: Actor,
    operator_of_group: Actor,
    operator_of_other: Actor,
    suspended: Actor,
    expired: Actor,
}

impl Stage {
    async fn set(engine: Engine) -> (Server, Self) {
        let mark =
            |config: &mut Config| config.four_eyes.rpcs = vec!["RevokeSigningKey".to_owned()];
        let server = engine.server_with(mark).await;
        let expired = server.signed_in("carol").await;
        server.advance_s(301);
        let suspended = server.signed_in("dave").await;
        let operator = server.operator().await;
        operator
            .suspend_user(suspended.name())
            .await
            .expect("suspended");
        let alice = server.signed_in("alice").await;
        let (robot, secret) = server
            .create_system_account(&["roles/resource-server"])
            .await;
        let system_account = server.client(&robot.uid, &secret).await;
        let key = operator
            .keys()
            .prepare_signing_key(pb::PrepareSigningKeyRequest::default())
            .await;
        let key = key.expect("a key").into_inner();
        let change = changes::pending(changes::revoke(&operator, &key).await);
        let made = scopes::create(&operator, scopes::scope("scopes/shop:pack")).await;
        made.expect("a scope");
        let made = roles::create(&operator, roles::role("roles/packer", &[])).await;
        made.expect("a role");
        // The one comes with a secret, which is not enough to agree.
        let (operator_name, bob) = (server.operator_name(), server.signed_in("bob").await);
        let entitlement = pb::Entitlement {
            role: "roles/packer".to_owned(),
            ..elevations::entitlement(alice.name(), &[&operator_name, bob.name()])
        };
        let entitlement = elevations::entitle(&operator, entitlement).await;
        let entitlement = entitlement.expect("an entitlement");
        let elevation = elevations::ask(&alice.actor, elevations::wish(&entitlement)).await;
        let group = groups::create(&operator, "Crew").await;
        let outer = groups::create(&operator, "Crews").await;
        let other = groups::create(&operator, "Others").await;
        for (within, member) in [
            (&group, alice.name()),
            (&group, &robot.name),
            (&outer, &group),
        ] {
            groups::add(&operator, within, member).await.expect("added");
        }
        let stage = Self {
            credential: first_credential(&operator, alice.name()).await,
            robot_credential: first_credential(&operator, &robot.name).await,
            contact: create_contact(&operator, alice.name()).await,
            robot_contact: create_contact(&operator, &robot.name).await,
            session: alice.tokens.session.clone(),
            grant: server
                .grant(alice.name(), "scopes/accountd:users.read")
                .await
                .name,
            entitlement: entitlement.name,
            elevation: elevation.expect("asked").name,
            operator_of_group: operator_of(&server, &outer).await,
            operator_of_other: operator_of(&server, &other).await,
            group,
            key: key.name,
            change,
            alice: alice.name().to_owned(),
            robot: robot.name,
            anonymous: server.anonymous().await,
            user: alice.actor,
            system_account,
            other_user: bob.actor,
            frontend: server.frontend().await,
            resource_server: server.system_account(&["roles/resource-server"]).await,
            auditor: server.system_account(&["roles/auditor"]).await,
            manager: server.system_account(&["roles/user-manager"]).await,
            operator,
            suspended: suspended.actor,
            expired: expired.actor,
        };
        (server, stage)
    }

    fn callers(&self, path: &str) -> Vec<(&'static str, Actor)> {
        let itself = if path.starts_with("systemAccounts") {
            &self.system_account
        } else {
            &self.user
        };
        let callers = [
            ("anonymous", &self.anonymous),
            ("itself", itself),
            ("other user", &self.other_user),
            ("login frontend", &self.frontend),
            ("resource server", &self.resource_server),
            ("auditor", &self.auditor),
            ("user manager", &self.manager),
            ("operator", &self.operator),
            ("operator of their group", &self.operator_of_group),
            ("operator of another group", &self.operator_of_other),
            ("suspended", &self.suspended),
            ("expired token", &self.expired),
        ];
        callers
            .into_iter()
            .map(|(kind, actor)| (kind, actor.clone()))
            .collect()
    }

    /// The name that stands for a path such as `users/*/sessions/*`.
    fn name(&self, path: &str) -> &str {
        match path {
            "users/*" => &self.alice,
            "systemAccounts/*" => &self.robot,
            "users/*/credentials/*" => &self.credential,
            "systemAccounts/*/credentials/*" => &self.robot_credential,
            "users/*/contacts/*" => &self.contact,
            "systemAccounts/*/contacts/*" => &self.robot_contact,
            "users/*/sessions/*" => &self.session,
            "grants/*" => &self.grant,
            "groups/*" => &self.group,
            "entitlements/*" => &self.entitlement,
            "elevations/*" => &self.elevation,
            "changes/*" => &self.change,
            "scopes/*" => "scopes/shop:pack",
            "roles/*" => "roles/packer",
            "signingKeys/*" => &self.key,
            "challenges/*" => "challenges/adch_x_y",
            other => panic!("nothing on the stage is a {other}"),
        }
    }

    fn request(&self, rpc: &MethodDescriptor, path: &str) -> DynamicMessage {
        let mut message = DynamicMessage::new(rpc.input());
        if rpc.input().get_field_by_name("validate_only").is_some() {
            message.set_field_by_name("validate_only", Value::Bool(true));
        }
        if !path.is_empty() {
            let field = bound_field(rpc);
            set(&mut message, &field, self.name(path));
        }
        message
    }
}

async fn first_credential(operator: &Actor, account: &str) -> String {
    let request = pb::ListCredentialsRequest {
        parent: account.to_owned(),
        ..Default::default()
    };
    let response = operator
        .credentials()
        .list_credentials(request)
        .await
        .expect("a list");
    response.into_inner().credentials[0].name.clone()
}

async fn create_contact(operator: &Actor, account: &str) -> String {
    let contact = contacts::email("alice@example.org", &[]);
    let created = operator.create_contact(account, contact).await;
    created.expect("a contact").name
}

pub fn set(message: &mut DynamicMessage, path: &str, name: &str) {
    match path.split_once('.') {
        None => message.set_field_by_name(path, Value::String(name.to_owned())),
        Some((outer, inner)) => {
            let field = message
                .descriptor()
                .get_field_by_name(outer)
                .expect("a field");
            let kind = field.kind();
            let mut value = DynamicMessage::new(kind.as_message().expect("a message").clone());
            set(&mut value, inner, name);
            message.set_field_by_name(outer, Value::Message(value));
        }
    }
}

pub fn rpcs() -> Vec<MethodDescriptor> {
    let pool = DescriptorPool::decode(DESCRIPTORS).expect("built in");
    let services = pool
        .services()
        .filter(|service| service.package_name() == "accountd.v1");
    services
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect()
}

/// The HTTP path templates of an RPC.
fn templates(rpc: &MethodDescriptor) -> Vec<String> {
    let pool = rpc.parent_pool();
    let http = pool
        .get_extension_by_name("google.api.http")
        .expect("imported");
    let options = rpc.options();
    let rule = options.get_extension(&http);
    let rule = rule.as_message().expect("every RPC has one");
    let more = rule.get_field_by_name("additional_bindings");
    let more = more
        .as_ref()
        .and_then(|list| list.as_list())
        .unwrap_or_default();
    let rules = std::iter::once(rule).chain(more.iter().filter_map(|value| value.as_message()));
    let verbs = ["get", "post", "patch", "delete"];
    let template = |rule: &DynamicMessage| {
        let path = |verb| Some(rule.get_field_by_name(verb)?.as_str()?.to_owned());
        verbs
            .into_iter()
            .filter_map(path)
            .find(|path| !path.is_empty())
    };
    rules.filter_map(template).collect()
}

/// What the paths of an RPC name: `users/*`, or nothing.
pub fn paths(rpc: &MethodDescriptor) -> Vec<String> {
    let named = |template: &String| match template.split_once('=') {
        Some((_, rest)) => rest.split('}').next().unwrap_or_default().to_owned(),
        None => String::new(),
    };
    templates(rpc).iter().map(named).collect()
}

/// The request field that the paths of an RPC bind.
pub fn bound_field(rpc: &MethodDescriptor) -> String {
    let template = templates(rpc).remove(0);
    let variable = template.split_once('{').expect("a variable").1;
    variable.split('=').next().unwrap_or_default().to_owned()
}

/// Calls any RPC with any message.
pub async fn call(
    actor: &Actor,
    rpc: &MethodDescriptor,
    message: &DynamicMessage,
) -> Result<Bytes, Status> {
    call_raw(actor, rpc, message.encode_to_vec()).await
}

/// Calls any RPC with any bytes.
pub async fn call_raw(
    actor: &Actor,
    rpc: &MethodDescriptor,
    body: Vec<u8>,
) -> Result<Bytes, Status> {
    let service = InterceptedService::new(actor.channel.clone(), actor.bearer.clone());
    let mut client = Grpc::new(service);
    client.ready().await.expect("a connection");
    let path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
    let path: PathAndQuery = path.parse().expect("a path");
    Ok(client
        .unary(Request::new(body), path, RawCodec)
        .await?
        .into_inner())
}

/// Bytes in, bytes out.
#[derive(Clone, Copy, Default)]
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
