//! Answers to challenges: codes and assertions of passkeys.

use std::net::IpAddr;

use uuid::Uuid;

use super::{
    charge::{self, Asked, Payer, Tries, attempted},
    totp,
};
use crate::{
    domain::{
        assurance::Factor,
        challenge::{self, Challenge, Purpose},
        contact::{self, Contact},
        credential::{Kind, Parameters},
        error::{Error, Reason, Result},
        message::{self, Channel, Recipient},
        name::{CredentialId, UserId},
        passkey::{self, Passkey},
        recovery_code::{self, RecoveryCode},
        secret::{self, Digest, Secret},
    },
    grpc::{call::Call, pb::answer_challenge_request::Answer},
    store::{
        challenges, contacts,
        db::Write,
        events,
        factors::{self, Factor as Stored},
        users::{self, PasswordOwner},
    },
};

/// A right answer, which is good for as long as what it uses up is still there.
pub(in crate::grpc) struct Answered {
    pub(in crate::grpc) challenge: Challenge,
    pub(in crate::grpc) owner: PasswordOwner,
    pub(in crate::grpc) factor: Factor,
    /// What it was given with, if it was a credential.
    pub(in crate::grpc) credential: Option<CredentialId>,
    digest: Digest,
    spent: Spent,
}

/// What an answer uses up, besides its challenge.
enum Spent {
    Nothing,
    Step(CredentialId, i64),
    RecoveryCode(Digest),
    Passkey(Box<(Stored, Passkey)>),
}

/// Looks at an answer to the challenge of this name. A challenge that is over, or somebody else's, is
/// like none; of an answer to one that asks nobody, everything is done that is done for others.
pub(in crate::grpc) async fn answer(call: &Call, name: &str, answer: &Answer) -> Result<Answered> {
    let Some((digest, challenge)) = find(call, name).await? else {
        let event = attempted(call, REFUSED, None);
        return Err(charge::refuse(call, call.address, event, Reason::ChallengeEnded).await?);
    };
    let factor = factor(&challenge, answer)?;
    let user = match (challenge.user, answer) {
        // Only where no name was given does the passkey say who it is.
        (None, Answer::PasskeyResponseJson(response)) if asks_anybody(&challenge) => {
            passkey::owner(response)
        }
        (user, _) => user,
    };
    let mut db = call.db().read().await?;
    // Nobody has the nil id, so as much is asked for somebody unknown.
    let id = user.unwrap_or(UserId(Uuid::nil()));
    let owner = users::find_with_password(&mut db, id).await?;
    let stored = factors::list(&mut db, id).await?;
    let ways = match factor {
        // Cannot be guessed: paid for when it is wrong.
        Factor::Passkey => vec![Vec::new()],
        _ => payer(call, &challenge).ways(call),
    };
    charge::require_patience(&mut db, call, &ways).await?;
    drop(db);
    let charged = charge::attempt(call, ways, Tries::OfChallenge(&digest)).await?;

    let found = check(call, &challenge, &digest, id, &stored, answer).await?;
    let found = found.zip(owner.filter(|owner| owner.lifecycle.may_act(call.now)));
    let Some(((credential, spent), owner)) = found else {
        let event = attempted(call, REFUSED, user.map(Into::into));
        if factor == Factor::Passkey {
            let address = address(call, &challenge);
            return Err(charge::refuse(call, address, event, Reason::InvalidCode).await?);
        }
        return Err(charge::wrong(call, event).await?);
    };
    charge::refund(call, &charged).await?;
    if let (Factor::EmailCode | Factor::SmsCode, Purpose::SignIn(sign_in)) =
        (factor, &challenge.question.purpose)
    {
        let mut db = call.db().read().await?;
        let contacts = contacts::list_all(&mut db, id.into()).await?;
        drop(db);
        let is_asked = |contact: &&Contact| {
            let channel = Channel::of_factor(factor);
            contact.serves(contact::Purpose::Login) && Channel::of(contact.kind()) == Some(channel)
        };
        let asked_at = contacts.iter().filter(is_asked).filter_map(Recipient::of);
        let (asked, address) = (sign_in.identifier.clone(), address(call, &challenge));
        let kind = (message::Kind::SignInCode, sign_in.known_device);
        charge::received(call, &Asked::Message(asked), kind, asked_at, address).await?;
    }
    Ok(Answered {
        challenge,
        owner,
        factor,
        credential,
        digest,
        spent,
    })
}

impl Answered {
    /// Uses the answer up, in the transaction of what it leads to: of all who come with it at the same
    /// time, one succeeds.
    pub(in crate::grpc) async fn redeem(&self, tx: &mut Write, call: &Call) -> Result<()> {
        let (user, now) = (self.owner.id, call.now);
        if !challenges::redeem(tx, &self.digest, now).await? {
            return Err(Error::Unauthenticated(Reason::ChallengeEnded));
        }
        let is_taken = match &self.spent {
            Spent::Nothing => true,
            Spent::Step(id, step) => factors::use_step(tx, user, *id, *step, now).await?,
            Spent::RecoveryCode(digest) => {
                let left = factors::use_recovery_code(tx, user, digest, now).await?;
                if let Some(left) = left.filter(|left| *left <= recovery_code::FEW) {
                    let event = call.event_of("credential.recovery_codes_low");
                    let event = event.about_account(user).detail("remaining", left);
                    events::append(tx, &event).await?;
                }
                left.is_some()
            }
            Spent::Passkey(both) => {
                let (old, new) = &**both;
                let material = serde_json::to_vec(new).map_err(Error::internal)?;
                let parameters = Parameters::Passkey(new.details.clone());
                factors::use_passkey(tx, user, old, &material, &parameters, now).await?
            }
        };
        if is_taken {
            Ok(())
        } else {
            Err(Error::Unauthenticated(Reason::InvalidCode))
        }
    }
}

