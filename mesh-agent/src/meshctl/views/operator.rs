//! `webhook`, `backup` and `token` lists. Pure.

use mesh_orchestrator::{
    api::types::{BackupDetail, BackupView, TokenView, WebhookView},
    objects::Timestamp,
};
use serde_json::Value;

use super::pretty::Pretty;
use crate::meshctl::{
    flags::units::show_bytes,
    output::{
        Layout,
        people::{ago, duration, moment},
    },
};

/// Webhooks of a service.
pub(crate) const WEBHOOKS: Layout = Layout {
    fields: &[
        ("Name", "NAME"),
        ("Enabled", "ENABLED"),
        ("CreatedAt", "CREATED"),
        ("CalledAt", "LAST CALL"),
        ("URL", "URL"),
    ],
    table: r"{{.Name}}\t{{.Enabled}}\t{{.CreatedAt}}\t{{.CalledAt}}\t{{.URL}}",
    quiet: "{{.Name}}",
    raw: &[],
};

/// Backups.
pub(crate) const BACKUPS: Layout = Layout {
    fields: &[
        ("Name", "NAME"),
        ("Kind", "KIND"),
        ("CreatedAt", "CREATED"),
        ("Size", "SIZE"),
    ],
    table: r"{{.Name}}\t{{.Kind}}\t{{.CreatedAt}}\t{{.Size}}",
    quiet: "{{.Name}}",
    raw: &[],
};

/// Tokens.
pub(crate) const TOKENS: Layout = Layout {
    fields: &[
        ("Name", "NAME"),
        ("Scopes", "SCOPES"),
        ("Allow", "ALLOW"),
        ("Ports", "PORTS"),
        ("Secrets", "SECRETS"),
        ("Configs", "CONFIGS"),
        ("CreatedAt", "CREATED"),
        ("ExpiresAt", "EXPIRES"),
    ],
    table: r"{{.Name}}\t{{.Scopes}}\t{{.Allow}}\t{{.Ports}}\t{{.Secrets}}\t{{.Configs}}\t{{.CreatedAt}}\t{{.ExpiresAt}}",
    quiet: "{{.Name}}",
    raw: &[],
};

/// One row for each webhook.
pub(crate) fn webhook_rows(webhooks: &[WebhookView], now: Timestamp) -> Vec<Value> {
    webhooks
        .iter()
        .map(|webhook| {
            WEBHOOKS.row([
                webhook.name.as_str().into(),
                webhook.enabled.into(),
                ago(webhook.created_at, now).into(),
                webhook
                    .called_at
                    .map_or_else(|| "never".to_owned(), |at| ago(at, now))
                    .into(),
                webhook.url.as_str().into(),
            ])
        })
        .collect()
}

/// One row for each backup, the newest first.
pub(crate) fn backup_rows(mut backups: Vec<BackupView>, now: Timestamp) -> Vec<Value> {
    backups.sort_by_key(|backup| std::cmp::Reverse((backup.created_at, backup.name.clone())));
    backups
        .iter()
        .map(|backup| {
            BACKUPS.row([
                backup.name.as_str().into(),
                backup.kind.as_str().into(),
                ago(backup.created_at, now).into(),
                show_bytes(backup.bytes).into(),
            ])
        })
        .collect()
}

/// One row for each token.
pub(crate) fn token_rows(tokens: &[TokenView], now: Timestamp) -> Vec<Value> {
    tokens
        .iter()
        .map(|token| {
            let scopes: Vec<String> = token.scopes.iter().map(ToString::to_string).collect();
            let allow: Vec<String> = token.allow.iter().map(ToString::to_string).collect();
            let ports = token
                .ports
                .as_ref()
                .map(|ports| ports.iter().map(ToString::to_string).collect());
            let expires = match token.expires_at {
                None => "never".to_owned(),
                Some(at) if at <= now => "expired".to_owned(),
                Some(at) => format!("in {}", duration(at.since(now)).to_lowercase()),
            };
            TOKENS.row([
                token.name.as_str().into(),
                scopes.join(",").into(),
                allow.join(",").into(),
                limited(ports).into(),
                limited(names(&token.secrets)).into(),
                limited(names(&token.configs)).into(),
                ago(token.created_at, now).into(),
                expires.into(),
            ])
        })
        .collect()
}

/// What a token's services are limited to, if they are.
fn limited(texts: Option<Vec<String>>) -> String {
    match texts {
        None => "any".to_owned(),
        Some(texts) if texts.is_empty() => "none".to_owned(),
        Some(texts) => texts.join(","),
    }
}

fn names(prefixes: &Option<Vec<String>>) -> Option<Vec<String>> {
    let shown = |prefixes: &Vec<String>| prefixes.iter().map(|prefix| format!("{prefix}*")).collect();
    prefixes.as_ref().map(shown)
}

/// `backup inspect --pretty`.
pub(crate) fn backup_pretty(detail: &BackupDetail) -> String {
    let mut text = Pretty::new();
    text.line(format_args!("Name:\t\t{}", detail.backup.name));
    text.line(format_args!("Created at:\t{}", moment(detail.backup.created_at)));
    text.line(format_args!("Store:\t\t{}", detail.store));
    text.line(format_args!("Revision:\t{}", detail.revision));
    text.line(format_args!("Release:\t{}", detail.release));
    text.line(format_args!("Size:\t\t{}", show_bytes(detail.backup.bytes)));
    text.line(format_args!("SHA-256:\t{}", detail.sha256));
    text.line("Entries:");
    for (kind, count) in &detail.content.entries {
        text.line(format_args!(" {kind}:\t{count}"));
    }
    text.line("Services:");
    for name in &detail.content.services {
        text.line(format_args!(" {name}"));
    }
    text.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::meshctl::{output::Format, views::testing::NOW};

    #[test]
    fn the_newest_backup_is_first() {
        let backup = |name: &str, age: u64| BackupView {
            name: name.into(),
            kind: "manual".into(),
            created_at: Timestamp(NOW.0 - age),
            bytes: 2048,
        };
        let rows = backup_rows(vec![backup("old", 90_000), backup("new", 5_000)], NOW);
        assert_eq!(
            BACKUPS.render(&rows, &Format::Table, false).unwrap(),
            "NAME      KIND      CREATED              SIZE\n\
             new       manual    5 seconds ago        2KiB\n\
             old       manual    About a minute ago   2KiB\n"
        );
    }

    #[test]
    fn tokens_say_when_they_end() {
        let tokens: Vec<TokenView> = serde_json::from_value(json!([
            {"name": "ci", "scopes": ["services:write", "nodes:read"], "created_at": NOW, "expires_at": NOW.0 + 7_200_000},
            {"name": "old", "scopes": ["all"], "created_at": NOW, "expires_at": NOW.0 - 1},
            {"name": "ops", "scopes": ["all"], "created_at": NOW},
        ]))
        .unwrap();
        let text = TOKENS
            .render(&token_rows(&tokens, NOW), &Format::Table, false)
            .unwrap();
        let ends: Vec<&str> = text
            .lines()
            .skip(1)
            .filter_map(|line| line.rsplit("   ").next())
            .collect();
        assert_eq!(ends, ["in 2 hours", "expired", "never"]);
        assert!(text.contains("services:write,nodes:read"));
    }
}
