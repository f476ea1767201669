//! What can go wrong, as callers can tell it apart.
//!
//! A new failure is a new [`Reason`], not a new [`Error`] variant, unless a program must act
//! differently. The wire form of each is made in one place, `grpc::status`.

use std::{fmt, time::Duration};

use super::assurance::Demand;

/// The reasons of `errors.proto`, under the same names; documented there.
macro_rules! reasons {
    ($($variant:ident = $name:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason { $($variant),* }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            pub fn parse(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.name() == name)
            }
        }
    };
}

reasons! {
    TokenMissing = "TOKEN_MISSING",
    TokenInvalid = "TOKEN_INVALID",
    TokenExpired = "TOKEN_EXPIRED",
    TokenRevoked = "TOKEN_REVOKED",
    InvalidCredentials = "INVALID_CREDENTIALS",
    InvalidRefreshToken = "INVALID_REFRESH_TOKEN",
    InvalidCode = "INVALID_CODE",
    ChallengeEnded = "CHALLENGE_ENDED",
    InsufficientUserAuthentication = "INSUFFICIENT_USER_AUTHENTICATION",
    ScopeMissing = "SCOPE_MISSING",
    TargetOutranksCaller = "TARGET_OUTRANKS_CALLER",
    ScopeNotHeld = "SCOPE_NOT_HELD",
    NotApprover = "NOT_APPROVER",
    InvalidField = "INVALID_FIELD",
    InvalidFilter = "INVALID_FILTER",
    InvalidPageToken = "INVALID_PAGE_TOKEN",
    RequestIdReused = "REQUEST_ID_REUSED",
    MalformedRequest = "MALFORMED_REQUEST",
    PasswordRefused = "PASSWORD_REFUSED",
    NotFound = "NOT_FOUND",
    AlreadyExists = "ALREADY_EXISTS",
    EtagMismatch = "ETAG_MISMATCH",
    TransactionConflict = "TRANSACTION_CONFLICT",
    WrongState = "WRONG_STATE",
    CredentialKindNotAllowed = "CREDENTIAL_KIND_NOT_ALLOWED",
    KeyTooFresh = "KEY_TOO_FRESH",
    BuiltIn = "BUILT_IN",
    DeliveryUnavailable = "DELIVERY_UNAVAILABLE",
    LimitReached = "LIMIT_REACHED",
    LastCredential = "LAST_CREDENTIAL",
    LastIdentifier = "LAST_IDENTIFIER",
    InUse = "IN_USE",
    TokenTooLarge = "TOKEN_TOO_LARGE",
    Throttled = "THROTTLED",
    Overloaded = "OVERLOADED",
    MessageTooLarge = "MESSAGE_TOO_LARGE",
    StoreUnavailable = "STORE_UNAVAILABLE",
    UnknownRpc = "UNKNOWN_RPC",
    Deadline = "DEADLINE",
    Internal = "INTERNAL",
    GroupCycle = "GROUP_CYCLE",
    ApprovalPending = "APPROVAL_PENDING",
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug)]
pub enum Error {
    /// The request cannot be right as it stands: INVALID_ARGUMENT with all violations at once.
    Invalid {
        reason: Reason,
        violations: Vec<Violation>,
    },
    /// Who calls could not be established: UNAUTHENTICATED.
    Unauthenticated(Reason),
    /// The person has to prove more, or anew: UNAUTHENTICATED with what is needed (RFC 9470).
    Insufficient(Demand),
    /// The caller may not: PERMISSION_DENIED, with the scopes it is about.
    Denied { reason: Reason, scopes: Vec<String> },
    /// There is no resource of this name: NOT_FOUND.
    NotFound { name: String },
    /// The name or identifier is taken: ALREADY_EXISTS.
    AlreadyExists { name: String },
    /// The etag is not the current one: ABORTED.
    Stale { name: String },
    /// Our own retries of a transaction were used up: ABORTED with RetryInfo.
    Conflict,
    /// The resource is not in the state this needs: FAILED_PRECONDITION.
    Precondition {
        reason: Reason,
        name: String,
        text: String,
        retry_after: Option<Duration>,
    },
    /// Turned away for now: RESOURCE_EXHAUSTED with RetryInfo.
    Exhausted {
        reason: Reason,
        retry_after: Duration,
    },
    /// The database cannot be reached: UNAVAILABLE with RetryInfo. The cause is for the log.
    Unavailable(String),
    /// A fault of ours: INTERNAL. The cause is for the log.
    Internal(String),
}

/// One thing wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The path from the request message, `user.display_name`.
    pub field: String,
    /// What is expected, as the end of a sentence that begins with the field.
    pub text: String,
}

impl Error {
    pub fn field(field: &str, text: impl Into<String>) -> Self {
        Self::invalid(Reason::InvalidField, field, text)
    }

    pub fn invalid(reason: Reason, field: &str, text: impl Into<String>) -> Self {
        let violation = Violation {
            field: field.to_owned(),
            text: text.into(),
        };
        Self::Invalid {
            reason,
            violations: vec![violation],
        }
    }

