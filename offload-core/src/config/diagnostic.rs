//! What is wrong with a configuration, said so that it can be mended: place, snippet, what was expected, nearest key.

use std::ops::Range;

use annotate_snippets::{AnnotationKind, Level, Origin, Renderer, Snippet};

use super::ConfigError;

/// Where something is wrong.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Where {
    /// These bytes of the file.
    Span(Range<usize>),
    /// The file as a whole.
    File,
    /// Somewhere else: an environment variable or an option, as the user wrote it.
    Named(String),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Problem {
    /// What is wrong.
    pub(super) title: String,
    /// Where.
    pub(super) at: Where,
    /// What was expected there.
    pub(super) label: String,
    /// What to do about it.
    pub(super) help: Vec<String>,
}

impl Problem {
    pub(super) fn new(title: impl Into<String>, at: Where, label: impl Into<String>) -> Self {
        Self { title: title.into(), at, label: label.into(), help: Vec::new() }
    }

    pub(super) fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    fn order(&self) -> usize {
        match &self.at {
            Where::File => 0,
            Where::Span(span) => span.start,
            Where::Named(_) => usize::MAX,
        }
    }

    fn render(&self, path: &str, text: &str) -> String {
        let mut group = Level::ERROR.primary_title(self.title.as_str()).elements(Vec::<Origin<'_>>::new());
        group = match &self.at {
            Where::Span(span) => group.element(
                Snippet::source(text)
                    .path(path)
                    .annotation(AnnotationKind::Primary.span(within_line(text, span)).label(self.label.as_str())),
            ),
            Where::File => group.element(Origin::path(path)),
            Where::Named(name) => group.element(Origin::path(name.as_str())),
        };
        if !matches!(self.at, Where::Span(_)) && !self.label.is_empty() {
            group = group.element(Level::NOTE.message(self.label.as_str()));
        }
        for help in &self.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        Renderer::plain().render(&[group])
    }
}

/// The part of a span that is on its first line: the beginning of a long list tells enough.
fn within_line(text: &str, span: &Range<usize>) -> Range<usize> {
    let start = char_boundary(text, span.start);
    let end = char_boundary(text, span.end).max(start);
    let length = text[start..end].find(['\r', '\n']).unwrap_or(end - start);
    start..start + length
}

/// The nearest place before which a character ends: a parser may point into the middle of one.
fn char_boundary(text: &str, offset: usize) -> usize {
    (0..=offset.min(text.len())).rev().find(|offset| text.is_char_boundary(*offset)).unwrap_or(0)
}

/// At most so many problems are shown.
const MOST: usize = 50;

/// All problems as one text, those of the file in the order of the file.
pub(super) fn error(mut problems: Vec<Problem>, path: &str, text: &str) -> ConfigError {
    problems.sort_by_key(Problem::order);
    let mut texts: Vec<String> = problems.iter().take(MOST).map(|problem| problem.render(path, text)).collect();
    if let Some(more) = problems.len().checked_sub(MOST).filter(|more| *more > 0) {
        texts.push(format!("error: there are {more} more problems of this file, environment and command line"));
    }
    ConfigError(texts.join("\n\n"))
}

/// The candidate that someone who wrote `word` most likely meant.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters may be wrong: more, and the guess would be noise.
    nearest_within(word, candidates, (word.chars().count() / 3).max(1))
}

/// The nearest candidate that is at most `limit` slips of a finger away.
pub(super) fn nearest_within<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
    limit: usize,
) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    candidates
        .into_iter()
        .map(|candidate| (strsim::osa_distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `a`, `b` or `c`.
pub(super) fn alternatives(words: &[&str]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}
