//! Messages as JSON over HTTP, for gateways of text messages and mail services.
//!
//! Signed as Standard Webhooks says: `webhook-id`, `webhook-timestamp` and `webhook-signature`, which is
//! HMAC-SHA256 over the three of id, time and body. The id is the same however often a message is tried.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::hmac;
use data_encoding::BASE64;
use reqwest::{Client, StatusCode, redirect};
use serde_json::json;
use zeroize::Zeroizing;

use super::{Failure, templates::Rendered};
use crate::{
    config::{self, Webhook as Settings},
    domain::{message::Kind, message::Recipient, network},
    env::Clock,
    tls,
};

pub struct Webhook {
    client: Client,
    url: url::Url,
    key: hmac::Key,
    clock: Arc<dyn Clock>,
}

impl Webhook {
    /// An error is a sentence for the operator.
    pub fn new(settings: &Settings, clock: &Arc<dyn Clock>) -> Result<Self, String> {
        let text = settings.url.as_deref().unwrap_or_default();
        let url =
            url::Url::parse(text).map_err(|error| format!("setting `webhook.url`: {error}"))?;
        let is_here = network::is_of_this_machine(&url);
        if url.scheme() != "https" && !(url.scheme() == "http" && is_here) {
            return Err("setting `webhook.url` has to begin with https://".to_owned());
        }
        let file = settings.secret_file.as_deref();
        let file = file.ok_or("setting `webhook.secret_file` is missing")?;
        let secret = Zeroizing::new(config::read_file(file)?);
        let bytes = secret
            .trim()
            .strip_prefix("whsec_")
            .and_then(|text| BASE64.decode(text.as_bytes()).ok())
            .map(Zeroizing::new)
            .filter(|bytes| (24..=64).contains(&bytes.len()));
        let expected = "has to hold whsec_ and 24 to 64 bytes in base64";
        let bytes = bytes.ok_or_else(|| format!("{} {expected}", file.display()))?;
        let client = Client::builder()
            .tls_backend_preconfigured(tls::outgoing(settings.ca_file.as_deref(), clock)?)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .referer(false)
            .timeout(Duration::from_secs(settings.timeout_s))
            .user_agent("accountd")
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            client,
            url,
            key: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
            clock: Arc::clone(clock),
        })
    }

    /// Hands one message over: 2xx takes it, 408, 429 and 5xx ask for another try, all else refuses it.
    pub async fn send(
        &self,
        id: &str,
        kind: Kind,
        to: &Recipient,
        message: &Rendered,
    ) -> Result<(), Failure> {
        let content = match message {
            Rendered::Mail {
                subject,
                text,
                html,
            } => json!({ "subject": subject, "text": text, "html": html }),
            Rendered::Sms(text) => json!({ "text": text }),
        };
        let body = json!({
            "id": id,
            "type": kind.name(),
            "channel": to.channel.name(),
            "to": to.address,
            "content": content,
        });
        let body = body.to_string();
        let time = self.clock.now().seconds();
        let signed = format!("{id}.{time}.{body}");
        let tag = hmac::sign(&self.key, signed.as_bytes());
        let answer = self
            .client
            .post(self.url.clone())
            .header("content-type", "application/json")
            .header("webhook-id", id)
            .header("webhook-timestamp", time.to_string())
            .header(
                "webhook-signature",
                format!("v1,{}", BASE64.encode(tag.as_ref())),
            )
            .body(body)
            .send()
            .await;
        // Without the URL, which may hold what is nobody else's business.
        let answer = answer.map_err(|error| Failure::for_now(error.without_url().to_string()))?;
        let status = answer.status();
        let text = format!("the gateway answered {}", status.as_u16());
        match status {
            status if status.is_success() => Ok(()),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(Failure::for_now(text))
            }
            status if status.is_server_error() => Err(Failure::for_now(text)),
            _ => Err(Failure::for_good(text)),
        }
    }
}
