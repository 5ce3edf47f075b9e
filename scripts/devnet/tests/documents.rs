//! docs/operations.md and the dashboard name every option and every measurement that there is, and none that there is not.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use devnet::{binary, paths};
use serde_json::Value;

/// Programs and commands, as the table of the configuration names them, with the command line that lists their options.
const COMMANDS: [(&str, &str, &[&str]); 14] = [
    ("api serve", "littoral-api", &["serve"]),
    ("api settle", "littoral-api", &["settle"]),
    ("api audit", "littoral-api", &["audit"]),
    ("api flag", "littoral-api", &["flag"]),
    ("api session-token", "littoral-api", &["session-token"]),
    ("indexer run", "littoral-indexer", &["run"]),
    ("indexer status", "littoral-indexer", &["status"]),
    ("indexer verify", "littoral-indexer", &["verify"]),
    ("indexer replay", "littoral-indexer", &["replay"]),
    ("indexer rebuild-redis", "littoral-indexer", &["rebuild-redis"]),
    ("littoral", "littoral", &["submit"]),
    ("littoral", "littoral", &["voucher", "sign"]),
    ("littoral", "littoral", &["node", "register"]),
    ("littoral", "littoral", &["node", "run"]),
];
/// Variables that are read without an option.
const WITHOUT_OPTION: [&str; 4] = ["LITTORAL_KEY", "LITTORAL_PASSPHRASE", "RUST_LOG", "AWS_ACCESS_KEY_ID"];
/// Names in the sources that look like measurements and are channels of Postgres.
const NO_MEASUREMENTS: [&str; 3] = ["littoral_job_queued", "littoral_outbox_chain", "littoral_outbox_work"];

fn read(path: &str) -> String {
    std::fs::read_to_string(paths::root().join(path)).unwrap()
}

/// Each option's text in what `--help` prints, in one line.
fn options(help: &str) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    for line in help.lines() {
        let text = line.trim();
        if line.starts_with("  ") && text.starts_with('-') && text.contains("--") {
            options.push(String::new());
        }
        if let Some(option) = options.last_mut() {
            option.push_str(text);
            option.push(' ');
        }
    }
    options
}

/// What stands between `[name: ` and `]`.
fn note(option: &str, name: &str) -> Option<String> {
    let (_, rest) = option.split_once(&format!("[{name}: "))?;
    Some(rest.split_once(']')?.0.to_owned())
}

/// The rows of the table of the configuration, by variable.
fn configuration() -> BTreeMap<String, String> {
    let text = read("docs/operations.md");
    let section = text.split("\n## Configuration\n").nth(1).unwrap().split("\n## ").next().unwrap().to_owned();
    let variable = |line: &str| Some(line.strip_prefix("| `")?.split('`').next()?.to_owned());
    section.lines().filter_map(|line| Some((variable(line)?, line.to_owned()))).collect()
}

#[test]
fn every_variable_is_in_the_table_with_its_default_and_its_processes() {
    let rows = configuration();
    let (mut missing, mut known) = (Vec::new(), BTreeSet::new());
    for (name, program, command) in COMMANDS {
        let output = Command::new(binary(program).unwrap()).args(command).arg("--help").env_clear().output().unwrap();
        assert!(output.status.success(), "{program} {command:?}: {output:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        for option in options(&help) {
            let Some(variable) = note(&option, "env") else { continue };
            let variable = variable.trim_end_matches('=').to_owned();
            let default = note(&option, "default").map(|default| format!("`{}`", default.trim()));
            let row = rows.get(&variable).cloned().unwrap_or_default();
            if !row.contains(&format!("`{name}`")) || !row.contains(default.as_deref().unwrap_or_default()) {
                missing.push(format!("{variable} of {name}, default {default:?}"));
            }
            known.insert(variable);
        }
    }
    assert!(missing.is_empty(), "docs/operations.md, Configuration: {missing:#?}");
    known.extend(WITHOUT_OPTION.map(str::to_owned));
    let gone: Vec<_> = rows.keys().filter(|variable| !known.contains(*variable)).collect();
    assert!(gone.is_empty(), "in docs/operations.md, and nowhere else: {gone:?}");
}

/// Names in `text` that begin as measurements do.
fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.split(|c| !is_part(c))
        .filter(|word| word.strip_prefix("littoral_").is_some_and(|rest| rest.contains('_')))
        .map(str::to_owned)
        .collect()
}

fn sources(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            // What is a whole text between quotation marks; crates have such names too.
            let quoted = text.split('"').filter(|part| names(part).contains(*part));
            found.extend(quoted.map(str::to_owned));
        }
    }
}

/// Every measurement in the sources.
fn measurements() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for part in ["api/src", "market/src", "indexer/src", "cli/src"] {
        sources(&paths::root().join(part), &mut found);
    }
    found.retain(|name| !NO_MEASUREMENTS.contains(&name.as_str()));
    assert!(found.len() > 50, "{found:?}");
    found
}

#[test]
fn every_measurement_is_in_the_list() {
    let text = read("docs/operations.md");
    let listed = text.split("\n## Measurements\n").nth(1).unwrap().split("\n## ").next().unwrap().to_owned();
    let rows: BTreeSet<String> = listed
        .lines()
        .filter(|line| line.starts_with("| `littoral_"))
        .flat_map(|line| names(line).into_iter().next())
        .collect();
    let exist = measurements();
    let missing: Vec<_> = exist.difference(&rows).collect();
    assert!(missing.is_empty(), "docs/operations.md, Measurements: {missing:#?}");
    let gone: Vec<_> = rows.difference(&exist).collect();
    assert!(gone.is_empty(), "in docs/operations.md, and nowhere else: {gone:?}");
}

#[test]
fn the_dashboard_shows_nothing_that_is_not_measured() {
    let dashboard: Value = serde_json::from_str(&read("docs/grafana/littoral.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let rows: Vec<&str> =
        panels.iter().filter(|panel| panel["type"] == "row").filter_map(|row| row["title"].as_str()).collect();
    assert_eq!(rows, ["API", "Queue", "Indexer", "Settler", "Redis, Postgres and others"]);
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_i64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids of panels are their own");
    let exist = measurements();
    let mut shown = 0;
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{}", panel["title"]);
        for target in targets {
            let expression = target["expr"].as_str().unwrap();
            let used = names(expression);
            assert!(!used.is_empty(), "{expression}");
            for name in used {
                let plain = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
                let is_measured = exist.contains(&name) || plain.is_some_and(|plain| exist.contains(plain));
                assert!(is_measured, "{}: there is no {name}", panel["title"]);
                shown += 1;
            }
        }
    }
    assert!(shown > 20, "{shown}");
}
