//! `${VAR}` and `${VAR:-default}` in strings.

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::secret::MASK;

/// A string and how it came about.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Text {
    /// What it is.
    pub(super) value: String,
    /// What was written, where that is something else: the value may then be a secret, and is not shown.
    template: Option<String>,
    /// What the variables hold that were written.
    variables: Vec<String>,
    /// Whether somebody has said that it is a secret, or that it is none.
    pub(super) secret: Option<bool>,
}

impl Text {
    /// A string that was written as it is.
    pub(super) fn plain(value: impl Into<String>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// The same, said to be a secret or none; `None`: nobody says.
    pub(super) fn with_secrecy(self, secret: Option<bool>) -> Self {
        Self { secret, ..self }
    }

    /// Whether something else was written, with references in it.
    pub(super) fn is_expanded(&self) -> bool {
        self.template.is_some()
    }

    /// What may be shown to people.
    pub(super) fn shown(&self) -> &str {
        match &self.template {
            Some(template) => template,
            None if self.secret == Some(true) => MASK,
            None => &self.value,
        }
    }

    /// What to write in a file to get this again, as far as it may be shown.
    pub(super) fn written(&self) -> Cow<'_, str> {
        let shown = self.shown();
        if self.is_expanded() || !shown.contains("${") { shown.into() } else { shown.replace("${", "$${").into() }
    }

    /// What must not be shown, if this is a variable's value: all of it, where somebody has said so; else what came from
    /// the environment.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &str> {
        let all = (self.secret == Some(true)).then_some(&self.value);
        let parts = self.variables.iter().filter(|_| self.secret != Some(false));
        // What stands around `{root}` is put together with it only where the tests are.
        all.into_iter()
            .flat_map(|value| std::iter::once(value.as_str()).chain(value.split("{root}")))
            .chain(parts.map(String::as_str))
    }
}

/// A reference that cannot be expanded.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ExpandError {
    /// The variable is not set and there is no default.
    Unset {
        /// The variable.
        name: String,
    },
    /// `${` that is followed by something else than a name and `}` or `:-`.
    Malformed {
        /// What was written, up to `}` or the end.
        reference: String,
    },
}

/// Expands references to `env` in `text`. `$${` stands for a plain `${`; any other `$` for itself.
pub(super) fn expand(text: &str, env: &BTreeMap<String, String>) -> Result<Text, ExpandError> {
    let mut value = String::with_capacity(text.len());
    let mut rest = text;
    let mut referenced = false;
    let mut variables = Vec::new();
    while let Some(at) = rest.find("${") {
        let (before, reference) = rest.split_at(at);
        if let Some(before) = before.strip_suffix('$') {
            value.push_str(before);
            value.push_str("${");
            rest = &reference[2..];
            continue;
        }
        value.push_str(before);
        let Some(end) = reference.find('}') else {
            return Err(ExpandError::Malformed { reference: reference.to_owned() });
        };
        let (name, default) = match reference[2..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&reference[2..end], None),
        };
        if !is_name(name) {
            return Err(ExpandError::Malformed { reference: reference[..=end].to_owned() });
        }
        // As in a shell, `:-` also replaces a variable that is set to nothing.
        let set = env.get(name).map(String::as_str).filter(|set| default.is_none() || !set.is_empty());
        variables.extend(set.map(str::to_owned));
        value.push_str(set.or(default).ok_or_else(|| ExpandError::Unset { name: name.to_owned() })?);
        referenced = true;
        rest = &reference[end + 1..];
    }
    value.push_str(rest);
    Ok(Text { value, template: referenced.then(|| text.to_owned()), variables, secret: None })
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expanded(text: &str) -> Result<String, ExpandError> {
        let env = [("HOME", "/home/me"), ("EMPTY", "")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        expand(text, &env.into()).map(|text| text.value)
    }

    #[test]
    fn references_are_replaced_and_other_dollars_kept() {
        for (text, value) in [
            ("${HOME}/x", "/home/me/x"),
            ("${HOME}${HOME}", "/home/me/home/me"),
            ("${NOT_SET:-a b}", "a b"),
            ("${NOT_SET:-}", ""),
            ("${EMPTY}", ""),
            ("${EMPTY:-else}", "else"),
            ("${HOME:-else}", "/home/me"),
            ("$", "$"),
            ("$$", "$$"),
            ("$HOME costs 5$", "$HOME costs 5$"),
            ("$(pwd) $$ }", "$(pwd) $$ }"),
            ("$${HOME}", "${HOME}"),
            ("$$${HOME}", "$${HOME}"),
            ("ünï${HOME}", "ünï/home/me"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_expanded_is_named() {
        assert_eq!(expanded("a${NOT_SET}b"), Err(ExpandError::Unset { name: "NOT_SET".to_owned() }));
        for (text, reference) in [("${", "${"), ("x${}y", "${}"), ("${A-b}", "${A-b}"), ("${x%.*}", "${x%.*}")] {
            assert_eq!(expanded(text), Err(ExpandError::Malformed { reference: reference.to_owned() }), "{text}");
        }
    }

    #[test]
    fn only_what_came_from_a_variable_is_hidden() {
        let env = BTreeMap::from([("TOKEN".to_owned(), "s3cret".to_owned())]);
        let shown = |text| expand(text, &env).map(|text| text.shown().to_owned());
        assert_eq!(shown("Bearer ${TOKEN}").as_deref(), Ok("Bearer ${TOKEN}"));
        assert_eq!(shown("$${TOKEN}").as_deref(), Ok("${TOKEN}"));
        for text in ["Bearer ${TOKEN}", "$${TOKEN}", "$$${TOKEN} $", "$TOKEN"] {
            assert_eq!(expand(text, &env).unwrap().written(), text, "as it was written");
        }
        let secrets = |text, secret| {
            let text = Text { secret, ..expand(text, &env).unwrap() };
            text.secrets().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(secrets("Bearer ${TOKEN}, ${USER:-nobody}", None), ["s3cret"]);
        assert_eq!(secrets("Bearer ${TOKEN}", Some(false)), [""; 0]);
        assert_eq!(secrets("{root}/word", Some(true)), ["{root}/word", "", "/word"]);
        assert_eq!(Text { secret: Some(true), ..Text::plain("word") }.shown(), "***");
    }
}
