//! What holds for each key of the schema.

use std::collections::BTreeMap;

use offload_core::config::schema::{DefaultValue, KEYS, Key, Kind, LATER_PROVIDERS};

use super::*;

/// A valid value that is not the default.
fn sample(key: &Key) -> String {
    match key.kind {
        Kind::Int { min, .. } => (min + 7).to_string(),
        Kind::Seconds | Kind::TimeLimit | Kind::Amount => "7.5".to_owned(),
        Kind::Bool => (key.default == DefaultValue::Toml("false")).to_string(),
        Kind::Text | Kind::Path => "\"x7\"".to_owned(),
        Kind::Command(placeholders) => format!("\"x7 {}\"", placeholders.concat()),
        Kind::TestIdFormat => "\"x7 {name}\"".to_owned(),
        Kind::OneOf(values) => {
            let mut spelled = values.iter().map(|value| format!("\"{value}\""));
            spelled.find(|value| !matches!(key.default, DefaultValue::Toml(text) if text == value)).unwrap()
        }
        Kind::Texts | Kind::Globs | Kind::Paths => "[\"x7\"]".to_owned(),
        Kind::CopyDirs => "[\"x7:/x7\"]".to_owned(),
        Kind::Hosts => "[{ host = \"x7\" }]".to_owned(),
        Kind::Env | Kind::Table => "{ X7 = \"x\" }".to_owned(),
    }
}

/// A file with what these types require, and these settings.
fn file(provider: &str, framework: &str, settings: &[(&str, &str)]) -> String {
    let mut values = BTreeMap::new();
    for key in KEYS.iter().filter(|key| key.default == DefaultValue::Required) {
        let of = match key.section() {
            "provider" => provider,
            _ => framework,
        };
        if key.is_for(of) {
            values.insert(key.name, sample(key));
        }
    }
    values.insert("provider.type", format!("\"{provider}\""));
    values.insert("framework.type", format!("\"{framework}\""));
    values.extend(settings.iter().map(|(key, value)| (*key, (*value).to_owned())));
    values.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
}

/// Each key with types that it is for.
fn all() -> impl Iterator<Item = (&'static Key, &'static str, &'static str)> {
    KEYS.iter().filter(|key| key.leaf() != "type").flat_map(|key| {
        let of: Vec<&'static str> = if key.types.is_empty() { vec!["default"] } else { key.types.to_vec() };
        of.into_iter().map(move |of| match key.section() {
            "provider" => (key, of, "cargo"),
            "framework" => (key, "local", of),
            // The provider `default` honours keys that others do not.
            _ => (key, "default", "cargo"),
        })
    })
}

#[test]
fn it_changes_the_configuration_or_is_noticed() {
    for (key, provider, framework) in all() {
        let base = Case::file(&file(provider, framework, &[("groups.NAME.retry_count", "0")])).config();
        let text = file(provider, framework, &[("groups.NAME.retry_count", "0"), (key.name, &sample(key))]);
        let mut config = Case::file(&text).config();
        if LATER_PROVIDERS.contains(&provider) {
            assert!(config.notices[0].contains("is not there yet"), "{text}");
            continue;
        }
        let notices = std::mem::take(&mut config.notices);
        let told = notices.iter().any(|notice| notice.contains(key.name));
        let changed = config != (Config { notices: Vec::new(), ..base });
        assert!(told || changed || key.default == DefaultValue::Required, "{} does nothing:\n{text}", key.name);
    }
}

#[test]
fn its_variable_does_what_the_file_does() {
    for (key, provider, framework) in all() {
        let Some(variable) = key.env_name() else { continue };
        let value = sample(key);
        let by_file = Case::file(&file(provider, framework, &[(key.name, &value)])).config();
        let env = [(variable.as_str(), value.trim_matches('"'))];
        let text = file(provider, framework, &[]);
        let by_env = Case::file(&text).env(&env).config();
        let strip = |config: Config| Config { notices: Vec::new(), ..config };
        assert_eq!(strip(by_env), strip(by_file), "{variable}");
    }
}

#[test]
fn it_is_on_the_page_as_it_is_in_the_schema() {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/CONFIGURATION.md")).unwrap();
    let on_page: Vec<&str> = page.lines().filter(|line| line.starts_with("| `")).collect();
    let in_schema: Vec<String> = KEYS.iter().map(row).collect();
    for line in &on_page {
        assert!(in_schema.iter().any(|row| row == line), "docs/CONFIGURATION.md has a row that no key has:\n{line}");
    }
    for row in &in_schema {
        assert!(on_page.contains(&row.as_str()), "docs/CONFIGURATION.md lacks the row\n{row}");
    }
    assert_eq!(on_page.len(), in_schema.len(), "docs/CONFIGURATION.md has a row twice");
}

fn row(key: &Key) -> String {
    use offload_core::config::schema::Status;
    let only = match key.types {
        [] => String::new(),
        types => types.iter().map(|of| format!("`{of}`")).collect::<Vec<_>>().join(", "),
    };
    let status = match key.status {
        Status::Honoured => String::new(),
        Status::NotYet(why) => format!(" **No effect yet**: {why}."),
        Status::WithProviders { types, because } => {
            let types: Vec<String> = types.iter().map(|of| format!("`{of}`")).collect();
            format!(" Only with provider {}; with others no effect: {because}.", types.join(", "))
        }
    };
    format!("| `{}` | {} | {} | {only} | {}{status} |", key.name, key.kind.type_text(), key.default_text(), key.doc)
}
