//! HTTP paths as `google.api.http` writes them: `/v1/{name=users/*}:suspend`.
//!
//! Matched here and not by the HTTP router, which knows neither custom verbs nor variables that span
//! segments.

use std::fmt::Write as _;

use percent_encoding::percent_decode_str;

/// A parsed template. The part of the syntax that our protos use: literals, `*`, at most one variable
/// and a verb.
#[derive(Debug)]
pub(super) struct Template {
    segments: Vec<Segment>,
    /// The request field that the variable sets, and which segments it spans.
    variable: Option<(String, std::ops::Range<usize>)>,
    verb: Option<String>,
}

/// Request fields and what a path says they are.
pub(super) type Bindings = Vec<(String, String)>;

#[derive(Debug, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Any,
}

impl Template {
    /// Panics on a template that is not of the part of the syntax described above.
    pub(super) fn parse(text: &str) -> Self {
        let (path, verb) = match text.rsplit_once(':') {
            Some((path, verb)) if !verb.contains(['/', '}']) => (path, Some(verb.to_owned())),
            _ => (text, None),
        };
        let path = path
            .strip_prefix('/')
            .expect("a template starts with a slash");
        let mut segments = Vec::new();
        let mut variable = None;
        let mut rest = path;
        while !rest.is_empty() {
            if let Some(inner) = rest.strip_prefix('{') {
                let (inner, after) = inner.split_once('}').expect("a variable ends");
                let (field, pattern) = inner.split_once('=').unwrap_or((inner, "*"));
                let start = segments.len();
                segments.extend(pattern.split('/').map(Segment::parse));
                assert!(variable.is_none(), "{text} has two variables");
                variable = Some((field.to_owned(), start..segments.len()));
                rest = after.strip_prefix('/').unwrap_or(after);
            } else {
                let (segment, after) = rest.split_once('/').unwrap_or((rest, ""));
                segments.push(Segment::parse(segment));
                rest = after;
            }
        }
        Self {
            segments,
            variable,
            verb,
        }
    }

    pub(super) fn length(&self) -> usize {
        self.segments.len()
    }

    /// The fields and values that a path binds, none or one, if it is one of this template.
    pub(super) fn matches(&self, path: &[&str]) -> Option<Bindings> {
        let mut path = path.to_vec();
        let last = path.pop()?;
        path.push(match &self.verb {
            Some(verb) => last.strip_suffix(verb.as_str())?.strip_suffix(':')?,
            None => last,
        });
        let fits = |(segment, text): (&Segment, &&str)| match segment {
            Segment::Literal(literal) => literal == text,
            Segment::Any => !text.is_empty() && !text.contains(':'),
        };
        if path.len() != self.segments.len() || !self.segments.iter().zip(&path).all(fits) {
            return None;
        }
        let Some((field, range)) = &self.variable else {
            return Some(Vec::new());
        };
        let decode = |text: &&str| {
            percent_decode_str(text)
                .decode_utf8()
                .ok()
                .map(String::from)
        };
        let value: Option<Vec<String>> = path[range.clone()].iter().map(decode).collect();
        Some(vec![(field.clone(), value?.join("/"))])
    }

    /// For OpenAPI: `/v1/users/{user}:suspend`, and the names in braces.
    pub(super) fn openapi(&self) -> (String, Vec<String>) {
        let mut names = Vec::new();
        let mut path = String::new();
        for (place, segment) in self.segments.iter().enumerate() {
            path.push('/');
            match segment {
                Segment::Literal(literal) => path.push_str(literal),
                Segment::Any => {
                    // The collection before it says what it is: users/* is a user.
                    let collection = match place.checked_sub(1).map(|place| &self.segments[place]) {
                        Some(Segment::Literal(literal)) => literal.as_str(),
                        _ => "ids",
                    };
                    let name = collection
                        .strip_suffix('s')
                        .unwrap_or(collection)
                        .to_owned();
                    let _ = write!(path, "{{{name}}}");
                    names.push(name);
                }
            }
        }
        if let Some(verb) = &self.verb {
            let _ = write!(path, ":{verb}");
        }
        (path, names)
    }

    pub(super) fn field(&self) -> Option<&str> {
        self.variable.as_ref().map(|(field, _)| field.as_str())
    }
}

impl Segment {
    fn parse(text: &str) -> Self {
        assert!(
            !text.is_empty() && text != "**",
            "unsupported segment `{text}`"
        );
        if text == "*" {
            Self::Any
        } else {
            Self::Literal(text.to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(template: &str, path: &str) -> Option<Bindings> {
        let segments: Vec<&str> = path.strip_prefix('/').unwrap_or(path).split('/').collect();
        Template::parse(template).matches(&segments)
    }

    fn binds(field: &str, value: &str) -> Bindings {
        vec![(field.to_owned(), value.to_owned())]
    }

    #[test]
    fn paths_bind_the_variable() {
        assert_eq!(
            matches("/v1/{name=users/*}", "/v1/users/1"),
            Some(binds("name", "users/1"))
        );
        assert_eq!(
            matches("/v1/{name=users/*}:suspend", "/v1/users/1:suspend"),
            Some(binds("name", "users/1"))
        );
        assert_eq!(
            matches(
                "/v1/{user.name=users/*/sessions/*}",
                "/v1/users/1/sessions/a%20b"
            ),
            Some(binds("user.name", "users/1/sessions/a b"))
        );
        assert_eq!(
            matches(
                "/v1/{parent=users/*}/credentials",
                "/v1/users/1/credentials"
            ),
            Some(binds("parent", "users/1"))
        );
        assert_eq!(
            matches("/v1/users:lookup", "/v1/users:lookup"),
            Some(Vec::new())
        );
    }

    #[test]
    fn other_paths_do_not_match() {
        for path in [
            "/v1/users",
            "/v1/users/",
            "/v1/users/1/",
            "/v1/users/1:suspend",
            "/v1/users/:suspend",
            "/v2/users/1",
            "/v1/users/1/2",
            "/",
            "/v1/users/%ff",
        ] {
            assert_eq!(matches("/v1/{name=users/*}", path), None, "{path}");
        }
        assert_eq!(matches("/v1/{name=users/*}:suspend", "/v1/users/1"), None);
        assert_eq!(matches("/v1/users:lookup", "/v1/users"), None);
    }

    #[test]
    fn openapi_names_each_segment() {
        let template = Template::parse("/v1/{name=users/*/sessions/*}:end");
        let names = vec!["user".to_owned(), "session".to_owned()];
        assert_eq!(
            template.openapi(),
            ("/v1/users/{user}/sessions/{session}:end".to_owned(), names)
        );
    }
}
