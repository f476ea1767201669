//! What messages look like: templates that accountd comes with, and those of the operator before them.
//!
//! Invariant: what a person has written is escaped in HTML, and never becomes a second line of a subject.

use std::{
    fs,
    path::{Path, PathBuf},
};

use minijinja::{Environment, UndefinedBehavior, context};

use crate::domain::message::{Channel, ContactChange, Facts, Kind, Message, Recipient, To};

/// The languages, and in each of them the texts of every kind of message.
macro_rules! embedded {
    ($($language:literal: $($kind:literal)*;)*) => {
        &[$($((
            concat!($language, "/", $kind, ".txt"),
            include_str!(concat!("templates/", $language, "/", $kind, ".txt")),
        ), (
            concat!($language, "/", $kind, ".html"),
            include_str!(concat!("templates/", $language, "/", $kind, ".html")),
        ), (
            concat!($language, "/", $kind, ".sms"),
            include_str!(concat!("templates/", $language, "/", $kind, ".sms")),
        ),)*)*]
    };
}

const EMBEDDED: &[(&str, &str)] = embedded! {
    "de": "contact_changed" "contact_code" "password_changed" "password_reset" "sign_in_code";
    "en": "contact_changed" "contact_code" "password_changed" "password_reset" "sign_in_code";
};

/// What all HTML stands in.
const LAYOUT: &str = "layout.html";

/// Most bytes of a template.
const MAX_BYTES: u64 = 64 * 1024;

pub struct Templates {
    texts: Environment<'static>,
    default_language: String,
    service: String,
}

/// A message as its recipient sees it, codes and all: not to be printed.
pub enum Rendered {
    Mail {
        subject: String,
        text: String,
        html: String,
    },
    Sms(String),
}

impl Templates {
    /// Reads all templates and tries each; an error is a sentence for the operator.
    pub fn new(
        folder: Option<&Path>,
        default_language: &str,
        service: &str,
    ) -> Result<Self, String> {
        let mut templates = Environment::new();
        // A template that names what there is not is found at the start, not by a reader.
        templates.set_undefined_behavior(UndefinedBehavior::Strict);
        let mut add = |name: String, text: String| {
            let added = templates.add_template_owned(name.clone(), text);
            added.map_err(|error| format!("template {name}: {error}"))
        };
        add(
            LAYOUT.to_owned(),
            include_str!("templates/layout.html").to_owned(),
        )?;
        for (name, text) in EMBEDDED {
            add((*name).to_owned(), (*text).to_owned())?;
        }
        if let Some(folder) = folder {
            for (name, text) in read(folder)? {
                add(name, text)?;
            }
        }
        let templates = Self {
            texts: templates,
            default_language: default_language.to_owned(),
            service: service.to_owned(),
        };
        templates.try_all()?;
        Ok(templates)
    }

    /// A message in the first language of the chain that has it: `de-CH`, `de`, the default, `en`.
    pub fn render(&self, message: &Message, channel: Channel) -> Result<Rendered, String> {
        let kind = message.kind.name();
        let extension = match channel {
            Channel::Email => "txt",
            Channel::Sms => "sms",
        };
        let has = |language: &&str| {
            let name = format!("{language}/{kind}.{extension}");
            self.texts.get_template(&name).is_ok()
        };
        let language = chain(&message.language, &self.default_language)
            .into_iter()
            .find(has)
            .ok_or_else(|| format!("no template {kind}.{extension}"))?;
        let text = self.part(message, language, extension, "")?;
        if channel == Channel::Sms {
            return Ok(Rendered::Sms(text.trim().to_owned()));
        }
        let (first, text) = text.split_once('\n').unwrap_or((&text, ""));
        let subject = first.strip_prefix("Subject:").ok_or_else(|| {
            format!("template {language}/{kind}.txt: the first line has to begin with Subject:")
        })?;
        let subject = subject.trim().replace(char::is_control, " ");
        let html = self.part(message, language, "html", &subject)?;
        Ok(Rendered::Mail {
            subject,
            text: text.trim_start().to_owned(),
            html,
        })
    }

