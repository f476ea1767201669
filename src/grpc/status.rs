//! Errors on the wire: the one place that turns what went wrong into a `google.rpc.Status`.
//!
//! AIP-193: ErrorInfo always, further details where they apply, the same as JSON for HTTP. What
//! operators need to know is logged here, once; callers get a reference to it.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tonic::{Code, Status};
use tonic_types::{ErrorDetail, ErrorDetails, QuotaViolation, StatusExt as _};

use crate::domain::error::{Error, Reason};

/// The `domain` of every ErrorInfo.
pub const DOMAIN: &str = "accountd";

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        let mut message = shown(&error.to_string());
        let code = match &error {
            Error::Invalid { violations, .. } => {
                for violation in violations.iter().take(MAX_VIOLATIONS) {
                    details.add_bad_request_violation(&violation.field, shown(&violation.text));
                }
                Code::InvalidArgument
            }
            Error::Unauthenticated(_) => Code::Unauthenticated,
            Error::Insufficient(demand) => {
                let acr = demand.assurance.name().to_owned();
                metadata.insert("acr_values".to_owned(), acr);
                if let Some(max_age_s) = demand.max_age_s {
                    metadata.insert("max_age".to_owned(), max_age_s.to_string());
                }
                Code::Unauthenticated
            }
            Error::Denied { scopes, .. } => {
                if !scopes.is_empty() {
                    metadata.insert("scope".to_owned(), scopes.join(" "));
                }
                Code::PermissionDenied
            }
            Error::NotFound { name } => {
                details.set_resource_info(resource_type(name), shown(name), "", "");
                Code::NotFound
            }
            Error::AlreadyExists { name } => {
                details.set_resource_info(resource_type(name), shown(name), "", "");
                Code::AlreadyExists
            }
            Error::Stale { name } => {
                details.set_resource_info(resource_type(name), shown(name), "", "");
                Code::Aborted
            }
            Error::Conflict => {
                details.set_retry_info(Some(Duration::from_millis(100)));
                Code::Aborted
            }
            Error::Precondition {
                reason: Reason::LimitReached,
                name,
                text,
                ..
            } => {
                details.set_quota_failure(vec![QuotaViolation::new(shown(name), shown(text))]);
                Code::FailedPrecondition
            }
            Error::Precondition {
                reason,
                name,
                text,
                retry_after,
            } => {
                details.add_precondition_failure_violation(reason.name(), shown(name), shown(text));
                if retry_after.is_some() {
                    details.set_retry_info(*retry_after);
                }
                Code::FailedPrecondition
            }
            Error::Exhausted { retry_after, .. } => {
                details.set_retry_info(Some(*retry_after));
                Code::ResourceExhausted
            }
            Error::Unavailable(cause) => {
                tracing::warn!(cause, "the database cannot be reached");
                "the database cannot be reached; try again".clone_into(&mut message);
                details.set_retry_info(Some(Duration::from_secs(1)));
                Code::Unavailable
            }
            Error::Internal(cause) => {
                let reference = reference();
                tracing::error!(cause, reference, "internal error");
                message = format!("internal error, reference {reference}");
                metadata.insert("reference".to_owned(), reference);
                Code::Internal
            }
        };
        details.set_error_info(error.reason().name(), DOMAIN, metadata);
        Self::with_error_details(code, message, details)
    }
}

/// `users/{uid}/sessions/{id}` is a `sessions`.
fn resource_type(name: &str) -> &str {
    if name.len() > MAX_TEXT {
        return "";
    }
    let segments: Vec<&str> = name.split('/').collect();
    if segments.len().is_multiple_of(2) {
        segments[segments.len() - 2]
    } else {
        ""
    }
}

/// Errors travel in headers, and headers have limits: what a caller sent comes back no longer than
/// this, and without what could be taken for something else.
fn shown(text: &str) -> String {
    let shown = text.chars().take(MAX_TEXT);
    shown
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// Most characters of a text, and most field violations, in one error.
const MAX_TEXT: usize = 300;
const MAX_VIOLATIONS: usize = 20;

/// Connects an answer with a line of the log.
fn reference() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    format!("{:x}-{:x}", std::process::id(), COUNT.fetch_add(1, Relaxed))
}

/// The bytes are not a request.
pub fn malformed(text: &str) -> Status {
    plain(Code::InvalidArgument, Reason::MalformedRequest, text, None)
}

pub fn too_large() -> Status {
    let text = "the request is larger than the server reads";
    plain(Code::ResourceExhausted, Reason::MessageTooLarge, text, None)
}

pub fn deadline() -> Status {
    let text = "the deadline passed first; what was asked for may still happen";
    plain(Code::DeadlineExceeded, Reason::Deadline, text, None)
}

