//! The part of AIP-160 that is offered: conjunctions of comparisons of a field with a literal.
//!
//! Each list says which fields and operators it has; they are those its indexes serve. So a filter
//! is data, never text that becomes part of a statement.

use super::{
    error::{Error, Reason, Result},
    time::Timestamp,
};

/// Most bytes of a filter.
const MAX_BYTES: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equal,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// For fields that are only compared as equal.
pub const EQUAL: &[Operator] = &[Operator::Equal];
/// For times.
pub const ORDER: &[Operator] = &[
    Operator::Less,
    Operator::LessOrEqual,
    Operator::Greater,
    Operator::GreaterOrEqual,
];

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    pub field: &'static str,
    pub operator: Operator,
    pub value: String,
}

/// Reads a filter over the `offered` fields. Each field may be compared once with each operator.
pub fn parse(filter: &str, offered: &[(&'static str, &'static [Operator])]) -> Result<Vec<Term>> {
    if filter.len() > MAX_BYTES {
        return Err(refuse(format!("must have at most {MAX_BYTES} bytes")));
    }
    let mut tokens = tokens(filter)?.into_iter();
    let mut terms: Vec<Term> = Vec::new();
    let Some(mut next) = tokens.next() else {
        return Ok(terms);
    };
    loop {
        let Token::Word(field) = &next else {
            return Err(refuse(format!("expected a field, found {next}")));
        };
        let Some((field, operators)) = offered.iter().find(|(name, _)| name == field) else {
            let names: Vec<&str> = offered.iter().map(|(name, _)| *name).collect();
            return Err(refuse(format!(
                "cannot use `{field}`; offered: {}",
                names.join(", ")
            )));
        };
        let operator = match tokens.next() {
            Some(Token::Operator(operator)) if operators.contains(&operator) => operator,
            Some(Token::Operator(_)) => {
                return Err(refuse(format!("cannot compare `{field}` in this way")));
            }
            other => return Err(refuse(expected("an operator", other.as_ref()))),
        };
        let value = match tokens.next() {
            Some(Token::Word(value) | Token::Quoted(value)) => value,
            other => return Err(refuse(expected("a value", other.as_ref()))),
        };
        if terms
            .iter()
            .any(|term| term.field == *field && term.operator == operator)
        {
            return Err(refuse(format!("compares `{field}` twice in the same way")));
        }
        terms.push(Term {
            field,
            operator,
            value,
        });
        match (tokens.next(), tokens.next()) {
            (None, _) => return Ok(terms),
            (Some(Token::Word(and)), Some(field)) if and == "AND" => next = field,
            (other, _) => {
                return Err(refuse(expected(
                    "`AND` and another comparison",
                    other.as_ref(),
                )));
            }
        }
    }
}

/// For lists that offer one field, compared as equal: its value, if the filter names it.
pub fn only<T>(
    filter: &str,
    field: &'static str,
    expected: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Result<Option<T>> {
    let mut terms = self::parse(filter, &[(field, EQUAL)])?.into_iter();
    let found = terms
        .next()
        .map(|term| value(&term, parse(&term.value), expected));
    found.transpose()
}

/// The value of a term, or a refusal that says what was expected.
pub fn value<T>(term: &Term, parsed: Option<T>, expected: &str) -> Result<T> {
    parsed.ok_or_else(|| refuse(format!("expects {expected} for `{}`", term.field)))
}

/// Narrows the first and last time by a comparison with an RFC 3339 time.
pub fn bound(term: &Term, (first, last): &mut (Timestamp, Timestamp)) -> Result<()> {
    let time = value(term, Timestamp::parse(&term.value), "an RFC 3339 time")?.micros();
    match term.operator {
        Operator::Greater => *first = (*first).max(Timestamp::from_micros(time + 1)),
        Operator::GreaterOrEqual => *first = (*first).max(Timestamp::from_micros(time)),
        Operator::Less => *last = (*last).min(Timestamp::from_micros(time - 1)),
        Operator::LessOrEqual => *last = (*last).min(Timestamp::from_micros(time)),
        Operator::Equal => {
            *first = (*first).max(Timestamp::from_micros(time));
            *last = (*last).min(Timestamp::from_micros(time));
        }
    }
    Ok(())
}

pub fn refuse(text: String) -> Error {
    Error::invalid(Reason::InvalidFilter, "filter", text)
}

fn expected(what: &str, found: Option<&Token>) -> String {
    match found {
        None => format!("ends where {what} was expected"),
        Some(token) => format!("expected {what}, found {token}"),
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Quoted(String),
    Operator(Operator),
}

impl std::fmt::Display for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Word(word) => write!(f, "`{}`", word.escape_debug()),
            Self::Quoted(text) => write!(f, "\"{}\"", text.escape_debug()),
            Self::Operator(_) => f.write_str("an operator"),
        }
    }
}

