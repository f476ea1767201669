//! Challenges on their way to the person: opened by SessionService, for a sign-in, its second step or a
//! step-up.

use uuid::Uuid;

use super::{
    call::{Call, mutate},
    convert, messages,
    mint::Wish,
    pb::{self, ChallengeMethod, create_challenge_request::Delivery, sign_in_response},
    secrets::{self, Asked},
    sign_in::{self, Proof},
};
use crate::{
    domain::{
        assurance::Factor,
        challenge::{self, Challenge, Purpose, Question, SignIn},
        contact,
        credential::Kind,
        error::{Error, Fields, Reason, Result},
        identifier::{self, Identifier, MAX_IDENTIFIER_BYTES},
        message::{self, Channel, Facts, Message, To, Who},
        name::{SessionId, UserId},
        network,
        passkey::{Passkey, RelyingParty},
        secret::{self, Secret},
    },
    store::{
        challenges,
        db::{Isolation, Read},
        events,
        factors::{self, Factor as Stored},
        transact, users,
    },
};

/// A challenge that is being opened, and what its answer shows of it.
struct Opening {
    secret: Secret,
    challenge: Challenge,
    /// For the browser.
    options: String,
    /// For whoever brings it to the person.
    code: String,
}

/// Begins a sign-in, or a step-up for the caller's own session.
pub(super) async fn create(
    call: &Call,
    request: pb::CreateChallengeRequest,
) -> Result<pb::Challenge> {
    match call.caller.session() {
        Some(session) => create_for_session(call, session, request).await,
        None => {
            // Whoever has a token wants to raise a session, and learns why not.
            call.require_belief()?;
            create_for_sign_in(call, request).await
        }
    }
}

async fn create_for_session(
    call: &Call,
    session: SessionId,
    request: pb::CreateChallengeRequest,
) -> Result<pb::Challenge> {
    if !request.identifier.is_empty() {
        let text = "is whoever calls; call without a token to begin a sign-in";
        return Err(Error::field("identifier", text));
    }
    let method = method(request.method());
    let wish = Wish::parse(&request.audience, &request.scopes)?;
    let user = call.user("identifier", "users/me")?;
    let stored = factors::list(&mut call.db().read().await?, user).await?;
    let mut methods = methods(&stored, call.app().passkeys.as_deref());
    methods.retain(|have| method.is_none_or(|wanted| wanted == *have));
    if methods.is_empty() {
        let text = "has no such factor to prove anything with";
        let name = user.to_string();
        return Err(Error::precondition(Reason::WrongState, name, text));
    }
    let purpose = Purpose::StepUp(session);
    let opening = open(call, Some(user), purpose, methods, wish, &stored)?;
    store(call, &opening, None).await
}

async fn create_for_sign_in(
    call: &Call,
    request: pb::CreateChallengeRequest,
) -> Result<pb::Challenge> {
    if call.app().config.sign_in.require_frontend {
        call.require("sessions.create")?;
    }
    let method = method(request.method());
    let is_message = method.is_some_and(is_message);
    let delivery = request.delivery();
    if is_message && delivery == Delivery::Return {
        call.require("contacts.return_code")?;
    }
    let mut fields = Fields::new();
    match method {
        Some(Factor::Passkey) => {}
        Some(Factor::EmailCode | Factor::SmsCode) => {
            if request.identifier.is_empty() {
                fields.refuse("identifier", "is required");
            }
            if delivery == Delivery::Unspecified {
                fields.refuse("delivery", "must be SEND or RETURN");
            }
        }
        _ => fields.refuse(
            "method",
            "must be PASSKEY, EMAIL_CODE or SMS_CODE, which begin a sign-in",
        ),
    }
    let typed = request.identifier;
    if typed.len() > MAX_IDENTIFIER_BYTES {
        let text = format!("must have at most {MAX_IDENTIFIER_BYTES} bytes");
        fields.refuse("identifier", text);
    }
    let sent = request.device.unwrap_or_default();
    let device = sign_in::device(call, &mut fields, &sent);
    fields.finish()?;
    let wish = Wish::parse(&request.audience, &request.scopes)?;
    let method = method.ok_or_else(|| Error::internal("checked above"))?;
    let is_sent = is_message && delivery == Delivery::Send;
    if is_sent {
        messages::require_sender(call, Some(Channel::of_factor(method)))?;
    }
    let (mut user, mut known_device) = (None, None);
    if !typed.is_empty() {
        let mut db = call.db().read().await?;
        let owner = users::find_for_sign_in(&mut db, Identifier::typed(&typed).as_ref()).await?;
        if let Some(owner) = owner {
            let account = owner.id.into();
            if is_message && !is_sent {
                // Who has the code signs in as the person.
                call.require_full_power_over(&mut db, account).await?;
                call.opens(&mut db, account).await?;
            }
            user = Some(owner.id);
            let password = owner.password.as_ref().map(|(_, hash)| hash);
            known_device =
                password.and_then(|hash| secrets::known_device(call, account, hash, &sent.token));
        }
    }
    if let Some(first) = call.first_answer().await? {
        return Ok(first);
    }
    let asked = identifier::canonical(&typed);
    let address = device.address;
    let purpose = Purpose::SignIn(SignIn {
        identifier: asked.clone(),
        first: None,
        device,
        known_device,
    });
    let opening = open(call, user, purpose, vec![method], wish, &[])?;
    if !asked.is_empty() {
        // Who has no room for an answer leaves no trace either.
        require_room(&mut call.db().read().await?, call, &opening.challenge).await?;
        let by = if is_sent {
            Asked::Message(asked)
        } else {
            Asked::Question(asked)
        };
        secrets::ask(call, by, known_device, address).await?;
    }
    if !is_sent {
        return store(call, &opening, None).await;
    }
    let message = message(call, &opening, &typed, (method, known_device));
    let opening = Opening {
        code: String::new(),
        ..opening
    };
    store(call, &opening, Some(&message)).await
}

