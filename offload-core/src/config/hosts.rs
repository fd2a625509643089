//! The list `provider.hosts`: its items are tables, which no other key has.

use super::diagnostic::{Problem, alternatives, nearest};
use super::expand::Text;
use super::schema::Kind;
use super::value::{Checked, Data, Raw, bad, check, spell_text, wrong_type};

/// One host as it was written.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Host {
    pub(super) host: Text,
    pub(super) slots: Option<i64>,
    pub(super) user: Option<Text>,
    pub(super) port: Option<i64>,
    pub(super) identity: Option<Text>,
    pub(super) workdir: Option<Text>,
}

/// What an item may say, and of which kind that is.
const FIELDS: [(&str, Kind); 6] = [
    ("host", Kind::Text),
    ("slots", Kind::Int { min: 1, max: 10_000 }),
    ("user", Kind::Text),
    ("port", Kind::Int { min: 1, max: 65_535 }),
    ("identity", Kind::Path),
    ("workdir", Kind::Path),
];

/// The hosts in a list; `None` when something is wrong with one, and what is then among the problems.
pub(super) fn check_hosts(key: &str, items: &[Raw], problems: &mut Vec<Problem>) -> Option<Vec<Host>> {
    let before = problems.len();
    let hosts: Vec<_> = items.iter().filter_map(|item| check_host(key, item, problems)).collect();
    (problems.len() == before).then_some(hosts)
}

fn check_host(key: &str, item: &Raw, problems: &mut Vec<Problem>) -> Option<Host> {
    let mut host = Host::default();
    let fields = match &item.data {
        // A host about which there is nothing more to say.
        Data::Text(name) => {
            host.host = name.clone();
            &Vec::new()
        }
        Data::Table(fields) => fields,
        _ => {
            problems.push(wrong_type(
                &format!("an item of `{key}`"),
                "expected a table such as `{ host = \"build1\", slots = 8 }`",
                Kind::Table,
                item,
            ));
            return None;
        }
    };
    for (name, raw) in fields {
        let Some((name, kind)) = FIELDS.iter().find(|(field, _)| field == name) else {
            let names = FIELDS.map(|(field, _)| field);
            let title = format!("unknown key `{name}` in an item of `{key}`");
            let problem = Problem::new(title, raw.place.to_where(), format!("expected {}", alternatives(&names)));
            problems.push(match nearest(name, names) {
                Some(meant) => problem.with_help(format!("did you mean `{meant}`?")),
                None => problem,
            });
            continue;
        };
        match (*name, check(&format!("{key}.{name}"), *kind, raw, problems)) {
            ("host", Some(Checked::Text(text))) => host.host = text,
            ("slots", Some(Checked::Int(int))) => host.slots = Some(int),
            ("user", Some(Checked::Text(text))) => host.user = Some(text),
            ("port", Some(Checked::Int(int))) => host.port = Some(int),
            ("identity", Some(Checked::Text(text))) => host.identity = Some(text),
            ("workdir", Some(Checked::Text(text))) => host.workdir = Some(text),
            _ => {}
        }
    }
    let named = fields.iter().any(|(name, _)| name == "host") || matches!(item.data, Data::Text(_));
    if !named {
        let label = "expected `host`: a name or address, as for the `ssh` command";
        problems.push(Problem::new(format!("an item of `{key}` names no host"), item.place.to_where(), label));
        return None;
    }
    // What begins with a dash would be an option of `ssh`.
    if host.host.value.is_empty() || host.host.value.starts_with('-') {
        let what = format!("contain the host `{}`", host.host.shown());
        problems.push(bad(key, &what, item, "expected a name or address, as for the `ssh` command".to_owned()));
        return None;
    }
    Some(host)
}

/// The item as TOML, secrets hidden.
pub(super) fn spell_host(host: &Host) -> String {
    let text = |name: &str, text: &Text| format!("{name} = {}", spell_text(&text.written()));
    let mut fields = vec![text("host", &host.host)];
    fields.extend(host.slots.map(|slots| format!("slots = {slots}")));
    fields.extend(host.user.as_ref().map(|user| text("user", user)));
    fields.extend(host.port.map(|port| format!("port = {port}")));
    fields.extend(host.identity.as_ref().map(|identity| text("identity", identity)));
    fields.extend(host.workdir.as_ref().map(|workdir| text("workdir", workdir)));
    format!("{{ {} }}", fields.join(", "))
}