    fn part(
        &self,
        message: &Message,
        language: &str,
        extension: &str,
        subject: &str,
    ) -> Result<String, String> {
        let name = format!("{language}/{}.{extension}", message.kind.name());
        let Facts {
            code,
            link,
            minutes,
            change,
            old,
            new,
            time,
        } = &message.facts;
        let values = context! {
            service => &self.service,
            language,
            subject,
            name => &message.name,
            code => spaced(code),
            link,
            minutes,
            change => change.map(ContactChange::name).unwrap_or_default(),
            old,
            new,
            time,
        };
        let rendered = self
            .texts
            .get_template(&name)
            .and_then(|template| template.render(values));
        rendered.map_err(|error| format!("template {name}: {error:#}"))
    }

    /// Every template there is with made-up facts.
    fn try_all(&self) -> Result<(), String> {
        for (name, _) in self.texts.templates() {
            let Some((language, kind)) = name.split_once('/') else {
                continue;
            };
            let kind = kind.split('.').next().and_then(Kind::parse);
            let kind = kind.ok_or_else(|| format!("template {name} is of no kind of message"))?;
            let has = |part: &str| {
                let name = format!("{language}/{}.{part}", kind.name());
                self.texts.get_template(&name).is_ok()
            };
            if has("html") && !has("txt") {
                // Nobody would ever see it.
                let name = format!("{language}/{}.txt", kind.name());
                return Err(format!("template {name}: is missing beside its HTML"));
            }
            for change in ContactChange::ALL {
                let mut message = sample(kind, language);
                message.facts.change = Some(change);
                self.render(&message, Channel::Email)?;
                self.render(&message, Channel::Sms)?;
            }
        }
        Ok(())
    }
}

/// The templates of a folder, by name: `layout.html`, `en/contact_code.txt` and so on.
fn read(folder: &Path) -> Result<Vec<(String, String)>, String> {
    let cannot = |path: &Path, error: &dyn std::fmt::Display| {
        format!("cannot read the templates in {}: {error}", path.display())
    };
    let list = |folder: &Path| -> Result<Vec<PathBuf>, String> {
        let entries = fs::read_dir(folder).map_err(|error| cannot(folder, &error))?;
        let paths: Result<Vec<PathBuf>, _> = entries.map(|it| it.map(|it| it.path())).collect();
        paths.map_err(|error| cannot(folder, &error))
    };
    let mut found = Vec::new();
    for path in list(folder)? {
        let inner = if path.is_dir() {
            list(&path)?
        } else {
            vec![path]
        };
        for file in inner {
            let size = fs::metadata(&file).map_err(|error| cannot(&file, &error))?;
            if !size.is_file() || size.len() > MAX_BYTES {
                return Err(cannot(
                    &file,
                    &format!("not a file of at most {MAX_BYTES} bytes"),
                ));
            }
            let text = fs::read_to_string(&file).map_err(|error| cannot(&file, &error))?;
            let name = file.strip_prefix(folder).unwrap_or(&file);
            let name = name.display().to_string();
            let parts = ["txt", "html", "sms"];
            let has_part = parts.iter().any(|part| name.ends_with(&format!(".{part}")));
            if name != LAYOUT && !(has_part && name.contains('/')) {
                let text = "not called like en/contact_code.txt, .html or .sms";
                return Err(cannot(&file, &text));
            }
            found.push((name, text));
        }
    }
    Ok(found)
}

/// The languages to look for, best first: each without its last part, and so on (RFC 4647 section 3.4).
fn chain<'a>(wanted: &'a str, default: &'a str) -> Vec<&'a str> {
    let mut chain = Vec::new();
    for language in [wanted, default, "en"] {
        let mut language = language;
        while !language.is_empty() {
            chain.push(language);
            language = language.rsplit_once('-').map_or("", |(shorter, _)| shorter);
        }
    }
    chain
}

/// A code in halves, as people read digits; a longer secret as it is.
fn spaced(code: &str) -> String {
    if code.len() == 8 && code.bytes().all(|b| b.is_ascii_digit()) {
        format!("{} {}", &code[..4], &code[4..])
    } else {
        code.to_owned()
    }
}

