//! The protos, read from the descriptors that the server itself reflects: every RPC has all that an
//! RPC has to have, so that clients never meet an exception nobody meant.

use std::collections::BTreeSet;

use accountd::{
    domain::{access, error::Reason},
    grpc::DESCRIPTORS,
};
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, MessageDescriptor, MethodDescriptor, Value,
};

/// RPCs that change something and take no `request_id` and no `validate_only`, and why.
const WITHOUT_REQUEST_ID: [(&str, &str); 3] = [
    (
        "RefreshSession",
        "the refresh token is the key: sent again it yields the same successor",
    ),
    (
        "IssueToken",
        "leaves nothing behind that a second call would double",
    ),
    (
        "IntrospectToken",
        "changes nothing; it is a POST because the token must not be in a URL",
    ),
];

/// RPCs that change something and write no event, and why.
const WITHOUT_EVENT: [(&str, &str); 2] = [
    (
        "IssueToken",
        "thousands a second; the credential's `last_used_time` and the refusals tell the story",
    ),
    (
        "CreateChallenge",
        "one for each look at a sign-in page; the answer and a code handed out have theirs",
    ),
];

/// Requests about one resource without an `etag`, and why.
const WITHOUT_ETAG: [(&str, &str); 2] = [
    (
        "CreatePasswordReset",
        "makes a code and leaves the user as it is",
    ),
    (
        "AnswerChallenge",
        "a challenge is open until it is answered",
    ),
];

/// RPCs that demand a proof of a person by more than their policies, and when.
const DEMANDS_OF_ITS_OWN: [(&str, &str); 1] =
    [("RequestElevation", "where the entitlement says so")];

const READS: [&str; 7] = [
    "Get",
    "List",
    "BatchGet",
    "Lookup",
    "Introspect",
    "Check",
    "Explain",
];

fn pool() -> DescriptorPool {
    DescriptorPool::decode(DESCRIPTORS).expect("descriptors")
}

fn rpcs(pool: &DescriptorPool) -> Vec<MethodDescriptor> {
    let rpcs: Vec<_> = pool
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect();
    assert!(rpcs.len() > 40, "only {} RPCs found", rpcs.len());
    rpcs
}

fn is_read(rpc: &MethodDescriptor) -> bool {
    READS.iter().any(|verb| rpc.name().starts_with(verb))
}

fn has(message: &MessageDescriptor, field: &str) -> bool {
    message.get_field_by_name(field).is_some()
}

fn is_excused(list: &[(&str, &str)], rpc: &MethodDescriptor) -> bool {
    list.iter().any(|(name, _)| *name == rpc.name())
}

#[test]
fn every_rpc_has_a_policy_and_an_http_binding_that_fits_its_name() {
    let pool = pool();
    for rpc in rpcs(&pool) {
        let name = rpc.name().to_owned();
        let path = format!("/{}/{name}", rpc.parent_service().full_name());
        let policy = access::POLICIES.iter().find(|policy| policy.rpc == path);
        let policy = policy.unwrap_or_else(|| panic!("{path} has no policy"));
        let is_silent = is_read(&rpc) || is_excused(&WITHOUT_EVENT, &rpc);
        assert_eq!(policy.event.is_empty(), is_silent, "{path}: event");

        let rule = option(&pool, &rpc, "google.api.http");
        let verb = ["get", "post", "patch", "delete", "put"]
            .into_iter()
            .find(|verb| !text(rule.as_ref(), verb).is_empty());
        let verb = verb.unwrap_or_else(|| panic!("{path} has no binding"));
        let template = text(rule.as_ref(), verb);
        let expected = match &*name {
            "GetJwks" => "get",
            "IntrospectToken" | "CheckAccess" => "post",
            _ if is_read(&rpc) => "get",
            _ if name.starts_with("Update") => "patch",
            _ if name.starts_with("Delete") || name == "RevokeSession" => "delete",
            _ => "post",
        };
        assert_eq!(verb, expected, "{path} is bound to {template}");
        assert!(
            template.starts_with("/v1/"),
            "{path} is bound to {template}"
        );
        let body = text(rule.as_ref(), "body");
        assert_eq!(
            body.is_empty(),
            verb == "get" || verb == "delete",
            "{path}: body `{body}`"
        );
    }
    assert_eq!(access::POLICIES.len(), rpcs(&pool).len());
}

#[test]
fn every_mutation_can_be_retried_tried_out_and_guarded_against_lost_updates() {
    let pool = pool();
    for rpc in rpcs(&pool).into_iter().filter(|rpc| !is_read(rpc)) {
        let (name, input) = (rpc.name(), rpc.input());
        for field in ["request_id", "validate_only"] {
            assert_ne!(
                has(&input, field),
                is_excused(&WITHOUT_REQUEST_ID, &rpc),
                "{name}: {field}"
            );
        }
        if has(&input, "name") {
            assert_ne!(
                has(&input, "etag"),
                is_excused(&WITHOUT_ETAG, &rpc),
                "{name}: etag"
            );
        }
        if name.starts_with("Update") {
            assert!(has(&input, "update_mask"), "{name}: update_mask");
            assert!(has(&rpc.output(), "etag"), "{name}: etag of its resource");
        }
    }
}