    /// The one error for every sign-in and client authentication that fails.
    pub const fn invalid_credentials() -> Self {
        Self::Unauthenticated(Reason::InvalidCredentials)
    }

    pub fn not_found(name: impl Into<String>) -> Self {
        Self::NotFound { name: name.into() }
    }

    pub fn precondition(reason: Reason, name: impl Into<String>, text: impl Into<String>) -> Self {
        Self::Precondition {
            reason,
            name: name.into(),
            text: text.into(),
            retry_after: None,
        }
    }

    pub fn internal(cause: impl fmt::Display) -> Self {
        Self::Internal(cause.to_string())
    }

    pub const fn reason(&self) -> Reason {
        match self {
            Self::Invalid { reason, .. }
            | Self::Unauthenticated(reason)
            | Self::Denied { reason, .. }
            | Self::Precondition { reason, .. }
            | Self::Exhausted { reason, .. } => *reason,
            Self::Insufficient(_) => Reason::InsufficientUserAuthentication,
            Self::NotFound { .. } => Reason::NotFound,
            Self::AlreadyExists { .. } => Reason::AlreadyExists,
            Self::Stale { .. } => Reason::EtagMismatch,
            Self::Conflict => Reason::TransactionConflict,
            Self::Unavailable(_) => Reason::StoreUnavailable,
            Self::Internal(_) => Reason::Internal,
        }
    }
}

/// A sentence for people. Those of `Unavailable` and `Internal` hold the cause: for operators, not
/// for callers.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Invalid { violations, .. } => {
                for (place, Violation { field, text }) in violations.iter().enumerate() {
                    let separator = if place == 0 { "" } else { "; " };
                    write!(f, "{separator}{field} {text}")?;
                }
                Ok(())
            }
            Self::Unauthenticated(reason) => f.write_str(match reason {
                Reason::TokenMissing => "an access token is needed",
                Reason::TokenExpired => "the access token has expired",
                Reason::TokenRevoked => "the access token has been revoked",
                Reason::InvalidCredentials => "identifier or secret is wrong",
                Reason::InvalidRefreshToken => "the refresh token is not valid",
                Reason::InvalidCode => "the code is not valid",
                Reason::ChallengeEnded => "the challenge is over; begin anew",
                _ => "the access token is not valid",
            }),
            Self::Insufficient(demand) => {
                write!(f, "a sign-in at {}", demand.assurance.name())?;
                if let Some(max_age_s) = demand.max_age_s {
                    write!(f, " in the last {max_age_s} seconds")?;
                }
                f.write_str(" is needed")
            }
            Self::Denied { reason, scopes } => {
                let what = match reason {
                    Reason::TargetOutranksCaller => "the account holds what the caller does not",
                    Reason::NotApprover => "the caller is not one who may answer",
                    Reason::ScopeNotHeld => "the caller does not hold what it would hand out",
                    _ => "the caller lacks the scope",
                };
                let scopes = scopes.join(" or ");
                if scopes.is_empty() {
                    f.write_str(what)
                } else {
                    write!(f, "{what}: {scopes}")
                }
            }
            Self::NotFound { name } => write!(f, "{name} does not exist"),
            Self::AlreadyExists { name } => write!(f, "{name} is taken"),
            Self::Stale { name } => write!(f, "{name} has changed since its etag was read"),
            Self::Conflict => f.write_str("conflicting changes; try again"),
            Self::Precondition { name, text, .. } => write!(f, "{name} {text}"),
            Self::Exhausted {
                reason: Reason::Throttled,
                ..
            } => f.write_str("too many failed attempts; try again later"),
            Self::Exhausted { .. } => f.write_str("too much to do; try again later"),
            Self::Unavailable(cause) => write!(f, "the database cannot be reached: {cause}"),
            Self::Internal(cause) => write!(f, "internal error: {cause}"),
        }
    }
}

/// Gathers what is wrong with the fields of a request, so that the caller learns all of it at once.
#[derive(Default)]
pub struct Fields {
    reason: Option<Reason>,
    violations: Vec<Violation>,
}

impl Fields {
    pub fn new() -> Self {
        Self::default()
    }

    /// The value, or a violation to be reported by [`Fields::finish`].
    pub fn take<T>(&mut self, field: &str, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|text| self.refuse(field, text)).ok()
    }

    pub fn refuse(&mut self, field: &str, text: impl Into<String>) {
        self.violations.push(Violation {
            field: field.to_owned(),
            text: text.into(),
        });
    }

    /// Like [`Fields::refuse`], with a reason other than INVALID_FIELD if it is the first.
    pub fn refuse_as(&mut self, reason: Reason, field: &str, text: impl Into<String>) {
        self.reason.get_or_insert(reason);
        self.refuse(field, text);
    }

    pub fn finish(self) -> Result<()> {
        if self.violations.is_empty() {
            return Ok(());
        }
        let reason = self.reason.unwrap_or(Reason::InvalidField);
        Err(Error::Invalid {
            reason,
            violations: self.violations,
        })
    }
}
