//! Passkeys (WebAuthn Level 3): what a browser is asked for, and whether its answer is right.
//!
//! The ceremonies are the library's; here is what we ask of them. The authenticator has to verify the
//! person, so a passkey is two factors in one. Every assertion is checked against the key as it is
//! stored now, whatever the person was asked with, so that a counter that went back is noticed.
//! Invariant: an answer counts for the one challenge it was made for, from one of our origins. The
//! library draws the challenges itself (16 random bytes of the system's generator).

use data_encoding::BASE64URL_NOPAD;
use serde::{Deserialize, Serialize};
use serde_cbor_2::Value as Cbor;
use uuid::Uuid;
use webauthn_rs::prelude::{
    AttestationCaList, AttestationCaListBuilder, AttestedPasskeyRegistration,
    CreationChallengeResponse, CredentialID, DiscoverableAuthentication, DiscoverableKey,
    PasskeyRegistration, PublicKeyCredential, RegisterPublicKeyCredential, Url, Webauthn,
    WebauthnBuilder,
};
use webauthn_rs_proto::{AllowCredentials, ResidentKeyRequirement};

use super::name::UserId;

/// Most bytes of an answer that is looked at.
pub const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// What browsers know this installation by.
pub struct RelyingParty {
    webauthn: Webauthn,
    /// Makers whose authenticators alone are accepted, if that is asked for.
    roots: Option<AttestationCaList>,
    pub origins: Vec<String>,
}

/// A person's passkey as it is stored.
#[derive(Clone, Serialize, Deserialize)]
pub struct Passkey {
    key: webauthn_rs::prelude::Passkey,
    pub details: Details,
}

/// What may be shown of a passkey.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Details {
    /// The make of the authenticator, as it says itself.
    pub aaguid: Uuid,
    pub backed_up: bool,
    /// In base64url.
    pub credential_id: String,
}

/// What has to be remembered between the question and the answer of an enrolment.
#[derive(Serialize, Deserialize)]
enum Registration {
    Any(PasskeyRegistration),
    Attested(AttestedPasskeyRegistration),
}

/// A question for a browser, as JSON, and what has to be remembered of it.
pub struct Asked {
    /// PublicKeyCredentialCreationOptionsJSON or PublicKeyCredentialRequestOptionsJSON.
    pub options: String,
    pub ceremony: String,
}

/// Whom a passkey is made for.
pub struct Owner<'a> {
    pub id: UserId,
    pub username: &'a str,
    pub display_name: &'a str,
}

impl RelyingParty {
    /// `domain` is the relying party id, of which every first origin is a page; pages of further
    /// origins find it through `/.well-known/webauthn`. `roots` are PEM certificates of makers, with the
    /// AAGUIDs that are accepted of them, or any.
    pub fn new(
        domain: &str,
        name: &str,
        origins: &[String],
        roots: Option<(&[String], &[Uuid])>,
    ) -> Result<Self, String> {
        let parse = |origin: &String| {
            Url::parse(origin).map_err(|error| format!("`{origin}` is not an origin: {error}"))
        };
        let urls = origins.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
        let is_own = |url: &&Url| {
            url.domain()
                .is_some_and(|host| host == domain || host.ends_with(&format!(".{domain}")))
        };
        let own = urls
            .iter()
            .find(is_own)
            .ok_or_else(|| format!("no origin is of the domain `{domain}`"))?;
        let mut builder = WebauthnBuilder::new(domain, own)
            .map_err(|error| error.to_string())?
            .rp_name(name);
        for url in urls.iter().filter(|url| *url != own) {
            builder = builder.append_allowed_origin(url);
        }
        Ok(Self {
            webauthn: builder.build().map_err(|error| error.to_string())?,
            roots: roots
                .map(|(certificates, models)| trusted(certificates, models))
                .transpose()?,
            origins: origins.to_vec(),
        })
    }

    /// Asks for a new passkey, which should be discoverable and is none of `existing`.
    pub fn enrol(&self, owner: &Owner<'_>, existing: &[Passkey]) -> Result<Asked, String> {
        let exclude: Vec<CredentialID> = existing.iter().map(Passkey::id).collect();
        let (id, name, display) = (owner.id.0, owner.username, owner.display_name);
        let (mut question, registration) = match &self.roots {
            None => self
                .webauthn
                .start_passkey_registration(id, name, display, Some(exclude))
                .map(|(question, state)| (question, Registration::Any(state))),
            Some(roots) => self
                .webauthn
                .start_attested_passkey_registration(
                    id,
                    name,
                    display,
                    Some(exclude),
                    roots.clone(),
                    None,
                )
                .map(|(question, state)| (question, Registration::Attested(state))),
        }
        .map_err(|error| error.to_string())?;
        prefer_discoverable(&mut question);
        Ok(Asked {
            options: json(&question.public_key)?,
            ceremony: json(&registration)?,
        })
    }

