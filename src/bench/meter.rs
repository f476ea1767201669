//! What the server and its database use, as they account for it themselves.

use std::{fs, str::FromStr, time::Duration};

use http::Uri;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Reads the metrics of a server, and the processor time of a PostgreSQL on this machine.
pub struct Meter {
    authority: String,
    database: Option<u32>,
}

/// How long the answer may take; a busy server answers late.
const PATIENCE: Duration = Duration::from_secs(30);

/// Processor time in seconds since the start, and memory in bytes now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    pub server_s: f64,
    pub database_s: Option<f64>,
    pub resident_bytes: f64,
}

impl Used {
    pub fn since(&self, before: &Self) -> Self {
        Self {
            server_s: self.server_s - before.server_s,
            database_s: self
                .database_s
                .zip(before.database_s)
                .map(|(now, then)| now - then),
            resident_bytes: self.resident_bytes,
        }
    }
}

impl Meter {
    pub fn new(ops_url: &str, database: Option<u32>) -> Result<Self, String> {
        let url: Uri = ops_url
            .parse()
            .map_err(|error| format!("{ops_url}: {error}"))?;
        if url.scheme_str() != Some("http") {
            return Err(format!(
                "{ops_url}: the operations port speaks http without TLS"
            ));
        }
        let authority = url
            .authority()
            .ok_or_else(|| format!("{ops_url}: no host"))?;
        Ok(Self {
            authority: authority.to_string(),
            database,
        })
    }

    pub async fn read(&self) -> Result<Used, String> {
        let metrics = self.metrics().await?;
        Ok(Used {
            server_s: self.value(&metrics, "process_cpu_seconds_total")?,
            database_s: self.database.map(database_s).transpose()?,
            resident_bytes: self.value(&metrics, "process_resident_memory_bytes")?,
        })
    }

    /// How many passwords the server hashes at once.
    pub async fn hash_lanes(&self) -> Result<usize, String> {
        self.value(&self.metrics().await?, "accountd_hash_lanes")
    }

    fn value<T: FromStr>(&self, metrics: &str, name: &str) -> Result<T, String> {
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.parse().ok())
            .ok_or_else(|| format!("{} has no metric {name}", self.authority))
    }

    async fn metrics(&self) -> Result<String, String> {
        let metrics = tokio::time::timeout(PATIENCE, self.get_metrics()).await;
        let metrics = metrics.unwrap_or_else(|late| Err(late.into()));
        metrics.map_err(|error| format!("metrics of {}: {error}", self.authority))
    }

    async fn get_metrics(&self) -> Result<String, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let request = Request::get("/metrics").header("host", &self.authority);
        let response = sender
            .send_request(request.body(Empty::<Bytes>::new())?)
            .await?;
        let body = response.into_body().collect().await?.to_bytes();
        Ok(String::from_utf8(body.to_vec())?)
    }
}

/// Linux counts processor time in hundredths of a second.
const TICKS_PER_S: f64 = 100.0;

/// Processor time of a process, its children, and their children that have ended.
fn database_s(first: u32) -> Result<f64, String> {
    let processes = fs::read_dir("/proc").map_err(|error| format!("/proc: {error}"))?;
    let mut total = None;
    for process in processes.flatten() {
        let Ok(stat) = fs::read_to_string(process.path().join("stat")) else {
            continue;
        };
        // The second field is a name in parentheses; those after it are 3 and up.
        let Some((head, tail)) = stat.rsplit_once(')') else {
            continue;
        };
        let fields: Vec<f64> = tail
            .split_whitespace()
            .skip(1)
            .map(|field| field.parse().unwrap_or_default())
            .collect();
        let field = |number: usize| fields.get(number - 4).copied().unwrap_or_default();
        let is_first = head.split(' ').next() == Some(&first.to_string());
        if is_first {
            // Its own, and that of its ended children.
            *total.get_or_insert(0.0) += (14..=17).map(field).sum::<f64>();
        } else if (field(4) - f64::from(first)).abs() < 0.5 {
            *total.get_or_insert(0.0) += field(14) + field(15);
        }
    }
    total
        .map(|ticks: f64| ticks / TICKS_PER_S)
        .ok_or_else(|| format!("no process {first}"))
}
