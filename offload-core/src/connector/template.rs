//! Putting values into the user's command lines.
//!
//! A value may contain anything (blanks, quotes, `$`, newlines) and must reach the command as it is, wherever the user
//! put its placeholder: bare, or within quotation marks. So the line is read as a POSIX shell reads it, as far as
//! quoting goes, and each value is quoted for the place where it stands. Here-documents are not looked into.

/// What surrounds a place in a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    Bare,
    Single,
    Double,
    /// Within `$( )`: bare again, up to the closing parenthesis.
    Substitution {
        depth: usize,
    },
    /// Within backquotes: bare again, with a level of backslashes more.
    Backquotes,
}

/// A value for a placeholder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    /// One word.
    Word(&'a str),
    /// Shell text: several words, already quoted. Within quotation marks it is taken literally.
    Words(&'a str),
}

/// Replaces `{name}` by the value of that name. Other braces stay as they are.
pub(crate) fn fill(template: &str, values: &[(&str, Value<'_>)]) -> String {
    let replaced = replace::<std::convert::Infallible>(template, |rest, _| {
        Ok(values.iter().find_map(|(name, value)| {
            let end = rest.strip_prefix('{')?.strip_prefix(name)?.strip_prefix('}')?;
            Some((rest.len() - end.len(), *value))
        }))
    });
    match replaced {
        Ok(line) => line,
        Err(never) => match never {},
    }
}

/// Goes through `line` and replaces what `find` recognises at the beginning of the rest of the line, given as the
/// number of bytes and the value to put there. `find` also learns whether a word begins at that place.
pub(crate) fn replace<'v, E>(
    line: &str,
    mut find: impl FnMut(&str, bool) -> Result<Option<(usize, Value<'v>)>, E>,
) -> Result<String, E> {
    let mut result = String::with_capacity(line.len());
    let mut stack = vec![Context::Bare];
    let mut word_start = true;
    let mut rest = line;
    while let Some(c) = rest.chars().next() {
        if let Some((length, value)) = find(rest, word_start)? {
            result.push_str(&quoted(value, &stack));
            rest = &rest[length..];
            word_start = false;
            continue;
        }
        let context = stack.last().copied().unwrap_or(Context::Bare);
        let taken = match (context, c) {
            (Context::Single, '\'') | (Context::Double, '"') | (Context::Backquotes, '`') => {
                stack.pop();
                1
            }
            (Context::Single, _) => c.len_utf8(),
            (_, '\\') => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            (_, '`') => {
                stack.push(Context::Backquotes);
                1
            }
            (_, '$') if rest.starts_with("$(") => {
                stack.push(Context::Substitution { depth: 0 });
                2
            }
            (Context::Double, _) => c.len_utf8(),
            (_, '\'') => {
                stack.push(Context::Single);
                1
            }
            (_, '"') => {
                stack.push(Context::Double);
                1
            }
            (Context::Substitution { depth }, '(') => {
                stack.pop();
                stack.push(Context::Substitution { depth: depth + 1 });
                1
            }
            (Context::Substitution { depth }, ')') => {
                stack.pop();
                if depth > 0 {
                    stack.push(Context::Substitution { depth: depth - 1 });
                }
                1
            }
            // A comment may hold an apostrophe that opens nothing.
            (_, '#') if word_start => rest.find('\n').unwrap_or(rest.len()),
            _ => c.len_utf8(),
        };
        let (text, tail) = rest.split_at(taken);
        result.push_str(text);
        rest = tail;
        word_start = c.is_whitespace() || "'\"`;|&(<>=".contains(c);
    }
    Ok(result)
}

/// `value`, written so that the shell reads it as it is where `stack` says.
fn quoted(value: Value<'_>, stack: &[Context]) -> String {
    let text = match value {
        Value::Word(text) | Value::Words(text) => text,
    };
    let mut written = match stack.last() {
        Some(Context::Single) => text.replace('\0', "").replace('\'', "'\\''"),
        Some(Context::Double) => escape(&text.replace('\0', ""), "\\\"$`"),
        _ => match value {
            Value::Word(word) => super::quote(word),
            Value::Words(words) => words.to_owned(),
        },
    };
    for _ in stack.iter().filter(|context| **context == Context::Backquotes) {
        written = escape(&written, "\\$`");
    }
    written
}

fn escape(text: &str, special: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if special.contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::{Value, fill};

    /// What a real shell makes of a template.
    fn shell(template: &str, value: &str) -> String {
        let line = fill(template, &[("x", Value::Word(value))]);
        let output = Command::new("/bin/sh").arg("-c").arg(&line).output().unwrap();
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    const NASTY: [&str; 7] = [
        "plain",
        "",
        "a b  c",
        "it's \"quoted\"",
        "$HOME `id` $(id) \\n \\",
        "two\nlines\n\nand a \ttab",
        "{x} * ~ ! # ; &",
    ];

    #[test]
    fn values_survive_wherever_they_stand() {
        for value in NASTY {
            for template in [
                "printf %s {x}",
                "printf %s \"{x}\"",
                "printf %s '{x}'",
                "printf %s \"$(printf %s {x})\"",
                "printf %s \"$( (printf %s \"{x}\") )\"",
                "printf %s `printf %s '{x}'` >/dev/null; printf %s {x}",
                "# don't\nprintf %s {x}",
                "printf %s \"\\\"{x}\" | tail -c +2",
            ] {
                assert_eq!(shell(template, value), value, "through {template}");
            }
        }
    }

    #[test]
    fn backquotes_take_a_level_of_backslashes() {
        for value in ["a'b", "$HOME", "back\\slash", "tick`tick", "\"q\""] {
            assert_eq!(shell("x=`printf %s {x}`; printf %s \"$x\"", value), value);
        }
    }

    #[test]
    fn other_braces_stay() {
        assert_eq!(fill("${A} {y} {} {x", &[("x", Value::Word("v"))]), "${A} {y} {} {x");
    }

    #[test]
    fn words_stay_words_when_bare_and_are_literal_within_quotes() {
        let words = "'a b':'c' d";
        assert_eq!(fill("f {p} \"{p}\"", &[("p", Value::Words(words))]), "f 'a b':'c' d \"'a b':'c' d\"");
    }
}