fn tokens(filter: &str) -> Result<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = filter.trim_start();
    while let Some(first) = rest.chars().next() {
        let (token, length) = match first {
            '"' => quoted(rest)?,
            '=' | '<' | '>' => operator(rest),
            _ => word(rest)?,
        };
        tokens.push(token);
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

fn operator(text: &str) -> (Token, usize) {
    let (operator, length) = match text.as_bytes() {
        [b'<', b'=', ..] => (Operator::LessOrEqual, 2),
        [b'>', b'=', ..] => (Operator::GreaterOrEqual, 2),
        [b'<', ..] => (Operator::Less, 1),
        [b'>', ..] => (Operator::Greater, 1),
        _ => (Operator::Equal, 1),
    };
    (Token::Operator(operator), length)
}

fn word(text: &str) -> Result<(Token, usize)> {
    let inside = |c: char| c.is_alphanumeric() || "_.-/:+*@".contains(c);
    let length = text.find(|c| !inside(c)).unwrap_or(text.len());
    if length == 0 {
        let first = text.chars().next().unwrap_or_default();
        return Err(refuse(format!(
            "cannot contain `{}` here",
            first.escape_debug()
        )));
    }
    Ok((Token::Word(text[..length].to_owned()), length))
}

/// A string in double quotes, with `\"` and `\\`.
fn quoted(text: &str) -> Result<(Token, usize)> {
    let mut value = String::new();
    let mut chars = text.char_indices().skip(1);
    while let Some((place, c)) = chars.next() {
        match c {
            '"' => return Ok((Token::Quoted(value), place + 1)),
            '\\' => match chars.next() {
                Some((_, escaped @ ('"' | '\\'))) => value.push(escaped),
                _ => return Err(refuse("has a `\\` before neither `\"` nor `\\`".to_owned())),
            },
            c if c.is_control() => {
                return Err(refuse("must not contain control characters".to_owned()));
            }
            c => value.push(c),
        }
    }
    Err(refuse("has a string without its closing quote".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OFFERED: &[(&str, &[Operator])] = &[("state", EQUAL), ("time", ORDER)];

    #[test]
    fn a_conjunction_is_read_term_by_term() {
        let term = |field, operator, value: &str| Term {
            field,
            operator,
            value: value.to_owned(),
        };
        assert_eq!(parse("", OFFERED).expect("empty"), []);
        assert_eq!(parse("  ", OFFERED).expect("empty"), []);
        assert_eq!(
            parse(
                r#"state = "A \"b\" \\" AND time>=2026-01-01T00:00:00Z AND time < x"#,
                OFFERED
            )
            .expect("well formed"),
            [
                term("state", Operator::Equal, r#"A "b" \"#),
                term("time", Operator::GreaterOrEqual, "2026-01-01T00:00:00Z"),
                term("time", Operator::Less, "x"),
            ]
        );
    }

    #[test]
    fn comparisons_of_a_time_narrow_a_range() {
        let mut range = (Timestamp::EPOCH, Timestamp::MAX);
        let filter = "time > 1970-01-01T00:00:01Z AND time <= 1970-01-01T00:00:02Z";
        for term in parse(filter, OFFERED).expect("well formed") {
            bound(&term, &mut range).expect("times");
        }
        assert_eq!(
            range,
            (
                Timestamp::from_micros(1_000_001),
                Timestamp::from_micros(2_000_000)
            )
        );
        let term = &parse("time < yesterday", OFFERED).expect("well formed")[0];
        assert!(bound(term, &mut range).is_err());
    }

    #[test]
    fn what_is_not_offered_is_refused_with_a_reason() {
        for bad in [
            "name = x",
            "state",
            "state =",
            "state = ",
            "state = A state = B",
            "state = A OR state = B",
            "state = A AND",
            "state = A AND state = B",
            "NOT state = A",
            "(state = A)",
            "state > A",
            "time = x",
            "state = \"A",
            "state = \"\\n\"",
            "state = \"\n\"",
            "state = 'A'",
            "= = =",
            "\"state\" = A",
            "state = A; DROP TABLE users",
            "\u{0}",
        ] {
            let error = parse(bad, OFFERED).expect_err(bad);
            assert_eq!(error.reason(), Reason::InvalidFilter, "{bad}");
        }
        assert!(parse(&"x".repeat(3000), OFFERED).is_err());
    }
}