/// The message with a code; who gets it is looked up when it is sent.
fn message(
    call: &Call,
    opening: &Opening,
    typed: &str,
    (method, known_device): (Factor, Option<Uuid>),
) -> Message {
    let code = opening.code.clone();
    let lifetime_s = call.app().config.sign_in.challenge_lifetime_s;
    Message {
        kind: message::Kind::SignInCode,
        to: To::Whoever {
            who: Who::Identifier(Identifier::typed(typed)),
            channel: Some(Channel::of_factor(method)),
            purpose: contact::Purpose::Login,
        },
        language: String::new(),
        name: String::new(),
        facts: Facts {
            // Whoever asked for it holds the challenge, without which the code is nothing.
            link: messages::link(call, "sign-in", &format!("code={code}")),
            code,
            minutes: lifetime_s / 60,
            ..Facts::default()
        },
        unlocks: None,
        asker: known_device,
    }
}

/// Asks somebody who has shown one factor for a second.
pub(super) async fn ask(
    call: &Call,
    user: UserId,
    sign_in: SignIn,
    wish: Wish,
    proof: Proof<'_>,
) -> Result<pb::SignInResponse> {
    let stored = factors::list(&mut call.db().read().await?, user).await?;
    let methods = methods(&stored, call.app().passkeys.as_deref());
    if methods.is_empty() {
        relying_party(call)?;
        // The factor has gone since it was asked for.
        return Err(Error::Conflict);
    }
    let purpose = Purpose::SignIn(sign_in);
    let opening = open(call, Some(user), purpose, methods, wish, &stored)?;
    transact!(
        call.attempts(Isolation::ReadCommitted),
        attempts | tx | {
            call.require_standing(tx).await?;
            proof.hold(tx, call).await?;
            challenges::insert(tx, &opening.secret.digest(), &opening.challenge).await?;
            challenges::make_room(tx, user, &opening.secret.digest(), MAX_OPEN).await?;
        }
    )?;
    let mut challenge = opening.shown();
    if call.validate_only {
        challenge.name.clear();
    }
    Ok(pb::SignInResponse {
        result: Some(sign_in_response::Result::Challenge(challenge)),
        device_token: String::new(),
    })
}

/// What a challenge is made of; nothing is stored yet.
fn open(
    call: &Call,
    user: Option<UserId>,
    purpose: Purpose,
    methods: Vec<Factor>,
    wish: Wish,
    stored: &[Stored],
) -> Result<Opening> {
    let secret = Secret::new(secret::Kind::Challenge, &call.app().random.bytes::<32>());
    let (mut code, mut digest) = (String::new(), None);
    if methods.iter().any(|method| is_message(*method)) {
        code = challenge::code(call.app().random.bytes());
        let key = &call.app().keys.codes;
        digest = Some(challenge::code_digest(&code, &secret.digest(), key));
    }
    let (mut options, mut ceremony) = (String::new(), None);
    if methods.contains(&Factor::Passkey) {
        let keys = factors::passkeys(stored).into_iter().map(|(_, key)| key);
        let keys: Vec<Passkey> = keys.collect();
        let asked = relying_party(call)?.ask(&keys).map_err(Error::Internal)?;
        options = asked.options;
        ceremony = Some(asked.ceremony);
    }
    let address = match &purpose {
        Purpose::SignIn(sign_in) => sign_in.device.address,
        Purpose::StepUp(_) => None,
    };
    let lifetime_s = call.app().config.sign_in.challenge_lifetime_s;
    let challenge = Challenge {
        opener: call.caller.uuid(),
        user,
        network: address.map(network::source),
        question: Question {
            purpose,
            methods,
            code: digest,
            ceremony,
            audience: wish.audience,
            scopes: wish.scopes,
        },
        create_time: call.now,
        expire_time: call.now.plus_s(lifetime_s),
    };
    Ok(Opening {
        secret,
        challenge,
        options,
        code,
    })
}