    /// The passkey that a browser has made for an enrolment.
    pub fn enrolled(&self, ceremony: &str, response: &str) -> Option<Passkey> {
        let registration: Registration = serde_json::from_str(ceremony).ok()?;
        let response: RegisterPublicKeyCredential = parse(response)?;
        let key = match registration {
            Registration::Any(state) => self
                .webauthn
                .finish_passkey_registration(&response, &state)
                .ok()?,
            Registration::Attested(state) => self
                .webauthn
                .finish_attested_passkey_registration(&response, &state)
                .ok()?
                .into(),
        };
        let (aaguid, backed_up) = said_of_itself(&response)?;
        let details = Details {
            aaguid,
            backed_up,
            credential_id: BASE64URL_NOPAD.encode(key.cred_id().as_ref()),
        };
        Some(Passkey { key, details })
    }

    /// Asks for an assertion by one of `passkeys`, or by any that the browser has for us.
    pub fn ask(&self, passkeys: &[Passkey]) -> Result<Asked, String> {
        let (mut question, state) = self
            .webauthn
            .start_discoverable_authentication()
            .map_err(|error| error.to_string())?;
        question.public_key.allow_credentials = passkeys
            .iter()
            .map(|passkey| AllowCredentials {
                type_: "public-key".to_owned(),
                id: passkey.id(),
                transports: None,
            })
            .collect();
        Ok(Asked {
            options: json(&question.public_key)?,
            ceremony: json(&state)?,
        })
    }

    /// The passkey among `passkeys` that answered, with its counter as it is now, if all is right.
    pub fn check(&self, ceremony: &str, response: &str, passkeys: &[Passkey]) -> Option<Passkey> {
        let state: DiscoverableAuthentication = serde_json::from_str(ceremony).ok()?;
        let response: PublicKeyCredential = parse(response)?;
        let id = response.get_credential_id();
        let mut passkey = passkeys
            .iter()
            .find(|passkey| passkey.key.cred_id()[..] == *id)?
            .clone();
        let result = self
            .webauthn
            .finish_discoverable_authentication_v2(
                &response,
                state,
                DiscoverableKey::from(&passkey.key),
            )
            .ok()?;
        if !result.user_verified() {
            return None;
        }
        passkey.key.update_credential(&result);
        passkey.details.backed_up = result.backup_state();
        Some(passkey)
    }
}

impl Passkey {
    /// The WebAuthn credential id.
    pub fn id(&self) -> CredentialID {
        self.key.cred_id().clone()
    }
}

/// Whose passkey an answer says it is by.
pub fn owner(response: &str) -> Option<UserId> {
    let response: PublicKeyCredential = parse(response)?;
    let id = Uuid::from_slice(response.get_user_unique_id()?).ok()?;
    Some(UserId(id))
}

fn parse<T: serde::de::DeserializeOwned>(response: &str) -> Option<T> {
    if response.len() > MAX_RESPONSE_BYTES {
        return None;
    }
    serde_json::from_str(response).ok()
}

fn json(value: &impl Serialize) -> Result<String, String> {
    serde_json::to_string(value).map_err(|error| error.to_string())
}

/// A passkey that cannot be found without being named lets nobody in by itself.
fn prefer_discoverable(question: &mut CreationChallengeResponse) {
    if let Some(selection) = &mut question.public_key.authenticator_selection {
        selection.resident_key = Some(ResidentKeyRequirement::Preferred);
    }
}

/// The make of the authenticator and whether the key is backed up: from the authenticator data
/// (section 6.1), which the library has checked and does not hand out.
fn said_of_itself(response: &RegisterPublicKeyCredential) -> Option<(Uuid, bool)> {
    const FLAGS: usize = 32;
    const BACKED_UP: u8 = 1 << 4;
    const AAGUID: usize = FLAGS + 1 + 4;
    let object = serde_cbor_2::from_slice(response.response.attestation_object.as_ref()).ok()?;
    let Cbor::Map(object) = object else {
        return None;
    };
    let Cbor::Bytes(data) = object.get(&Cbor::Text("authData".to_owned()))? else {
        return None;
    };
    let flags = data.get(FLAGS)?;
    let aaguid = Uuid::from_slice(data.get(AAGUID..AAGUID + 16)?).ok()?;
    Some((aaguid, flags & BACKED_UP != 0))
}

/// Makers of authenticators, and of each the models that are accepted; all of them when none is named.
fn trusted(certificates: &[String], models: &[Uuid]) -> Result<AttestationCaList, String> {
    let broken = |error: &dyn std::fmt::Display| {
        format!("a certificate of the roots of attestation: {error}")
    };
    let mut roots = AttestationCaList::default();
    for certificate in certificates {
        let root = if models.is_empty() {
            AttestationCaList::try_from(certificate.as_bytes()).map_err(|error| broken(&error))?
        } else {
            let mut list = AttestationCaListBuilder::new();
            for model in models {
                let (name, names) = (model.to_string(), std::collections::BTreeMap::new());
                list.insert_device_pem(certificate.as_bytes(), *model, name, names)
                    .map_err(|error| broken(&error))?;
            }
            list.build()
        };
        roots.union(&root);
    }
    if roots.is_empty() {
        return Err("there is no root of attestation".to_owned());
    }
    Ok(roots)
}
