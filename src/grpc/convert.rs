//! Between protobuf's types and ours.

use prost_types::{FieldMask, Struct, Timestamp as PbTimestamp, Value, value::Kind};
use serde_json::Value as Json;

use crate::domain::{
    account,
    error::{Error, Fields, Result},
    page, text,
    time::{Timestamp, Window},
    user::{MAX_ATTRIBUTES_BYTES, MAX_ATTRIBUTES_DEPTH},
};

pub(super) fn timestamp(time: Timestamp) -> PbTimestamp {
    let micros = time.micros();
    let nanos = i32::try_from(micros.rem_euclid(1_000_000) * 1000).unwrap_or(0);
    PbTimestamp {
        seconds: micros.div_euclid(1_000_000),
        nanos,
    }
}

pub(super) fn some_timestamp(time: Option<Timestamp>) -> Option<PbTimestamp> {
    time.map(timestamp)
}

/// A time that somebody sent, to the microsecond.
pub(super) fn parse_time(time: Option<&PbTimestamp>) -> Result<Option<Timestamp>, String> {
    let Some(time) = time else { return Ok(None) };
    let micros = time
        .seconds
        .checked_mul(1_000_000)
        .filter(|_| (0..1_000_000_000).contains(&time.nanos));
    let micros = micros.and_then(|micros| micros.checked_add(i64::from(time.nanos / 1000)));
    let range = Timestamp::EPOCH..=Timestamp::MAX;
    match micros
        .map(Timestamp::from_micros)
        .filter(|time| range.contains(time))
    {
        Some(time) => Ok(Some(time)),
        None => Err("must be a time between 1970 and 9999".to_owned()),
    }
}

/// What is wrong with a time that nothing is in.
pub(super) const EMPTY_WINDOW: &str = "must be after `start_time`";

/// A `start_time` and an `expire_time` that somebody sent, the second of which has to come yet; what is wrong with
/// them goes to `fields`, below `parent`.
pub(super) fn window(
    fields: &mut Fields,
    parent: &str,
    (start, end): (Option<&PbTimestamp>, Option<&PbTimestamp>),
    now: Timestamp,
) -> Window {
    let start = fields.take(&format!("{parent}start_time"), parse_time(start));
    let end = parse_time(end).and_then(|time| account::future(time, now));
    let field = format!("{parent}expire_time");
    let end = fields.take(&field, end);
    let window = Window {
        start: start.flatten(),
        end: end.flatten(),
    };
    if window.is_empty() {
        fields.refuse(&field, EMPTY_WINDOW);
    }
    window
}

pub(super) const fn seconds(seconds: i64) -> prost_types::Duration {
    prost_types::Duration { seconds, nanos: 0 }
}

/// A length of time that somebody sent, in seconds.
pub(super) fn parse_seconds(
    time: Option<&prost_types::Duration>,
    max_s: i64,
) -> Result<Option<i64>, String> {
    let Some(time) = time else { return Ok(None) };
    if time.nanos == 0 && (0..=max_s).contains(&time.seconds) {
        return Ok(Some(time.seconds));
    }
    Err(format!("must be 0 to {max_s} whole seconds"))
}

/// The etag of a resource at its `revision`.
pub(super) fn etag(revision: i64) -> String {
    format!("r{revision}")
}

/// Refuses when an etag was sent that is not the current one.
pub(super) fn require_etag(sent: &str, revision: i64, name: impl ToString) -> Result<()> {
    if sent.is_empty() || sent == etag(revision) {
        return Ok(());
    }
    Err(Error::Stale {
        name: name.to_string(),
    })
}

/// The fields an update is about: those of the mask, all writable ones for `*`, and those that are
/// set when there is no mask (AIP-134).
pub(super) fn masked(
    mask: Option<&FieldMask>,
    writable: &[&'static str],
    is_set: impl Fn(&str) -> bool,
) -> Result<Vec<&'static str>> {
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    match paths {
        [] => Ok(writable
            .iter()
            .copied()
            .filter(|path| is_set(path))
            .collect()),
        [all] if all == "*" => Ok(writable.to_vec()),
        paths => {
            let mut fields = Vec::new();
            for path in paths {
                let Some(field) = writable.iter().find(|field| *field == path) else {
                    let text =
                        format!("names `{}`; writable: {}", shown(path), writable.join(", "));
                    return Err(Error::field("update_mask", text));
                };
                if !fields.contains(field) {
                    fields.push(*field);
                }
            }
            Ok(fields)
        }
    }
}

/// What a caller sent, short enough to be sent back.
fn shown(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}

/// A Struct as the JSON text that is stored; empty for none.
pub(super) fn json_text(value: Option<&Struct>) -> Result<String, String> {
    let Some(value) = value else {
        return Ok(String::new());
    };
    if value.fields.is_empty() {
        return Ok(String::new());
    }
    let json = object(value, 1).ok_or_else(|| {
        format!(
            "must be nested at most {MAX_ATTRIBUTES_DEPTH} deep, with finite numbers and no NUL"
        )
    })?;
    let text = json.to_string();
    if text.len() > MAX_ATTRIBUTES_BYTES {
        return Err(format!(
            "must have at most {MAX_ATTRIBUTES_BYTES} bytes as JSON"
        ));
    }
    Ok(text)
}