#[test]
fn every_list_comes_in_pages_and_can_be_filtered() {
    let pool = pool();
    for rpc in rpcs(&pool)
        .into_iter()
        .filter(|rpc| rpc.name().starts_with("List"))
    {
        assert!(has(&rpc.input(), "filter"), "{}", rpc.name());
        assert!(
            has(&rpc.input(), "page_size") && has(&rpc.input(), "page_token"),
            "{}",
            rpc.name()
        );
        assert!(has(&rpc.output(), "next_page_token"), "{}", rpc.name());
    }
}

#[test]
fn what_is_secret_is_marked_so_that_nothing_prints_it() {
    let mut marked = 0;
    for message in pool()
        .all_messages()
        .filter(|message| message.package_name() == "accountd.v1" && !message.is_map_entry())
    {
        for field in message.fields() {
            let is_marked = flag(&field.options(), "debug_redact");
            assert_eq!(is_marked, is_secret(&field), "{}", field.full_name());
            marked += usize::from(is_marked);
        }
    }
    assert!(marked > 10, "only {marked} secrets found");
}

/// By its name, so that a new field is noticed.
fn is_secret(field: &FieldDescriptor) -> bool {
    let is_text = matches!(field.kind(), prost_reflect::Kind::String);
    let name = field.name();
    let message = field.parent_message();
    // What holds secrets only, and names that are secrets themselves.
    let special = [
        ("CreateCredentialResponse", "enrolment"),
        ("Totp", "uri"),
        ("Challenge", "name"),
        ("AnswerChallengeRequest", "name"),
        ("IssueTokenRequest", "client_assertion"),
    ];
    if special.contains(&(message.name(), name)) {
        return true;
    }
    let words = [
        "password", "secret", "token", "code", "codes", "key", "hash",
    ];
    let is_named_so = words
        .iter()
        .any(|word| name == *word || name.ends_with(&format!("_{word}")));
    let is_public = ["page_token", "next_page_token", "language_code"].contains(&name)
        || message.name() == "PostalAddress";
    let is_password_value = message.name() == "Password" && name == "value";
    is_text && (is_named_so && !is_public || is_password_value)
}

#[test]
fn reasons_are_the_same_in_rust_and_in_the_protos() {
    let reasons = pool()
        .get_enum_by_name("accountd.v1.Reason")
        .expect("the enum");
    let proto: BTreeSet<String> = reasons
        .values()
        .map(|value| value.name().to_owned())
        .collect();
    let rust = Reason::ALL.iter().map(|reason| reason.name().to_owned());
    let rust: BTreeSet<String> = rust.chain(["REASON_UNSPECIFIED".to_owned()]).collect();
    assert_eq!(proto, rust);
}

/// The comments are the API reference.
#[test]
fn every_rpc_says_who_may_call_it_and_names_only_errors_that_exist() {
    let pool = pool();
    let known: BTreeSet<String> = pool
        .all_enums()
        .flat_map(|names| {
            names
                .values()
                .map(|value| value.name().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    for rpc in rpcs(&pool) {
        let comment = comment(&rpc);
        assert!(
            comment.contains("Access: "),
            "{}: {comment}",
            rpc.full_name()
        );
        let path = format!("/{}/{}", rpc.parent_service().full_name(), rpc.name());
        let policy = access::policy(&path).expect("every RPC has one");
        assert_eq!(
            policy.demand.is_some() || is_excused(&DEMANDS_OF_ITS_OWN, &rpc),
            comment.contains("INSUFFICIENT_USER_AUTHENTICATION"),
            "{path}: what it demands of a person"
        );
        for word in comment.split(|c: char| !(c.is_ascii_uppercase() || c == '_')) {
            let is_constant = word.contains('_') && word.len() > 3;
            assert!(
                !is_constant || known.contains(word),
                "{}: {word}",
                rpc.full_name()
            );
        }
        for scope in option(&pool, &rpc, "accountd.v1.policy")
            .into_iter()
            .flat_map(|policy| strings(&policy, "scope"))
        {
            assert!(
                comment.contains(&format!("`{scope}`")),
                "{} does not name {scope}",
                rpc.full_name()
            );
        }
    }
}

/// What stands above the RPC in its file.
fn comment(rpc: &MethodDescriptor) -> String {
    let file = rpc.parent_file();
    let file = file.file_descriptor_proto();
    let locations = file.source_code_info.iter().flat_map(|info| &info.location);
    let found = locations
        .filter(|location| location.path == rpc.path())
        .find_map(|location| location.leading_comments.clone());
    found.unwrap_or_else(|| panic!("{} has no comment", rpc.full_name()))
}

fn option(pool: &DescriptorPool, rpc: &MethodDescriptor, name: &str) -> Option<DynamicMessage> {
    let extension = pool.get_extension_by_name(name).expect("the option");
    rpc.options()
        .get_extension(&extension)
        .as_message()
        .cloned()
}

fn text(message: Option<&DynamicMessage>, field: &str) -> String {
    let value = message.and_then(|message| message.get_field_by_name(field));
    value
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

fn strings(message: &DynamicMessage, field: &str) -> Vec<String> {
    let value = message.get_field_by_name(field);
    let list = value
        .and_then(|value| value.as_list().map(<[Value]>::to_vec))
        .unwrap_or_default();
    list.iter()
        .filter_map(|value| value.as_str().map(str::to_owned))
        .collect()
}

fn flag(message: &DynamicMessage, field: &str) -> bool {
    message
        .get_field_by_name(field)
        .and_then(|value| value.as_bool())
        .unwrap_or_default()
}
