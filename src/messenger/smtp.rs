//! Messages as e-mails, to a mail server over TLS.
//!
//! A connection for each: the library would keep one on which an answer is still to come, and take that for
//! the answer to the next message.

use std::{path::Path, time::Duration};

use lettre::{
    Address, AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{
        Mailbox, MultiPart,
        header::{HeaderName, HeaderValue},
    },
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, Tls, TlsParameters},
        response::{Category, Code, Detail, Severity},
    },
};
use tokio::time::timeout;

use super::Failure;
use crate::config::{self, Smtp};

pub struct Mailer {
    transport: AsyncSmtpTransport<Tokio1Executor>,
    from: Mailbox,
    patience: Duration,
}

impl Mailer {
    /// An error is a sentence for the operator.
    pub fn new(settings: &Smtp) -> Result<Self, String> {
        let from: Mailbox = settings
            .from
            .parse()
            .map_err(|error| format!("setting `smtp.from`: {error}"))?;
        let tls = tls(settings).map_err(|error| format!("smtp: {error}"))?;
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&settings.host)
            .port(settings.port)
            .timeout(Some(Duration::from_secs(settings.timeout_s)))
            .tls(tls);
        if let (Some(name), Some(file)) = (&settings.username, &settings.password_file) {
            let password = config::read_file(file)?;
            let password = password.trim_end_matches(['\r', '\n']).to_owned();
            builder = builder.credentials(Credentials::new(name.clone(), password));
        }
        Ok(Self {
            transport: builder.build(),
            from,
            patience: Duration::from_secs(settings.timeout_s),
        })
    }

    /// Hands one e-mail over. However often it is tried, its id is the same.
    pub async fn send(
        &self,
        id: &str,
        address: &str,
        subject: &str,
        text: &str,
        html: &str,
    ) -> Result<(), Failure> {
        let to: Address = address
            .parse()
            .map_err(|_| Failure::for_good("an address that no mail server takes"))?;
        let domain = self.from.email.domain();
        let message = Message::builder()
            .message_id(Some(format!("<{id}@{domain}>")))
            .from(self.from.clone())
            .to(Mailbox::new(None, to))
            .subject(subject)
            // RFC 3834: nobody's absence is to be told to it.
            .raw_header(HeaderValue::new(
                HeaderName::new_from_ascii_str("Auto-Submitted"),
                "auto-generated".to_owned(),
            ))
            .multipart(MultiPart::alternative_plain_html(
                text.to_owned(),
                html.to_owned(),
            ))
            .map_err(|error| Failure::for_good(format!("cannot be written as a mail: {error}")))?;
        // The library's own time-out is over once there is a connection.
        let Ok(sent) = timeout(self.patience, self.transport.send(message)).await else {
            return Err(Failure::for_now("the mail server took too long"));
        };
        sent.map(drop).map_err(|error| {
            // What the server says may hold the address.
            let text = match error.status() {
                Some(code) => format!("the mail server answered {code}"),
                None => error.to_string(),
            };
            match error.status() {
                Some(code) if error.is_permanent() && !is_about_us(code) => Failure::for_good(text),
                _ => Failure::for_now(text),
            }
        })
    }
}

/// STARTTLS or TLS, and nothing else.
fn tls(settings: &Smtp) -> Result<Tls, String> {
    let mut builder = TlsParameters::builder(settings.host.clone());
    if let Some(file) = &settings.ca_file {
        for authority in authorities(file)? {
            builder = builder.add_root_certificate(authority);
        }
    }
    let parameters = builder.build_rustls().map_err(|error| error.to_string())?;
    Ok(match settings.security.as_str() {
        "tls" => Tls::Wrapper(parameters),
        _ => Tls::Required(parameters),
    })
}

fn authorities(file: &Path) -> Result<Vec<Certificate>, String> {
    let text = config::read_file(file)?;
    let blocks = config::pem_blocks(&text);
    if blocks.is_empty() {
        return Err(format!("no certificate in {}", file.display()));
    }
    let parse = |block: &String| Certificate::from_pem(block.as_bytes());
    let parsed: Result<Vec<Certificate>, _> = blocks.iter().map(parse).collect();
    parsed.map_err(|error| format!("{}: {error}", file.display()))
}

/// Whether a refusal (RFC 4954) is of our own name and password and no fault of the message's.
fn is_about_us(code: Code) -> bool {
    let is = |category, detail| {
        code == Code::new(Severity::PermanentNegativeCompletion, category, detail)
    };
    is(Category::Unspecified3, Detail::Zero)
        || is(Category::Unspecified3, Detail::Four)
        || is(Category::Unspecified3, Detail::Five)
        || is(Category::Unspecified3, Detail::Eight)
}
