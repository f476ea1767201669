//! Where the values of settings come from, how they are shown, and what is said of those that cannot be
//! read.

use std::{collections::HashMap, fmt::Write as _, path::PathBuf};

use figment::{
    Figment, Metadata, Profile, Provider,
    providers::{Format as _, Serialized, Toml},
    value::{Dict, Map, Value},
};

use super::{Config, Docs, Log, SECTIONS, mask_password};

/// Where to look for settings besides the defaults.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// A file that has to be there; without it `accountd.toml` is read if it is.
    pub file: Option<PathBuf>,
    /// Variables named `ACCOUNTD_…`.
    pub environment: Vec<(String, String)>,
    /// What flags set, by key.
    pub flags: HashMap<&'static str, serde_json::Value>,
}

const DEFAULT_FILE: &str = "accountd.toml";
const PREFIX: &str = "ACCOUNTD_";

/// Settings and where each came from.
pub struct Loaded {
    pub config: Config,
    figment: Figment,
}

impl Sources {
    /// Reads and checks all settings. An error is a sentence for the operator.
    pub fn load(self) -> Result<Loaded, String> {
        let file = match self.file {
            Some(file) if !file.is_file() => {
                return Err(format!("there is no configuration file {}", file.display()));
            }
            Some(file) => Some(file),
            None => Some(PathBuf::from(DEFAULT_FILE)).filter(|file| file.is_file()),
        };
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        if let Some(file) = file {
            figment = figment.merge(Toml::file_exact(file));
        }
        figment = figment
            .merge(Environment(self.environment))
            .merge(Flags(self.flags));
        let config: Config = figment.extract().map_err(|error| explain(&error))?;
        config.check()?;
        Ok(Loaded { config, figment })
    }
}

impl Loaded {
    /// One line for each setting: key, value, where it came from.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for (key, value) in leaves(&self.config) {
            let source = self
                .figment
                .find_metadata(&key)
                .map_or("default".to_owned(), |found| {
                    match found.source.as_ref().and_then(figment::Source::file_path) {
                        Some(file) => file.display().to_string(),
                        None if found.name == DEFAULTS => "default".to_owned(),
                        None => {
                            let keys: Vec<&str> = key.split('.').collect();
                            found.interpolate(&Profile::Default, &keys)
                        }
                    }
                });
            let value = if key == "database_url" {
                mask_password(&value)
            } else {
                value
            };
            let _ = writeln!(text, "{key} = {value}  # {source}");
        }
        text
    }
}

/// How figment names the layer of defaults.
const DEFAULTS: &str = "accountd::config::Config";

/// A file with every setting, explained, at its default, commented out.
pub fn example() -> String {
    let mut text = String::from(
        "# Settings of accountd, at their defaults. Also set by the environment, ACCOUNTD_LISTEN or\n\
         # ACCOUNTD_TOKENS__ALGORITHM, and the first few by flags of `accountd serve`.\n",
    );
    let values: HashMap<String, String> = leaves(&Config::default()).into_iter().collect();
    let mut section = |heading: &str, prefix: &str, docs: Docs| {
        let _ = write!(text, "{heading}");
        for (field, lines) in docs {
            let Some(value) = values.get(&format!("{prefix}{field}")) else {
                continue;
            };
            for line in *lines {
                let _ = writeln!(text, "#{line}");
            }
            let _ = writeln!(text, "#{field} = {value}");
        }
    };
    section("\n", "", Config::DOCS);
    for (name, docs) in SECTIONS.into_iter().chain([("log", Log::DOCS)]) {
        let about = Config::DOCS.iter().find(|(field, _)| *field == name);
        let about = about.map_or("", |(_, lines)| lines[0]);
        section(
            &format!("\n#{about}\n[{name}]\n"),
            &format!("{name}."),
            docs,
        );
    }
    text
}

/// Every setting by its full key, as TOML writes the value, or [`UNSET`].
pub(super) fn leaves(config: &Config) -> Vec<(String, String)> {
    let mut leaves = Vec::new();
    let tree = serde_json::to_value(config).unwrap_or_default();
    for (key, value) in tree.as_object().into_iter().flatten() {
        match value {
            serde_json::Value::Object(section) => {
                leaves.extend(
                    section
                        .iter()
                        .map(|(name, v)| (format!("{key}.{name}"), toml(v))),
                );
            }
            value => leaves.push((key.clone(), toml(value))),
        }
    }
    leaves.sort_by_key(|(key, _)| (key.contains('.'), key.clone()));
    leaves
}

/// No value of TOML, so that nobody sets it by removing a `#`.
pub(super) const UNSET: &str = "(unset)";

fn toml(value: &serde_json::Value) -> String {
    if value.is_null() {
        UNSET.to_owned()
    } else {
        value.to_string()
    }
}

