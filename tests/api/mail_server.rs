//! Somebody's mail server: SMTP over TLS, with whatever it has to say to a message.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use accountd::config::Config;
use data_encoding::BASE64;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncWrite, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::Notify,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use crate::authority::Authority;

/// A message as it came.
#[derive(Clone, Debug)]
pub struct Mail {
    pub from: String,
    pub to: Vec<String>,
    pub data: String,
}

impl Mail {
    /// The lines of the head, with what continues them.
    pub fn headers(&self) -> Vec<String> {
        let (head, _) = self.data.split_once("\r\n\r\n").expect("a head");
        head.replace("\r\n ", " ")
            .split("\r\n")
            .map(str::to_owned)
            .collect()
    }

    pub fn header(&self, name: &str) -> String {
        let headers = self.headers();
        let mut values = headers
            .iter()
            .filter_map(|line| line.strip_prefix(&format!("{name}: ")));
        let value = values
            .next()
            .unwrap_or_else(|| panic!("{name} in {headers:?}"));
        assert_eq!(values.next(), None, "{name} twice");
        value.to_owned()
    }

    /// A part of the body, decoded.
    pub fn part(&self, kind: &str) -> String {
        let (_, rest) = self
            .data
            .split_once(&format!("Content-Type: {kind}"))
            .expect(kind);
        let (head, rest) = rest.split_once("\r\n\r\n").expect("a head");
        let body = rest.split("\r\n--").next().expect("a body");
        if head.contains("quoted-printable") {
            let bytes = quoted_printable(body);
            String::from_utf8(bytes).expect("UTF-8")
        } else if head.contains("base64") {
            let bytes = BASE64
                .decode(body.replace("\r\n", "").as_bytes())
                .expect("base64");
            String::from_utf8(bytes).expect("UTF-8")
        } else {
            body.to_owned()
        }
    }

    pub fn text(&self) -> String {
        self.part("text/plain")
    }

    /// The 8 digits in it.
    pub fn code(&self) -> String {
        let text = self.text();
        let digits: String = text.chars().filter(|c| *c != ' ').collect();
        let runs = digits.split(|c: char| !c.is_ascii_digit());
        let mut codes = runs.filter(|run| run.len() == 8);
        codes
            .next()
            .unwrap_or_else(|| panic!("a code in {text}"))
            .to_owned()
    }

    /// The page that its link leads to, and what stands behind `#`, by name.
    pub fn link(&self) -> (String, HashMap<String, String>) {
        let text = self.text();
        let word = text
            .split_whitespace()
            .find(|word| word.starts_with("http"));
        let link = word.unwrap_or_else(|| panic!("a link in {text}"));
        let (page, needs) = link.split_once('#').expect("a fragment");
        let pairs = needs.split('&').filter_map(|pair| pair.split_once('='));
        let needs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        (page.to_owned(), needs.collect())
    }
}

fn quoted_printable(text: &str) -> Vec<u8> {
    let text = text.replace("=\r\n", "");
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'=' {
            let hex = std::str::from_utf8(&after[..2]).expect("hex");
            bytes.push(u8::from_str_radix(hex, 16).expect("hex"));
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    bytes
}

/// What a server does with the next messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Manner {
    Takes,
    /// Answers this to the message itself.
    Says(&'static str),
    /// Answers this to whoever authenticates.
    Refuses(&'static str),
    /// Reads it and says nothing.
    IsSilent,
    /// Answers this to the recipient.
    RefusesRecipient(&'static str),
    /// Offers no TLS.
    IsPlain,
}

pub struct MailServer {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    mails: Mutex<Vec<Mail>>,
    /// Those besides that were offered and not taken.
    refused: Mutex<Vec<Mail>>,
    /// How many of them a test has looked at.
    seen: Mutex<usize>,
    manner: Mutex<Manner>,
    logins: Mutex<Vec<String>>,
    came: Notify,
}

impl MailServer {
    /// With STARTTLS, or with TLS from the first byte.
    pub async fn new(authority: &Authority, is_implicit: bool) -> Self {
        let pair = authority.server();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(pair.chain(), pair.private())
            .expect("a certificate");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            mails: Mutex::default(),
            refused: Mutex::default(),
            seen: Mutex::default(),
            manner: Mutex::new(Manner::Takes),
            logins: Mutex::default(),
            came: Notify::new(),
        });
        let serving = Arc::clone(&shared);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("accepted");
                let (acceptor, shared) = (acceptor.clone(), Arc::clone(&serving));
                // Whoever has heard enough may go in the middle.
                tokio::spawn(async move {
                    let _ = if is_implicit {
                        secured(stream, &acceptor, &shared, true).await
                    } else {
                        plain(stream, &acceptor, &shared).await
                    };
                });
            }
        });
        Self {
            address,
            shared,
            task,
        }
    }

    /// Has a server send its mails here.
    pub fn is_used(&self, config: &mut Config, authority: &Authority) {
        std::fs::create_dir_all(&config.data_dir).expect("a folder");
        let ca_file = config.data_dir.join("mail.pem");
        std::fs::write(&ca_file, authority.pem()).expect("written");
        config.messages.email = Some("smtp".to_owned());
        "localhost".clone_into(&mut config.smtp.host);
        config.smtp.port = self.address.port();
        "Example <no-reply@id.example>".clone_into(&mut config.smtp.from);
        config.smtp.ca_file = Some(ca_file);
        config.smtp.timeout_s = 2;
    }

    pub fn behave(&self, manner: Manner) {
        *self.shared.manner.lock().expect("not poisoned") = manner;
    }

    /// The names and passwords of those who authenticated.
    pub fn logins(&self) -> Vec<String> {
        self.shared.logins.lock().expect("not poisoned").clone()
    }

    /// Everything that was offered and not taken.
    pub fn refused(&self) -> Vec<Mail> {
        self.shared.refused.lock().expect("not poisoned").clone()
    }

    /// Everything that came.
    pub fn mails(&self) -> Vec<Mail> {
        self.shared.mails.lock().expect("not poisoned").clone()
    }

    /// The next message, when it comes.
    pub async fn next(&self) -> Mail {
        let patience = Duration::from_mins(1);
        tokio::time::timeout(patience, self.wait())
            .await
            .expect("no mail came")
    }

    async fn wait(&self) -> Mail {
        loop {
            let came = self.shared.came.notified();
            {
                let mut seen = self.shared.seen.lock().expect("not poisoned");
                let mails = self.shared.mails.lock().expect("not poisoned");
                if let Some(mail) = mails.get(*seen) {
                    *seen += 1;
                    return mail.clone();
                }
            }
            came.await;
        }
    }

    /// The next message to an address.
    pub async fn next_to(&self, address: &str) -> Mail {
        let mail = self.next().await;
        assert_eq!(mail.to, [address], "{mail:?}");
        mail
    }
}

