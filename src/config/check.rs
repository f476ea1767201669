//! What a setting may be that its type cannot say.

use super::{Config, DatabaseUrl, Messages, sources::leaves};
use crate::domain::network;

/// What is promised or would harm if there were more of it.
const AT_MOST: [(&str, i64); 17] = [
    ("break_glass.unsealed_s", 86_400),
    ("elevation.request_s", 604_800),
    ("four_eyes.change_s", 604_800),
    ("limits.drain_timeout_s", 25),
    ("messages.revert_lifetime_s", 2_592_000),
    ("outbound.timeout_s", 10),
    ("passwords.reset_lifetime_s", 86_400),
    ("sessions.aal2_lifetime_s", 86_400),
    ("sessions.refresh_replay_s", 60),
    ("sign_in.challenge_lifetime_s", 600),
    ("sign_in.contact_code_lifetime_s", 600),
    ("sign_in.contact_link_lifetime_s", 86_400),
    ("sign_in.enrolment_lifetime_s", 3_600),
    ("smtp.timeout_s", 60),
    ("tls.reload_interval_s", 3_600),
    ("tokens.max_bytes", 8_192),
    ("webhook.timeout_s", 60),
];

impl Config {
    /// What the types cannot say. An error is a sentence for the operator.
    pub(super) fn check(&self) -> Result<(), String> {
        self.algorithm()?;
        self.proxies()?;
        self.outbound.allowed()?;
        self.outbound.denied()?;
        self.outbound.hosts()?;
        self.cost()
            .params()
            .map_err(|error| format!("hashing: {error}"))?;
        self.check_numbers()?;
        self.four_eyes.read()?;
        if self.tls.certificate_file.is_some() != self.tls.key_file.is_some() {
            return Err("`tls.certificate_file` and `tls.key_file` go together".to_owned());
        }
        if self.tls.client_ca_file.is_some() && self.tls.certificate_file.is_none() {
            return Err("`tls.client_ca_file` needs `tls.certificate_file`".to_owned());
        }
        if self.tls.client_crl_file.is_some() && self.tls.client_ca_file.is_none() {
            return Err("`tls.client_crl_file` needs `tls.client_ca_file`".to_owned());
        }
        if !["none", "required"].contains(&self.passkeys.attestation.as_str()) {
            return Err("setting `passkeys.attestation` has to be none or required".to_owned());
        }
        let origins = &self.passkeys.origins;
        if let Some(bad) = origins.iter().find(|origin| !is_origin(origin)) {
            return Err(format!(
                "`{bad}` in `passkeys.origins` is not an origin such as https://login.example"
            ));
        }
        self.check_messages()?;
        if !["text", "json"].contains(&self.log.format.as_str()) {
            return Err("setting `log.format` has to be text or json".to_owned());
        }
        let is_postgres = |url: &DatabaseUrl| {
            url.0.starts_with("postgres://") || url.0.starts_with("postgresql://")
        };
        if self
            .database_url
            .as_ref()
            .is_some_and(|url| !is_postgres(url))
        {
            return Err("setting `database_url` has to begin with postgres://".to_owned());
        }
        if let Some(url) = &self.public_url {
            check_public_url("public_url", url)?;
        }
        let origins = &self.cors.allowed_origins;
        if let Some(bad) = origins.iter().find(|origin| !is_origin(origin)) {
            return Err(format!(
                "`{bad}` in `cors.allowed_origins` is not an origin such as https://app.example"
            ));
        }
        if self.public_url.is_none() && self.listen.ip().is_unspecified() {
            return Err(format!(
                "no client can reach {}: set `public_url`, which is in every token",
                self.listen
            ));
        }
        self.check_plaintext()
    }