const fn is_message(method: Factor) -> bool {
    matches!(method, Factor::EmailCode | Factor::SmsCode)
}

/// What browsers know this installation by.
pub(super) fn relying_party(call: &Call) -> Result<&RelyingParty> {
    call.app().passkeys.as_deref().ok_or_else(|| {
        let text = "are not configured: set `passkeys.domain`, or a `public_url` that has one";
        Error::precondition(Reason::CredentialKindNotAllowed, "passkeys", text)
    })
}

/// Stores a challenge that somebody asked for, unless too many are open from there or for the person.
/// A message goes with it if it is to be brought by one.
async fn store(call: &Call, opening: &Opening, message: Option<&Message>) -> Result<pb::Challenge> {
    let Opening {
        challenge, secret, ..
    } = opening;
    let answer = mutate!(call, Isolation::ReadCommitted, |tx| {
        require_room(tx, call, challenge).await?;
        challenges::insert(tx, &secret.digest(), challenge).await?;
        if let (Some(user), false) = (challenge.user, challenge.is_first_step()) {
            challenges::make_room(tx, user, &secret.digest(), MAX_OPEN).await?;
        }
        if let Some(message) = message {
            messages::enqueue(tx, call, None, message, challenge.expire_time).await?;
        } else if challenge.question.code.is_some() {
            let event = call.event_of("challenge.code_returned");
            let event = match challenge.user {
                Some(user) => event.about_account(user),
                None => event,
            };
            events::append(tx, &event).await?;
        }
        opening.shown()
    })?;
    Ok(call.without_secret_if_dry(answer))
}

async fn require_room(db: &mut Read, call: &Call, challenge: &Challenge) -> Result<()> {
    let mut is_full = false;
    if let Some(network) = challenge.network {
        let max = call.app().config.throttle.network_challenges;
        is_full = challenges::count_open(db, network, call.now).await? >= max;
    }
    if !is_full {
        return Ok(());
    }
    Err(Error::Exhausted {
        reason: Reason::Throttled,
        retry_after: std::time::Duration::from_secs(30),
    })
}

/// Most open challenges of one person; of those who have shown something the newest stay.
const MAX_OPEN: i64 = 20;

impl Opening {
    fn shown(&self) -> pb::Challenge {
        let methods = self.challenge.question.methods.iter();
        pb::Challenge {
            name: format!("challenges/{}", self.secret.text()),
            methods: methods.map(|method| shown_method(*method).into()).collect(),
            passkey_options_json: self.options.clone(),
            code: self.code.clone(),
            expire_time: Some(convert::timestamp(self.challenge.expire_time)),
        }
    }
}

/// What a person can answer with who has these factors.
fn methods(stored: &[Stored], passkeys: Option<&RelyingParty>) -> Vec<Factor> {
    let has = |kind: Kind| stored.iter().any(|stored| stored.kind == kind);
    let offers = [
        (Factor::Passkey, has(Kind::Passkey) && passkeys.is_some()),
        (Factor::Totp, has(Kind::Totp)),
        (Factor::RecoveryCode, has(Kind::RecoveryCodes)),
    ];
    let offers = offers.into_iter().filter(|(_, has)| *has);
    offers.map(|(factor, _)| factor).collect()
}

const fn method(method: ChallengeMethod) -> Option<Factor> {
    match method {
        ChallengeMethod::Unspecified => None,
        ChallengeMethod::Totp => Some(Factor::Totp),
        ChallengeMethod::RecoveryCode => Some(Factor::RecoveryCode),
        ChallengeMethod::Passkey => Some(Factor::Passkey),
        ChallengeMethod::EmailCode => Some(Factor::EmailCode),
        ChallengeMethod::SmsCode => Some(Factor::SmsCode),
    }
}

const fn shown_method(factor: Factor) -> ChallengeMethod {
    match factor {
        Factor::Password => ChallengeMethod::Unspecified,
        Factor::Totp => ChallengeMethod::Totp,
        Factor::RecoveryCode => ChallengeMethod::RecoveryCode,
        Factor::Passkey => ChallengeMethod::Passkey,
        Factor::EmailCode => ChallengeMethod::EmailCode,
        Factor::SmsCode => ChallengeMethod::SmsCode,
    }
}
