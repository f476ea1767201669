//! Bad input: whatever arrives, the answer is a clear error with a reason, never INTERNAL, and nothing
//! is lost.

use accountd::grpc::pb;
use prost_reflect::{DynamicMessage, Kind, MethodDescriptor, Value};

use crate::{
    access::{call, call_raw, rpcs},
    harness::{Engine, Refusal as _, on_both_engines},
};

on_both_engines! {
    async fn bytes_that_are_no_message_are_refused(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let bytes: [(&str, Vec<u8>); 8] = [
            ("a lone tag", vec![0x0a]),
            ("a length beyond the end", vec![0x0a, 0xff, 0xff, 0xff, 0x7f]),
            ("invalid UTF-8", vec![0x0a, 0x02, 0xc3, 0x28]),
            ("a surrogate in UTF-8", vec![0x0a, 0x03, 0xed, 0xa0, 0x80]),
            ("field number zero", vec![0x02, 0x00]),
            ("an unknown wire type", vec![0x0f]),
            ("a varint without end", vec![0x08; 1].into_iter().chain([0xff; 11]).collect()),
            ("groups without end", vec![0x0b; 200]),
        ];
        for rpc in rpcs() {
            for (what, bytes) in &bytes {
                let outcome = call_raw(&operator, &rpc, bytes.clone()).await.outcome();
                assert_graceful(&rpc, what, &outcome);
                let is_text_first = first_is_text(&rpc);
                if what.contains("UTF-8") && is_text_first {
                    assert_eq!(outcome, "INVALID_ARGUMENT MALFORMED_REQUEST", "{} {what}", rpc.full_name());
                }
            }
            let huge = call_raw(&operator, &rpc, vec![0; 300_000]).await.outcome();
            assert_eq!(huge, "RESOURCE_EXHAUSTED MESSAGE_TOO_LARGE", "{}", rpc.full_name());
        }
        operator.users().list_users(pb::ListUsersRequest::default()).await.expect("alive");
    }

    async fn no_text_in_any_field_breaks_anything(engine: Engine) {
        let server = engine.server_with(|config| config.throttle.network_free = 1_000_000).await;
        let operator = server.operator().await;
        let texts = hostile_texts();
        for rpc in rpcs() {
            for field in rpc.input().fields().filter(|field| field.kind() == Kind::String) {
                for text in &texts {
                    let mut message = DynamicMessage::new(rpc.input());
                    let value = Value::String(text.clone());
                    let value = if field.is_list() { Value::List(vec![value]) } else if field.is_map() { continue } else { value };
                    message.set_field(&field, value);
                    let outcome = call(&operator, &rpc, &message).await.outcome();
                    assert_graceful(&rpc, &format!("{} = {text:.40?}", field.name()), &outcome);
                }
            }
        }
    }

    async fn no_text_in_any_resource_breaks_anything(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let user = server.user("alice").await;
        for text in hostile_texts() {
            for (rpc, field) in [("CreateUser", "user"), ("UpdateUser", "user"), ("CreateSystemAccount", "system_account"), ("CreateGrant", "grant"), ("CreateCredential", "credential")] {
                let rpc = rpcs().into_iter().find(|found| found.name() == rpc).expect(rpc);
                let outer = rpc.input().get_field_by_name(field).expect(field);
                let kind = outer.kind();
                let resource = kind.as_message().expect("a message").clone();
                for inner in resource.fields().filter(|inner| inner.kind() == Kind::String) {
                    let mut value = DynamicMessage::new(resource.clone());
                    if rpc.name() == "UpdateUser" {
                        value.set_field_by_name("name", Value::String(user.name.clone()));
                    }
                    let text = Value::String(text.clone());
                    value.set_field(&inner, if inner.is_list() { Value::List(vec![text]) } else { text });
                    let mut message = DynamicMessage::new(rpc.input());
                    message.set_field(&outer, Value::Message(value));
                    let outcome = call(&operator, &rpc, &message).await.outcome();
                    assert_graceful(&rpc, inner.name(), &outcome);
                }
            }
        }
        let seen = operator.get_user(&user.name).await.expect("still there");
        assert_eq!(seen.uid, user.uid);
    }

    async fn times_and_numbers_out_of_range_are_refused(engine: Engine) {
        let server = engine.server().await;
        let operator = server.operator().await;
        let times = [
            (i64::MIN, 0), (i64::MAX, 0), (-1, 0), (0, -1), (0, i32::MAX), (253_402_300_800, 0), (i64::MAX / 1_000_000 + 1, 0),
        ];
        let alice = server.user("alice").await;
        for (seconds, nanos) in times {
            let until_time = Some(prost_types::Timestamp { seconds, nanos });
            let request = pb::SuspendUserRequest { name: alice.name.clone(), until_time, ..Default::default() };
            let outcome = operator.users().suspend_user(request).await.outcome();
            assert_eq!(outcome, "INVALID_ARGUMENT INVALID_FIELD", "{seconds} {nanos}");
        }
        for page_size in [i32::MIN, -1] {
            let request = pb::ListEventsRequest { page_size, ..Default::default() };
            let outcome = operator.events().list_events(request).await.outcome();
            assert_eq!(outcome, "INVALID_ARGUMENT INVALID_FIELD", "{page_size}");
        }
        let request = pb::ListEventsRequest { page_size: i32::MAX, ..Default::default() };
        operator.events().list_events(request).await.expect("as many as there may be");
    }
}

/// The first field is text, or a message that begins with text.
fn first_is_text(rpc: &MethodDescriptor) -> bool {
    let first = rpc.input().fields().find(|field| field.number() == 1);
    first.is_some_and(|field| field.kind() == Kind::String && !field.is_map())
}

#[track_caller]
fn assert_graceful(rpc: &MethodDescriptor, what: &str, outcome: &str) {
    let rpc = rpc.full_name();
    assert!(!outcome.contains("INTERNAL"), "{rpc} {what}: {outcome}");
    assert!(!outcome.contains("no reason"), "{rpc} {what}: {outcome}");
    assert!(
        !outcome.starts_with("UNKNOWN") && !outcome.starts_with("UNAVAILABLE"),
        "{rpc} {what}: {outcome}"
    );
}

fn hostile_texts() -> Vec<String> {
    let mut texts: Vec<String> = [
        "\0",
        "a\0b",
        "\u{feff}",
        "\u{202e}gnp.exe",
        "'; DROP TABLE users; --",
        "$1",
        "%s%n",
        "../../../etc/passwd",
        "users/",
        "users//",
        "users/*",
        "users/me/me",
        "users/018f0000-0000-7000-8000-000000000000/sessions/",
        "users/018f0000-0000-7000-8000-000000000000/sessions/018f0000-0000-7000-8000-000000000000",
        "systemAccounts/018f0000-0000-7000-8000-000000000000",
        "signingKeys/\0",
        "grants/018F0000-0000-7000-8000-000000000000",
        "r-1",
        "\u{1F468}\u{200D}\u{1F469}\u{200D}\u{1F467}",
        "e\u{301}\u{301}\u{301}",
        "\r\nset-cookie: x=1",
        "<script>alert(1)</script>",
        "state = ",
        "state = \"",
        "((((((((",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ]
    .map(str::to_owned)
    .into();
    texts.push("x".repeat(100_000));
    texts.push("\u{10ffff}".repeat(1000));
    texts.push("(".repeat(50_000));
    texts
}