/// The sentence for a setting that cannot be read: what, where, and what may have been meant.
fn explain(error: &figment::Error) -> String {
    use figment::error::Kind;
    let place = error.metadata.as_ref().map_or(String::new(), |metadata| {
        match metadata
            .source
            .as_ref()
            .and_then(figment::Source::file_path)
        {
            Some(file) => format!(" in {}", file.display()),
            None => format!(" in {}", metadata.name),
        }
    });
    let path = error.path.join(".");
    match &error.kind {
        Kind::UnknownField(key, known) => {
            let closest = known.iter().max_by(|a, b| {
                strsim::jaro_winkler(key, a).total_cmp(&strsim::jaro_winkler(key, b))
            });
            let hint = closest.filter(|known| strsim::jaro_winkler(key, known) > 0.7);
            let hint = hint.map_or(String::new(), |known| format!("; did you mean `{known}`?"));
            let mut full = error.path.clone();
            full.retain(|part| part != key);
            full.push(key.clone());
            format!("unknown setting `{}`{place}{hint}", full.join("."))
        }
        // The value itself is not shown: it may be a secret.
        Kind::InvalidType(_, expected) | Kind::InvalidValue(_, expected) => {
            format!("setting `{path}`{place} has to be {expected}")
        }
        // A syntax error shows the line it is on, which may hold a secret: where it is and what is
        // wrong are its first and its last line.
        Kind::Message(text) => {
            let mut lines = text.lines().filter(|line| !line.trim().is_empty());
            let (first, last) = (lines.next().unwrap_or_default(), lines.next_back());
            let last = last.map_or(String::new(), |last| format!(": {last}"));
            format!("settings{place}: {first}{last}")
        }
        kind => format!("setting `{path}`{place}: {kind}"),
    }
}

/// Variables `ACCOUNTD_…`; a section's name is followed by two underscores. Text stays text: what a
/// variable means is decided by the type of the setting.
struct Environment(Vec<(String, String)>);

impl Provider for Environment {
    fn metadata(&self) -> Metadata {
        Metadata::named("environment").interpolater(|_, keys| {
            format!("environment {PREFIX}{}", keys.join("__").to_uppercase())
        })
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let defaults = serde_json::to_value(Config::default()).unwrap_or_default();
        let mut settings = Dict::new();
        for (name, text) in &self.0 {
            let key = name
                .trim_start_matches(PREFIX)
                .to_lowercase()
                .replace("__", ".");
            let pointer = format!("/{}", key.replace('.', "/"));
            let value = match defaults.pointer(&pointer) {
                // How compose files and charts spell a setting that is not there.
                Some(serde_json::Value::Null) if text.is_empty() => continue,
                Some(serde_json::Value::Number(_)) => text
                    .parse::<i64>()
                    .map_or_else(|_| Value::from(text.as_str()), Value::from),
                Some(serde_json::Value::Bool(_)) => text
                    .parse::<bool>()
                    .map_or_else(|_| Value::from(text.as_str()), Value::from),
                Some(serde_json::Value::Array(_)) => {
                    let items = text
                        .split(',')
                        .map(str::trim)
                        .filter(|item| !item.is_empty());
                    items.map(Value::from).collect::<Vec<Value>>().into()
                }
                _ => Value::from(text.as_str()),
            };
            insert(&mut settings, &key, value);
        }
        Ok(Profile::Default.collect(settings))
    }
}

/// What flags of the command line set.
struct Flags(HashMap<&'static str, serde_json::Value>);

impl Provider for Flags {
    fn metadata(&self) -> Metadata {
        Metadata::named("command line")
            .interpolater(|_, keys| format!("flag --{}", keys.join("-").replace('_', "-")))
    }

    fn data(&self) -> figment::Result<Map<Profile, Dict>> {
        let mut settings = Dict::new();
        for (key, value) in &self.0 {
            insert(&mut settings, key, Value::serialize(value)?);
        }
        Ok(Profile::Default.collect(settings))
    }
}

fn insert(settings: &mut Dict, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(settings.insert(key.to_owned(), value)),
        Some((section, key)) => {
            let entry = settings
                .entry(section.to_owned())
                .or_insert_with(|| Dict::new().into());
            if let Value::Dict(_, section) = entry {
                insert(section, key, value);
            }
        }
    }
}

/// Variables of this process that are settings; those for the tests are not.
pub fn environment(variables: impl Iterator<Item = (String, String)>) -> Vec<(String, String)> {
    let not_settings = ["ACCOUNTD_CONFIG"];
    variables
        .filter(|(name, _)| name.starts_with(PREFIX) && !name.starts_with("ACCOUNTD_TEST_"))
        .filter(|(name, _)| !not_settings.contains(&name.as_str()))
        .collect()
}