/// A message of made-up facts, for previews.
pub fn sample(kind: Kind, language: &str) -> Message {
    let text = |text: &str| text.to_owned();
    Message {
        kind,
        to: To::Address(Recipient {
            channel: Channel::Email,
            address: text("ann@example.org"),
        }),
        language: text(language),
        name: text("Ann"),
        facts: Facts {
            code: text("12345678"),
            link: text("https://id.example/page#code=adcl_sample"),
            minutes: if kind == Kind::ContactChanged {
                10_080
            } else {
                10
            },
            change: Some(ContactChange::Changed),
            old: text("a…@example.org"),
            new: text("b…@example.org"),
            time: text("2026-01-31 12:00 UTC"),
        },
        unlocks: None,
        asker: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn templates() -> Templates {
        Templates::new(None, "en", "Example").expect("all are good")
    }

    fn mail(templates: &Templates, message: &Message) -> (String, String, String) {
        match templates.render(message, Channel::Email).expect("rendered") {
            Rendered::Mail {
                subject,
                text,
                html,
            } => (subject, text, html),
            Rendered::Sms(_) => panic!("a mail"),
        }
    }

    #[test]
    fn languages_fall_back_from_the_nearest_to_the_default() {
        assert_eq!(
            chain("zh-Hant-HK", "de-CH"),
            ["zh-Hant-HK", "zh-Hant", "zh", "de-CH", "de", "en"]
        );
        let templates = templates();
        let subject = |language| mail(&templates, &sample(Kind::ContactCode, language)).0;
        assert_eq!(subject("en"), "Your code for Example: 1234 5678");
        assert_eq!(subject("de-CH"), "Ihr Code für Example: 1234 5678");
        assert_eq!(subject("fr"), subject("en"));
        assert_eq!(subject(""), subject("en"));
    }

    #[test]
    fn what_people_write_is_text_wherever_it_stands() {
        let templates = templates();
        for kind in Kind::ALL {
            for language in ["en", "de"] {
                let evil = "</p><script>alert(1)</script>\r\nBcc: eve@example.org\r\n{{ code }}";
                let mut message = sample(kind, language);
                evil.clone_into(&mut message.name);
                evil.clone_into(&mut message.facts.old);
                evil.clone_into(&mut message.facts.new);
                let (subject, _, html) = mail(&templates, &message);
                assert!(!subject.contains(['\r', '\n']), "{subject}");
                assert!(!subject.contains("script"), "{subject}");
                assert!(!html.contains("<script"), "{html}");
                assert!(html.contains("&lt;script"), "{html}");
            }
        }
    }

    #[test]
    fn templates_of_the_operator_come_before_ours() {
        let folder = tempfile::TempDir::new().expect("a folder");
        let write = |name: &str, text: &str| {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        };
        let load = || Templates::new(Some(folder.path()), "en", "Example");
        write(
            "en/contact_code.txt",
            "Subject: Hi {{ name }}\n\n{{ code }}",
        );
        write("fr/contact_code.txt", "Subject: Bonjour\n\n{{ code }}");
        let error = load().err().expect("no HTML in French");
        assert!(error.contains("fr/contact_code.html"), "{error}");
        write("fr/contact_code.html", "<p>{{ code }}</p>");
        let templates = load().expect("good");
        let mut message = sample(Kind::ContactCode, "en");
        let own = mail(&templates, &message);
        assert_eq!((&*own.0, &*own.1), ("Hi Ann", "1234 5678"));
        for evil in ["Ann\r\nBcc: eve", "Ann\rBcc: eve", "Ann\u{85}Bcc: eve"] {
            evil.clone_into(&mut message.name);
            let (subject, ..) = mail(&templates, &message);
            assert!(subject.starts_with("Hi Ann"), "{subject}");
            assert!(!subject.contains(char::is_control), "{subject:?}");
        }
        let french = mail(&templates, &sample(Kind::ContactCode, "fr-CA"));
        assert_eq!((&*french.0, &*french.2), ("Bonjour", "<p>1234 5678</p>"));
        for (name, text, wrong) in [
            ("en/contact_code.txt", "no subject", "Subject:"),
            (
                "en/contact_code.txt",
                "Subject: {{ cod }}",
                "en/contact_code.txt",
            ),
            (
                "en/contact_code.txt",
                "Subject: {% if %}",
                "en/contact_code.txt",
            ),
            ("en/birthday.txt", "Subject: x", "birthday"),
            ("en/notes.md", "x", "notes.md"),
            (
                "it/sign_in_code.html",
                "<p>{{ code }}</p>",
                "it/sign_in_code.txt",
            ),
        ] {
            write(name, text);
            let error = load().err().expect(name);
            assert!(error.contains(wrong), "{error}");
            fs::remove_file(folder.path().join(name)).expect("removed");
        }
    }
}