    /// How messages are sent, and that what is needed for it is there.
    fn check_messages(&self) -> Result<(), String> {
        let Messages { email, sms, .. } = &self.messages;
        let ways = [
            ("messages.email", email, &["smtp", "webhook", "log"][..]),
            ("messages.sms", sms, &["webhook", "log"]),
        ];
        for (key, way, known) in ways {
            let Some(way) = way.as_deref() else { continue };
            if !known.contains(&way) {
                return Err(format!("setting `{key}` has to be {}", known.join(" or ")));
            }
            if way == "log" && !self.is_of_this_machine() {
                return Err(format!(
                    "setting `{key}` cannot be log where `public_url` is not of this machine: codes do \
                     not belong into a log"
                ));
            }
            if way == "smtp" && (self.smtp.host.is_empty() || self.smtp.from.is_empty()) {
                return Err(format!("setting `{key}` needs `smtp.host` and `smtp.from`"));
            }
            if way == "webhook"
                && (self.webhook.url.is_none() || self.webhook.secret_file.is_none())
            {
                return Err(format!(
                    "setting `{key}` needs `webhook.url` and `webhook.secret_file`"
                ));
            }
        }
        if !["starttls", "tls"].contains(&self.smtp.security.as_str()) {
            return Err("setting `smtp.security` has to be starttls or tls".to_owned());
        }
        if self.smtp.username.is_some() != self.smtp.password_file.is_some() {
            return Err("`smtp.username` and `smtp.password_file` go together".to_owned());
        }
        let uses = |way: &str| email.as_deref() == Some(way) || sms.as_deref() == Some(way);
        let timeouts = [
            ("smtp", self.smtp.timeout_s),
            ("webhook", self.webhook.timeout_s),
        ];
        for (way, timeout_s) in timeouts {
            if uses(way) && self.messages.lease_s.unsigned_abs() * 9 <= timeout_s * 10 {
                return Err(format!(
                    "setting `messages.lease_s` has to be well above `{way}.timeout_s`"
                ));
            }
        }
        if self.retention.identifiers_s < self.messages.revert_lifetime_s {
            return Err(
                "setting `retention.identifiers_s` has to be at least `messages.revert_lifetime_s`: \
                 what is taken back has to be free"
                    .to_owned(),
            );
        }
        if self.sign_in.contact_link_lifetime_s < self.sign_in.contact_code_lifetime_s {
            return Err(
                "setting `sign_in.contact_link_lifetime_s` has to be at least \
                 `sign_in.contact_code_lifetime_s`"
                    .to_owned(),
            );
        }
        match &self.messages.pages_url {
            Some(url) => check_public_url("messages.pages_url", url),
            None => Ok(()),
        }
    }

    /// Whether nobody on another machine is to use this installation.
    fn is_of_this_machine(&self) -> bool {
        match &self.public_url {
            None => network::is_loopback(self.listen.ip()),
            Some(url) => url::Url::parse(url).is_ok_and(|url| network::is_of_this_machine(&url)),
        }
    }

    /// A limit of 0 would be none, or would let nothing through; and some are promises.
    fn check_numbers(&self) -> Result<(), String> {
        let may_be_0 = [
            "hashing.lanes",
            "messages.address_free",
            "sessions.refresh_replay_s",
            "throttle.account_free",
            "throttle.network_free",
        ];
        for (key, value) in leaves(self) {
            let Ok(number) = value.parse::<i64>() else {
                continue;
            };
            let least = i64::from(!may_be_0.contains(&key.as_str()));
            if number < least {
                return Err(format!("setting `{key}` has to be at least {least}"));
            }
            let most = AT_MOST.iter().find(|(bounded, _)| *bounded == key);
            if let Some((_, most)) = most.filter(|(_, most)| number > *most) {
                return Err(format!("setting `{key}` has to be at most {most}"));
            }
        }
        Ok(())
    }

    /// Passwords and tokens do not cross a network in the clear by oversight.
    fn check_plaintext(&self) -> Result<(), String> {
        let exposed = [Some(self.listen), self.private_listen]
            .into_iter()
            .flatten()
            .find(|address| !network::is_loopback(address.ip()));
        match exposed {
            Some(address) if self.tls.certificate_file.is_none() && !self.insecure_plaintext => {
                Err(format!(
                    "{address} can be reached from other machines: set `tls.certificate_file`, or \
                     --insecure-plaintext if a proxy in front ends TLS"
                ))
            }
            _ => Ok(()),
        }
    }
}

/// The issuer is compared byte by byte (RFC 8414 section 2): no query, no fragment, no final slash.
fn check_public_url(key: &str, url: &str) -> Result<(), String> {
    let parsed: Result<http::Uri, _> = url.parse();
    let is_good = parsed.is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some()
            && uri.query().is_none()
    });
    if is_good && !url.ends_with('/') && !url.contains('#') {
        return Ok(());
    }
    Err(format!(
        "setting `{key}` has to be like https://id.example, without a final slash"
    ))
}

fn is_origin(origin: &str) -> bool {
    check_public_url("", origin).is_ok() && origin.matches('/').count() == 2
}
