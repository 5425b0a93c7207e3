//! `secret`, `config` and `registry` lists, and `inspect --pretty` of the first two. Pure.

use std::collections::BTreeMap;

use mesh_orchestrator::{
    api::types::{ConfigView, RegistryView, SecretView},
    objects::Timestamp,
};
use serde_json::{Value, json};

use super::{filter::Filter, pretty::Pretty};
use crate::meshctl::output::{
    Layout,
    people::{ago, moment, natural},
    template::LABELS,
};

/// Docker's fields and columns of secrets.
pub(crate) const SECRETS: Layout = Layout {
    fields: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Driver", "DRIVER"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Labels", "LABELS"),
    ],
    table: r"{{.ID}}\t{{.Name}}\t{{.Driver}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    quiet: "{{.ID}}",
    raw: &[],
};

/// Docker's fields and columns of configs.
pub(crate) const CONFIGS: Layout = Layout {
    fields: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
        ("Labels", "LABELS"),
    ],
    table: r"{{.ID}}\t{{.Name}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    quiet: "{{.ID}}",
    raw: &[],
};

/// Registries with credentials.
pub(crate) const REGISTRIES: Layout = Layout {
    fields: &[
        ("Registry", "REGISTRY"),
        ("Username", "USERNAME"),
        ("CreatedAt", "CREATED"),
        ("UpdatedAt", "UPDATED"),
    ],
    table: r"{{.Registry}}\t{{.Username}}\t{{.CreatedAt}}\t{{.UpdatedAt}}",
    quiet: "{{.Registry}}",
    raw: &[],
};

/// What secrets and configs can be filtered by.
pub(crate) const FILTERS: [&str; 3] = ["id", "label", "name"];

/// One row for each secret that passes, by name.
pub(crate) fn secret_rows(mut secrets: Vec<SecretView>, filter: &Filter, now: Timestamp) -> Vec<Value> {
    secrets.retain(|secret| {
        filter.begins("id", &secret.id)
            && filter.begins("name", &secret.name)
            && filter.labels("label", &secret.labels)
    });
    secrets.sort_by(|left, right| natural(&left.name, &right.name));
    secrets
        .iter()
        .map(|secret| {
            let row = SECRETS.row([
                secret.id.as_str().into(),
                secret.name.as_str().into(),
                "".into(),
                ago(secret.created_at, now).into(),
                ago(secret.updated_at, now).into(),
                joined(&secret.labels).into(),
            ]);
            labelled(row, &secret.labels)
        })
        .collect()
}

/// One row for each config that passes, by name.
pub(crate) fn config_rows(mut configs: Vec<ConfigView>, filter: &Filter, now: Timestamp) -> Vec<Value> {
    configs.retain(|config| {
        filter.begins("id", &config.id)
            && filter.begins("name", &config.name)
            && filter.labels("label", &config.labels)
    });
    configs.sort_by(|left, right| natural(&left.name, &right.name));
    configs
        .iter()
        .map(|config| {
            let row = CONFIGS.row([
                config.id.as_str().into(),
                config.name.as_str().into(),
                ago(config.created_at, now).into(),
                ago(config.updated_at, now).into(),
                joined(&config.labels).into(),
            ]);
            labelled(row, &config.labels)
        })
        .collect()
}

/// One row for each registry.
pub(crate) fn registry_rows(registries: &[RegistryView], now: Timestamp) -> Vec<Value> {
    registries
        .iter()
        .map(|registry| {
            REGISTRIES.row([
                registry.host.as_str().into(),
                registry.username.as_str().into(),
                ago(registry.created_at, now).into(),
                ago(registry.updated_at, now).into(),
            ])
        })
        .collect()
}

/// A row whose labels can be asked for one by one.
fn labelled(mut row: Value, labels: &BTreeMap<String, String>) -> Value {
    row[LABELS] = json!(labels);
    row
}

fn joined(labels: &BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join(",")
}

/// `secret inspect --pretty`.
pub(crate) fn secret_pretty(secret: &SecretView) -> String {
    let mut text = Pretty::new();
    text.line(format_args!("ID:              {}", secret.id));
    text.line(format_args!("Name:              {}", secret.name));
    text.labels("Labels:", " - ", &secret.labels);
    text.line("Driver:            ");
    text.line(format_args!("Created at:        {}", moment(secret.created_at)));
    text.line(format_args!("Updated at:        {}", moment(secret.updated_at)));
    text.field("Used by:           ", &secret.services.join(", "));
    text.finish()
}

/// `config inspect --pretty`; what is in it as text.
pub(crate) fn config_pretty(config: &ConfigView, data: &[u8]) -> String {
    let mut text = Pretty::new();
    text.line(format_args!("ID:\t\t\t{}", config.id));
    text.line(format_args!("Name:\t\t\t{}", config.name));
    text.labels("Labels:", " - ", &config.labels);
    text.line(format_args!(
        "Created at:            \t{}",
        moment(config.created_at)
    ));
    text.line(format_args!(
        "Updated at:            \t{}",
        moment(config.updated_at)
    ));
    text.field("Used by:               \t", &config.services.join(", "));
    text.line("Data:");
    text.line(String::from_utf8_lossy(data));
    text.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meshctl::{output::Format, views::testing::NOW};

    fn secret(name: &str) -> SecretView {
        SecretView {
            id: format!("id-{name}"),
            name: name.into(),
            labels: [("a".to_owned(), "1".to_owned())].into(),
            created_at: Timestamp(NOW.0 - 7_200_000),
            updated_at: Timestamp(NOW.0 - 3_600_000),
            size: 3,
            services: vec!["web".into()],
        }
    }

    #[test]
    fn secrets_are_listed_as_docker_does() {
        let rows = secret_rows(vec![secret("b10"), secret("b2")], &Filter::default(), NOW);
        assert_eq!(
            SECRETS.render(&rows, &Format::Table, false).unwrap(),
            "ID        NAME      DRIVER    CREATED       UPDATED\n\
             id-b2     b2                  2 hours ago   About an hour ago\n\
             id-b10    b10                 2 hours ago   About an hour ago\n"
        );
    }

    #[test]
    fn one_label_can_be_asked_for() {
        let rows = secret_rows(vec![secret("key")], &Filter::default(), NOW);
        let render = |format: &str| SECRETS.render(&rows, &Format::of(Some(format)), false).unwrap();
        assert_eq!(render(r#"{{.Name}} {{.Label "a"}}{{.Label "b"}}"#), "key 1\n");
        assert_eq!(
            render(r#"table {{.Name}}\t{{.Label "x.a-b"}}"#),
            "NAME      a b\nkey       \n"
        );
        assert!(!render("json").contains(LABELS) && !render("{{json .}}").contains(LABELS));
    }

    #[test]
    fn pretty_says_who_uses_a_secret() {
        let text = secret_pretty(&secret("key"));
        assert!(
            text.starts_with("ID:              id-key\nName:              key\nLabels:\n - a=1\nDriver:"),
            "{text}"
        );
        assert!(text.ends_with("Used by:           web\n"), "{text}");
    }
}
