//! The command line: what operators type, and what they are told.

use std::{
    collections::HashMap,
    io::Write as _,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    bench, calibrate,
    config::{self, Config, Loaded, Sources},
    domain::{error, message, name::MessageId},
    env::{SystemClock, SystemRandom},
    fill,
    messenger::{
        dead,
        templates::{self, Rendered, Templates},
    },
    server::Server,
    setup::{self, Environment, Store},
    store::db::Db,
    telemetry::{self, precise},
};

#[derive(Parser)]
#[command(version, about, long_about = None)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server.
    Serve(Flags),
    /// Look at settings.
    Config {
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Measure a running server: how much it does, and how long its answers take.
    Bench(bench::Options),
    /// Find the dearest password hash that this machine has time for.
    Calibrate(calibrate::Options),
    /// Look at messages to people, and have those sent again that could not be.
    Message {
        #[command(subcommand)]
        command: MessageCommand,
    },
    /// Work on the data while the server is stopped.
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
    },
}

#[derive(Subcommand)]
enum MessageCommand {
    /// Print what a message looks like, made up.
    Preview {
        /// `contact_code`, `sign_in_code`, `password_reset`, `password_changed` or `contact_changed`.
        #[arg(long, value_parser = parse_kind)]
        kind: message::Kind,
        /// BCP 47, such as `de-CH`; the default language if there is nothing in this one.
        #[arg(long, default_value = "")]
        language: String,
        /// `text`, `html` or `sms`.
        #[arg(long, default_value = "text", value_parser = ["text", "html", "sms"])]
        part: String,
        #[command(flatten)]
        flags: Flags,
    },
    /// List the messages that could not be sent, the last first. On SQLite while the server is stopped.
    List(Flags),
    /// Have messages sent again that could not be, and are still of use: all of them, or one. On SQLite
    /// while the server is stopped.
    Redrive {
        /// The id of one message.
        #[arg(long)]
        id: Option<uuid::Uuid>,
        #[command(flatten)]
        flags: Flags,
    },
}

fn parse_kind(text: &str) -> Result<message::Kind, String> {
    message::Kind::parse(text).ok_or_else(|| {
        let known = message::Kind::ALL.map(message::Kind::name);
        format!("has to be one of {}", known.join(", "))
    })
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// Print every setting and where its value came from, secrets masked.
    Print(Flags),
    /// Print a configuration file with every setting, explained, at its default.
    Example,
}

#[derive(Subcommand)]
enum AdminCommand {
    /// Make fresh credentials for the built-in account `bootstrap`, good for 24 hours, when nobody
    /// can sign in any more.
    Recover(Flags),
    /// Fill the database with made-up users that nobody can sign in as, to measure with.
    Fill {
        /// How many users to add.
        #[arg(long, value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
        users: u64,
        /// Add to the users that there are already.
        #[arg(long)]
        add: bool,
        #[command(flatten)]
        flags: Flags,
    },
}

/// The settings that have flags; the others are in the file and the environment.
#[derive(Args)]
struct Flags {
    /// Configuration file; `accountd.toml` is read if it is there.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the database, the master key and the bootstrap credentials.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address of gRPC, gRPC-Web and HTTP/JSON.
    #[arg(long, value_name = "ADDR")]
    listen: Option<String>,
    /// A second address: RPCs for administration are then served only there.
    #[arg(long, value_name = "ADDR")]
    private_listen: Option<String>,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, value_name = "ADDR")]
    ops_listen: Option<String>,
    /// `postgres://user:password@host/database`.
    #[arg(long, value_name = "URL")]
    database_url: Option<String>,
    /// The URL under which clients reach the service: the issuer of its tokens.
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Serve without TLS beyond this machine, because a proxy in front ends it.
    #[arg(long)]
    insecure_plaintext: bool,
}

impl Flags {
    fn load(self) -> Result<Loaded, String> {
        let variables: Vec<(String, String)> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let named = variables.iter().find(|(name, _)| name == "ACCOUNTD_CONFIG");
        let file = self
            .config
            .or_else(|| named.map(|(_, file)| PathBuf::from(file)));
        let mut flags = HashMap::new();
        let mut set = |key, value: Option<String>| {
            if let Some(value) = value {
                flags.insert(key, serde_json::Value::String(value));
            }
        };
        set(
            "data_dir",
            self.data_dir.map(|dir| dir.display().to_string()),
        );
        set("listen", self.listen);
        set("private_listen", self.private_listen);
        set("ops_listen", self.ops_listen);
        set("database_url", self.database_url);
        set("public_url", self.public_url);
        if self.insecure_plaintext {
            flags.insert("insecure_plaintext", serde_json::Value::Bool(true));
        }
        Sources {
            file,
            environment: config::environment(variables.into_iter()),
            flags,
        }
        .load()
    }
}

/// Runs what the command line says.
pub fn run() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Serve(flags) => flags.load().and_then(|loaded| serve(loaded.config)),
        Command::Bench(options) => {
            runtime().and_then(|runtime| runtime.block_on(bench::run(options, print)))
        }
        Command::Calibrate(options) => calibrate::run(&options, print),
        Command::Config {
            command: ConfigCommand::Print(flags),
        } => flags.load().map(|loaded| print(&loaded.describe())),
        Command::Config {
            command: ConfigCommand::Example,
        } => {
            print(&config::example());
            Ok(())
        }
        Command::Message { command } => messages(command),
        Command::Admin {
            command: AdminCommand::Recover(flags),
        } => flags.load().and_then(|loaded| recover(&loaded.config)),
        Command::Admin {
            command: AdminCommand::Fill { users, add, flags },
        } => flags
            .load()
            .and_then(|loaded| fill(&loaded.config, users, add)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn serve(config: Config) -> Result<(), String> {
    let begin = Instant::now();
    telemetry::start_logging(&config.log)?;
    let runtime = runtime()?;
    let outcome = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).map_err(|error| error.to_string())?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(|error| error.to_string())?;
        let server = Server::start(config, &environment()).await?;
        tracing::info!(
            address = %server.address,
            ops = %server.ops_address,
            issuer = server.app.issuer,
            started_ms = u64::try_from(begin.elapsed().as_millis()).unwrap_or(u64::MAX),
            "serving"
        );
        if let Some(file) = &server.bootstrap_file {
            print(&banner(&server, &file.display().to_string()));
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        server.stop().await;
        Ok(())
    });
    // Looking up a name, or reading a file, may hang.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