pub fn overloaded() -> Status {
    let retry_after = Some(Duration::from_secs(1));
    plain(
        Code::ResourceExhausted,
        Reason::Overloaded,
        "too many calls at once",
        retry_after,
    )
}

/// There is no such RPC on this listener.
pub fn unknown(path: &str) -> Status {
    let text = format!("there is no RPC {path} here");
    plain(Code::Unimplemented, Reason::UnknownRpc, &text, None)
}

/// For what goes wrong before a handler is reached.
fn plain(code: Code, reason: Reason, message: &str, retry_after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason.name(), DOMAIN, HashMap::new());
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(code, shown(message), details)
}

/// The status in the head of a response that has no body, if there is one that is not OK.
pub fn of_head(headers: &HeaderMap) -> Option<Status> {
    Status::from_header_map(headers).filter(|status| status.code() != Code::Ok)
}

/// A status made by the gRPC library, for example for bytes it could not decode, with the reason
/// that ours always have; `None` if it has one.
pub fn with_reason(status: &Status) -> Option<Status> {
    if status.get_details_error_info().is_some() {
        return None;
    }
    let message = status.message();
    Some(match status.code() {
        Code::Internal | Code::Unknown | Code::InvalidArgument => {
            malformed("the bytes are not a request of this RPC")
        }
        Code::OutOfRange | Code::ResourceExhausted => too_large(),
        Code::Unimplemented => plain(Code::Unimplemented, Reason::UnknownRpc, message, None),
        _ => return None,
    })
}

/// Whether a status has this reason.
pub fn is_of(status: &Status, reason: Reason) -> bool {
    let info = status.get_details_error_info();
    info.is_some_and(|info| info.reason == reason.name())
}