/// The type of the event of a wrong answer.
const REFUSED: &str = "challenge.refused";

/// The open challenge of a name that this caller opened.
async fn find(call: &Call, name: &str) -> Result<Option<(Digest, Challenge)>> {
    let secret = name
        .strip_prefix("challenges/")
        .and_then(|text| Secret::parse(secret::Kind::Challenge, text));
    let Some(secret) = secret else {
        return Ok(None);
    };
    let digest = secret.digest();
    let found = challenges::find(&mut call.db().read().await?, &digest, call.now).await?;
    let is_for_caller = |challenge: &Challenge| {
        let is_its_session = match challenge.question.purpose {
            Purpose::StepUp(session) => call.caller.session() == Some(session),
            Purpose::SignIn(_) => true,
        };
        is_its_session && challenge.opener == call.caller.uuid()
    };
    Ok(found
        .filter(is_for_caller)
        .map(|challenge| (digest, challenge)))
}

/// What kind of answer it is, if the challenge asks for one like this.
fn factor(challenge: &Challenge, answer: &Answer) -> Result<Factor> {
    let (field, kinds): (_, &[Factor]) = match answer {
        Answer::TotpCode(_) => ("totp_code", &[Factor::Totp]),
        Answer::RecoveryCode(_) => ("recovery_code", &[Factor::RecoveryCode]),
        Answer::PasskeyResponseJson(_) => ("passkey_response_json", &[Factor::Passkey]),
        Answer::Code(_) => ("code", &[Factor::EmailCode, Factor::SmsCode]),
    };
    let asked = &challenge.question.methods;
    kinds
        .iter()
        .find(|kind| asked.contains(kind))
        .copied()
        .ok_or_else(|| Error::field(field, "is not among the methods of the challenge"))
}

/// Whether it is for the passkey to say who answers.
fn asks_anybody(challenge: &Challenge) -> bool {
    match &challenge.question.purpose {
        Purpose::SignIn(sign_in) => sign_in.identifier.is_empty(),
        Purpose::StepUp(_) => false,
    }
}

fn payer(call: &Call, challenge: &Challenge) -> Payer {
    let config = &call.app().config;
    Payer {
        subject: challenge.subject(),
        rule: if challenge.is_first_step() {
            config.account_throttle()
        } else {
            config.second_factor_throttle()
        },
        device: challenge.known_device(),
        address: address(call, challenge),
    }
}

/// Where the person is: a frontend, which answers for people, has said so in the beginning.
fn address(call: &Call, challenge: &Challenge) -> Option<IpAddr> {
    match &challenge.question.purpose {
        Purpose::SignIn(sign_in) if call.caller.holds("sessions.create") => sign_in.device.address,
        _ => call.address,
    }
}

/// Whether the answer is right: what it was given with, and what it uses up.
async fn check(
    call: &Call,
    challenge: &Challenge,
    digest: &Digest,
    user: UserId,
    stored: &[Stored],
    answer: &Answer,
) -> Result<Option<(Option<CredentialId>, Spent)>> {
    let of_kind = |kind: Kind| stored.iter().filter(move |stored| stored.kind == kind);
    Ok(match answer {
        Answer::TotpCode(code) => of_kind(Kind::Totp).find_map(|stored| {
            let step = totp::open(call, user, stored)?.check(code, call.now, stored.used_step)?;
            Some((Some(stored.id), Spent::Step(stored.id, step)))
        }),
        Answer::RecoveryCode(typed) => match RecoveryCode::parse(typed) {
            None => None,
            Some(code) => {
                let digest = code.digest(user, &call.app().keys.codes);
                let mut db = call.db().read().await?;
                let found = factors::find_recovery_code(&mut db, user, &digest).await?;
                found.map(|id| (Some(id), Spent::RecoveryCode(digest)))
            }
        },
        Answer::PasskeyResponseJson(response) => {
            let ours = call.app().passkeys.as_deref();
            let ceremony = challenge.question.ceremony.as_deref();
            ours.zip(ceremony).and_then(|(ours, ceremony)| {
                let passkeys = factors::passkeys(stored);
                let keys: Vec<Passkey> = passkeys.iter().map(|(_, key)| key.clone()).collect();
                let new = ours.check(ceremony, response, &keys)?;
                let (old, _) = passkeys.into_iter().find(|(_, key)| key.id() == new.id())?;
                Some((Some(old.id), Spent::Passkey(Box::new((old.clone(), new)))))
            })
        }
        Answer::Code(typed) => {
            let sent = challenge.question.code.as_ref();
            let key = &call.app().keys.codes;
            let is_right = sent.is_some_and(|sent| challenge::is_code(typed, digest, key, sent));
            is_right.then_some((None, Spent::Nothing))
        }
    })
}