fn recover(config: &Config) -> Result<(), String> {
    let issuer = config.issuer(config.listen);
    let file = runtime()?.block_on(setup::recover(config, &issuer, &environment()))?;
    print(&format!(
        "Fresh credentials of the account bootstrap are in {}\n",
        file.display()
    ));
    Ok(())
}

fn fill(config: &Config, users: u64, add: bool) -> Result<(), String> {
    let begin = Instant::now();
    runtime()?.block_on(fill::fill(config, users, add, &environment()))?;
    let time = begin.elapsed().as_secs_f64();
    let rate = precise(users) / time;
    print(&format!(
        "{users} users in {time:.1} s, {rate:.0} per second\n"
    ));
    Ok(())
}

fn messages(command: MessageCommand) -> Result<(), String> {
    match command {
        MessageCommand::Preview {
            kind,
            language,
            part,
            flags,
        } => {
            let config = flags.load()?.config;
            print(&preview(&config, kind, &language, &part)?);
            Ok(())
        }
        MessageCommand::List(flags) => {
            let config = flags.load()?.config;
            let dead = runtime()?.block_on(with_store(&config, async |db| dead::list(db).await))?;
            for message in dead {
                print(&format!(
                    "{} {} {} {} {}\n",
                    message.id.0,
                    message.create_time,
                    message.kind.name(),
                    message.attempts,
                    message.error
                ));
            }
            Ok(())
        }
        MessageCommand::Redrive { id, flags } => {
            let config = flags.load()?.config;
            let redrive =
                async |db: &Db| dead::redrive(db, id.map(MessageId), &environment()).await;
            let count = runtime()?.block_on(with_store(&config, redrive))?;
            print(&format!("{count} messages wait to be sent again\n"));
            Ok(())
        }
    }
}

fn preview(
    config: &Config,
    kind: message::Kind,
    language: &str,
    part: &str,
) -> Result<String, String> {
    let templates = Templates::new(
        config.messages.templates_dir.as_deref(),
        &config.messages.default_language,
        &config.sign_in.service_name,
    )?;
    let channel = if part == "sms" {
        message::Channel::Sms
    } else {
        message::Channel::Email
    };
    let sample = templates::sample(kind, language);
    Ok(match templates.render(&sample, channel)? {
        Rendered::Sms(text) => text + "\n",
        Rendered::Mail { html, .. } if part == "html" => html + "\n",
        Rendered::Mail { subject, text, .. } => format!("Subject: {subject}\n\n{text}\n"),
    })
}

/// Does something with the store alone.
async fn with_store<T>(
    config: &Config,
    work: impl AsyncFnOnce(&Db) -> error::Result<T>,
) -> Result<T, String> {
    let _lock = setup::take_folder(config).await?;
    let Store { db, .. } = setup::open_store(config, &environment()).await?;
    let done = work(&db).await.map_err(|error| error.to_string());
    db.close().await;
    done
}

fn environment() -> Environment {
    Environment {
        clock: Arc::new(SystemClock),
        random: Arc::new(SystemRandom),
    }
}

fn runtime() -> Result<tokio::runtime::Runtime, String> {
    // Whatever this program writes is for its own user: the database, its log, keys.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // A connection is a file, and by default there may be fewer files than connections.
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = rustix::process::Rlimit {
        current: files.maximum,
        ..files
    };
    if let Err(error) = rustix::process::setrlimit(rustix::process::Resource::Nofile, files) {
        tracing::warn!(%error, "cannot open as many files as allowed");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| format!("cannot start: {error}"))
}

/// What a new operator pastes to make the first call.
fn banner(server: &Server, file: &str) -> String {
    let (scheme, plaintext) = match server.app.config.tls.certificate_file {
        Some(_) => ("https", ""),
        None => ("http", "-plaintext "),
    };
    let (issuer, address) = (&server.app.issuer, server.address);
    format!(
        r#"
accountd is serving {issuer}

The account of the first operator is in {file}, good for 24 hours.
To make the first call as that operator, paste:

  CLIENT_ID=$(sed -n 's/.*"client_id": "\(.*\)".*/\1/p' {file})
  CLIENT_SECRET=$(sed -n 's/.*"client_secret": "\(.*\)".*/\1/p' {file})
  TOKEN=$(curl -s {scheme}://{address}/oauth2/token -u "$CLIENT_ID:$CLIENT_SECRET" -d grant_type=client_credentials | sed 's/.*"access_token":"\([^"]*\)".*/\1/')
  grpcurl {plaintext}-H "authorization: Bearer $TOKEN" {address} accountd.v1.UserService/ListUsers

"#
    )
}

fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    // Seen at once, also by a program that reads it through a pipe; gone readers are no error.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[expect(clippy::disallowed_macros, reason = "what the command is for")]
fn complain(text: &str) {
    eprintln!("accountd: {text}");
}