/// The name of a code, `NOT_FOUND`.
pub const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// The HTTP code of a gRPC code, as `google.rpc.Code` says, but where HTTP has a word of its own.
fn http_code(code: Code, reason: &str) -> StatusCode {
    match Reason::parse(reason) {
        Some(Reason::UnknownRpc) => return StatusCode::NOT_FOUND,
        Some(Reason::MessageTooLarge) => return StatusCode::PAYLOAD_TOO_LARGE,
        _ => {}
    }
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => {
            StatusCode::BAD_REQUEST
        }
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        // 499 has no name; the client has gone anyway.
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// An error as HTTP/JSON callers get it (AIP-193).
pub struct JsonError {
    pub code: StatusCode,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    pub body: Value,
    /// The Reason, for endpoints that have names of their own for errors.
    pub reason: String,
}

pub fn to_json(status: &Status) -> JsonError {
    let mut headers = Vec::new();
    let mut details = Vec::new();
    let mut reason = String::new();
    let mut metadata = HashMap::new();
    let any = |name: &str, mut value: Value| {
        value["@type"] = json!(format!("type.googleapis.com/google.rpc.{name}"));
        value
    };
    for detail in status.get_error_details_vec() {
        details.push(match detail {
            ErrorDetail::ErrorInfo(info) => {
                reason.clone_from(&info.reason);
                metadata.clone_from(&info.metadata);
                let value = json!({
                    "reason": info.reason, "domain": info.domain, "metadata": info.metadata,
                });
                any("ErrorInfo", value)
            }
            ErrorDetail::BadRequest(bad) => {
                let violation = |v: &tonic_types::FieldViolation| {
                    json!({ "field": v.field, "description": v.description })
                };
                let violations: Vec<Value> = bad.field_violations.iter().map(violation).collect();
                any("BadRequest", json!({ "fieldViolations": violations }))
            }
            ErrorDetail::ResourceInfo(info) => {
                let value = json!({
                    "resourceType": info.resource_type, "resourceName": info.resource_name,
                });
                any("ResourceInfo", value)
            }
            ErrorDetail::PreconditionFailure(failure) => {
                let violation = |v: &tonic_types::PreconditionViolation| {
                    json!({ "type": v.r#type, "subject": v.subject, "description": v.description })
                };
                let violations: Vec<Value> = failure.violations.iter().map(violation).collect();
                any("PreconditionFailure", json!({ "violations": violations }))
            }
            ErrorDetail::QuotaFailure(failure) => {
                let violation =
                    |v: &QuotaViolation| json!({ "subject": v.subject, "description": v.description });
                let violations: Vec<Value> = failure.violations.iter().map(violation).collect();
                any("QuotaFailure", json!({ "violations": violations }))
            }
            ErrorDetail::RetryInfo(info) => {
                let delay = info.retry_delay.unwrap_or_default();
                let seconds = delay.as_millis().div_ceil(1000).to_string();
                if let Ok(seconds) = HeaderValue::from_str(&seconds) {
                    headers.push((header::RETRY_AFTER, seconds));
                }
                let text = format!("{}.{:09}s", delay.as_secs(), delay.subsec_nanos());
                any("RetryInfo", json!({ "retryDelay": text }))
            }
            _ => continue,
        });
    }
    let code = http_code(status.code(), &reason);
    if code == StatusCode::UNAUTHORIZED
        && let Ok(challenge) = HeaderValue::from_str(&challenge(&reason, &metadata))
    {
        headers.push((header::WWW_AUTHENTICATE, challenge));
    }
    let body = json!({ "error": {
        "code": code.as_u16(),
        "status": code_name(status.code()),
        "message": status.message(),
        "details": details,
    }});
    JsonError {
        code,
        headers,
        body,
        reason,
    }
}

/// RFC 6750 section 3, which names an error only if a token was sent, and RFC 9470 section 3.
fn challenge(reason: &str, metadata: &HashMap<String, String>) -> String {
    let mut challenge = r#"Bearer realm="accountd""#.to_owned();
    match Reason::parse(reason) {
        Some(Reason::TokenInvalid | Reason::TokenExpired | Reason::TokenRevoked) => {
            challenge.push_str(r#", error="invalid_token""#);
        }
        Some(Reason::InsufficientUserAuthentication) => {
            challenge.push_str(r#", error="insufficient_user_authentication""#);
            for name in ["acr_values", "max_age"] {
                if let Some(value) = metadata.get(name) {
                    let _ = write!(challenge, r#", {name}="{value}""#);
                }
            }
        }
        _ => {}
    }
    challenge
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::assurance::{Assurance, Demand};

    fn reason_of(status: &Status) -> String {
        status
            .get_details_error_info()
            .expect("always there")
            .reason
    }

    #[test]
    fn every_reason_reaches_the_caller_with_its_details() {
        let error = Error::Invalid {
            reason: Reason::InvalidField,
            violations: vec![
                crate::domain::error::Violation {
                    field: "a".to_owned(),
                    text: "is bad".to_owned(),
                },
                crate::domain::error::Violation {
                    field: "b".to_owned(),
                    text: "is too".to_owned(),
                },
            ],
        };
        let json = to_json(&Status::from(error));
        assert_eq!(json.code, StatusCode::BAD_REQUEST);
        assert_eq!(json.reason, "INVALID_FIELD");
        let details = json.body["error"]["details"].as_array().expect("a list");
        let bad = details
            .iter()
            .find(|d| d["fieldViolations"].is_array())
            .expect("a BadRequest");
        assert_eq!(bad["fieldViolations"].as_array().map(Vec::len), Some(2));
    }

    #[test]
    fn causes_stay_in_the_log() {
        for error in [
            Error::Internal("a secret".to_owned()),
            Error::Unavailable("10.1.2.3".to_owned()),
        ] {
            let status = Status::from(error);
            let text = format!("{status:?}{}", to_json(&status).body);
            assert!(
                !text.contains("secret") && !text.contains("10.1.2.3"),
                "{text}"
            );
        }
    }

    #[test]
    fn waiting_is_said_in_both_languages() {
        let error = Error::Exhausted {
            reason: Reason::Throttled,
            retry_after: Duration::from_millis(1_500),
        };
        let json = to_json(&Status::from(error));
        assert_eq!(json.code, StatusCode::TOO_MANY_REQUESTS);
        assert!(
            json.headers
                .iter()
                .any(|(name, value)| name == header::RETRY_AFTER && value == "2")
        );
        assert!(json.body.to_string().contains("1.500000000s"));
    }

    #[test]
    fn what_a_person_has_still_to_show_is_said_in_both_languages() {
        let json = to_json(&Status::from(Error::Insufficient(Demand {
            assurance: Assurance::Aal2,
            max_age_s: Some(600),
        })));
        assert_eq!(json.code, StatusCode::UNAUTHORIZED);
        let (_, challenge) = json
            .headers
            .iter()
            .find(|(name, _)| name == header::WWW_AUTHENTICATE)
            .expect("a challenge");
        assert_eq!(
            challenge,
            r#"Bearer realm="accountd", error="insufficient_user_authentication", acr_values="aal2", max_age="600""#
        );
        let metadata = &json.body["error"]["details"][0]["metadata"];
        assert_eq!(metadata, &json!({ "acr_values": "aal2", "max_age": "600" }));
    }

    #[test]
    fn what_the_library_refuses_gets_a_reason() {
        let status = with_reason(&Status::internal("failed to decode")).expect("rewritten");
        assert_eq!(
            (status.code(), reason_of(&status).as_str()),
            (Code::InvalidArgument, "MALFORMED_REQUEST")
        );
        let ours = Status::from(Error::Internal("x".to_owned()));
        assert!(
            with_reason(&ours).is_none(),
            "an internal error of ours stays one"
        );
    }
}