fn object(value: &Struct, depth: usize) -> Option<Json> {
    if depth > MAX_ATTRIBUTES_DEPTH {
        return None;
    }
    let entry = |(name, value): (&String, &Value)| {
        (!name.contains('\0'))
            .then(|| Some((name.clone(), to_json(value, depth)?)))
            .flatten()
    };
    value
        .fields
        .iter()
        .map(entry)
        .collect::<Option<_>>()
        .map(Json::Object)
}

fn to_json(value: &Value, depth: usize) -> Option<Json> {
    Some(match value.kind.as_ref()? {
        Kind::NullValue(_) => Json::Null,
        Kind::BoolValue(value) => Json::Bool(*value),
        Kind::NumberValue(value) => Json::Number(serde_json::Number::from_f64(*value)?),
        Kind::StringValue(text) if text.contains('\0') => return None,
        Kind::StringValue(text) => Json::String(text.clone()),
        Kind::StructValue(value) => object(value, depth + 1)?,
        Kind::ListValue(list) if depth < MAX_ATTRIBUTES_DEPTH => {
            let items = list.values.iter().map(|value| to_json(value, depth + 1));
            Json::Array(items.collect::<Option<_>>()?)
        }
        Kind::ListValue(_) => return None,
    })
}

/// Stored JSON text as a Struct.
pub(super) fn from_json_text(text: &str) -> Option<Struct> {
    match serde_json::from_str(text) {
        Ok(Json::Object(fields)) => Some(Struct {
            fields: fields
                .into_iter()
                .map(|(name, value)| (name, from_json(value)))
                .collect(),
        }),
        _ => None,
    }
}

fn from_json(value: Json) -> Value {
    let kind = match value {
        Json::Null => Kind::NullValue(0),
        Json::Bool(value) => Kind::BoolValue(value),
        Json::Number(number) => Kind::NumberValue(number.as_f64().unwrap_or_default()),
        Json::String(text) => Kind::StringValue(text),
        Json::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.into_iter().map(from_json).collect(),
        }),
        Json::Object(fields) => Kind::StructValue(Struct {
            fields: fields
                .into_iter()
                .map(|(name, value)| (name, from_json(value)))
                .collect(),
        }),
    };
    Value { kind: Some(kind) }
}

/// A list of at most `max`, each read by `parse`, without repetition.
pub(super) fn list<T: PartialEq>(
    texts: &[String],
    max: usize,
    parse: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    if texts.len() > max {
        return Err(format!("must have at most {max} entries"));
    }
    let mut values = Vec::new();
    for text in texts {
        let value = parse(text)?;
        if !values.contains(&value) {
            values.push(value);
        }
    }
    Ok(values)
}

/// Of `limit + 1` rows the first `limit`, and the token for the rest if there is any.
pub(super) fn page<T, C: serde::Serialize>(
    call: &super::call::Call,
    context: &page::Context,
    mut rows: Vec<T>,
    limit: i64,
    cursor: impl FnOnce(&T) -> C,
) -> Result<(Vec<T>, String)> {
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let more = rows.len() > limit;
    rows.truncate(limit);
    let token = match rows.last().filter(|_| more) {
        None => String::new(),
        Some(last) => {
            let app = call.app();
            context.seal(&app.keys.page_tokens, app.random.bytes(), &cursor(last))?
        }
    };
    Ok((rows, token))
}

/// The reason of a state or a grant.
pub(super) fn reason(text: &str) -> Result<String, String> {
    text::lines(text, crate::domain::user::MAX_REASON)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_survive_the_wire_to_the_microsecond() {
        let time = Timestamp::from_micros(1_700_000_000_123_456);
        assert_eq!(parse_time(Some(&timestamp(time))), Ok(Some(time)));
        for (seconds, nanos) in [
            (-1, 0),
            (0, -1),
            (0, 1_000_000_000),
            (i64::MAX, 0),
            (253_402_300_800, 0),
        ] {
            assert!(
                parse_time(Some(&PbTimestamp { seconds, nanos })).is_err(),
                "{seconds} {nanos}"
            );
        }
    }

    #[test]
    fn a_mask_names_writable_fields_only() {
        let mask = |paths: &[&str]| FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        };
        let masked = |paths: &[&str]| masked(Some(&mask(paths)), &["a", "b"], |path| path == "b");
        assert_eq!(masked(&["a", "a"]).expect("known"), ["a"]);
        assert_eq!(masked(&["*"]).expect("all"), ["a", "b"]);
        assert_eq!(masked(&[]).expect("set"), ["b"]);
        for bad in [&["c"][..], &["a", "*"], &["a.b"], &[""], &["A"]] {
            assert!(masked(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn attributes_survive_and_have_bounds() {
        let text = r#"{"a":{"b":[1.5,true,null,"x"]},"c":""}"#;
        let value = from_json_text(text).expect("an object");
        assert_eq!(json_text(Some(&value)).as_deref(), Ok(text));
        assert_eq!(json_text(None).as_deref(), Ok(""));
        let deep = format!("{}1{}", r#"{"a":"#.repeat(9), "}".repeat(9));
        assert!(json_text(from_json_text(&deep).as_ref()).is_err());
        let lists = format!(r#"{{"a":{}{}}}"#, "[".repeat(9), "]".repeat(9));
        assert!(json_text(from_json_text(&lists).as_ref()).is_err());
        let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(17_000));
        assert!(json_text(from_json_text(&long).as_ref()).is_err());
        assert!(json_text(from_json_text(r#"{"a":"\u0000"}"#).as_ref()).is_err());
    }
}