impl Drop for MailServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn plain(stream: TcpStream, acceptor: &TlsAcceptor, shared: &Shared) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.write_all(b"220 mail.example ESMTP\r\n").await?;
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let is_plain = *shared.manner.lock().expect("not poisoned") == Manner::IsPlain;
        let answer = match line.trim_end() {
            // And takes what anybody sends in the clear.
            ehlo if ehlo.starts_with("EHLO") && is_plain => {
                stream
                    .write_all(b"250-mail.example\r\n250 AUTH PLAIN\r\n")
                    .await?;
                return talk(&mut stream, shared).await;
            }
            ehlo if ehlo.starts_with("EHLO") => "250-mail.example\r\n250 STARTTLS\r\n",
            "STARTTLS" => {
                stream.write_all(b"220 go ahead\r\n").await?;
                return secured(stream.into_inner(), acceptor, shared, false).await;
            }
            _ => "530 TLS first\r\n",
        };
        stream.write_all(answer.as_bytes()).await?;
    }
}

async fn secured(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    shared: &Shared,
    greets: bool,
) -> std::io::Result<()> {
    let mut stream = BufReader::new(acceptor.accept(stream).await?);
    if greets {
        stream.write_all(b"220 mail.example ESMTP\r\n").await?;
    }
    talk(&mut stream, shared).await
}

async fn talk<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    shared: &Shared,
) -> std::io::Result<()> {
    let mut mail = Mail {
        from: String::new(),
        to: Vec::new(),
        data: String::new(),
    };
    let mut line = String::new();
    loop {
        line.clear();
        if stream.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let command = line.trim_end();
        let path = |prefix: &str| {
            let rest = command.strip_prefix(prefix)?.strip_prefix('<')?;
            Some(rest.split('>').next().unwrap_or_default().to_owned())
        };
        let manner = shared.manner.lock().expect("not poisoned").clone();
        let answer = if command.starts_with("EHLO") {
            "250-mail.example\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 AUTH PLAIN\r\n".to_owned()
        } else if let Some(login) = command.strip_prefix("AUTH PLAIN ") {
            let login = BASE64.decode(login.as_bytes()).expect("base64");
            let login = String::from_utf8(login).expect("UTF-8").replace('\0', ":");
            shared.logins.lock().expect("not poisoned").push(login);
            match manner {
                Manner::Refuses(answer) => format!("{answer}\r\n"),
                _ => "235 welcome\r\n".to_owned(),
            }
        } else if let Some(from) = path("MAIL FROM:") {
            mail.from = from;
            mail.to.clear();
            "250 ok\r\n".to_owned()
        } else if let Some(to) = path("RCPT TO:") {
            mail.to.push(to);
            match manner {
                Manner::RefusesRecipient(answer) => format!("{answer}\r\n"),
                _ => "250 ok\r\n".to_owned(),
            }
        } else if command == "DATA" {
            stream.write_all(b"354 go ahead\r\n").await?;
            mail.data = data(stream).await?;
            match manner {
                Manner::Says(answer) => {
                    shared
                        .refused
                        .lock()
                        .expect("not poisoned")
                        .push(mail.clone());
                    format!("{answer}\r\n")
                }
                Manner::IsSilent => {
                    shared
                        .refused
                        .lock()
                        .expect("not poisoned")
                        .push(mail.clone());
                    std::future::pending().await
                }
                _ => {
                    shared
                        .mails
                        .lock()
                        .expect("not poisoned")
                        .push(mail.clone());
                    shared.came.notify_waiters();
                    "250 taken\r\n".to_owned()
                }
            }
        } else if command == "QUIT" {
            return stream.write_all(b"221 bye\r\n").await;
        } else {
            "250 ok\r\n".to_owned()
        };
        stream.write_all(answer.as_bytes()).await?;
    }
}

/// What comes before the line with a dot.
async fn data<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> std::io::Result<String> {
    let mut data = String::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        if line == ".\r\n" || line.is_empty() {
            return Ok(data);
        }
        data.push_str(line.strip_prefix('.').unwrap_or(&line));
    }
}
