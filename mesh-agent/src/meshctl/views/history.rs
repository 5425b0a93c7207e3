//! `service history` and `service diff`. Pure.

use mesh_orchestrator::{api::types::HistoryEntry, objects::Timestamp, store::Difference};
use serde_json::Value;

use crate::meshctl::output::{
    Layout,
    people::{ago, rfc3339},
};

/// What a service has been through.
pub(crate) const HISTORY: Layout = Layout {
    fields: &[
        ("Revision", "REVISION"),
        ("CreatedAt", "CREATED"),
        ("By", "BY"),
        ("Action", "ACTION"),
        ("Detail", "DETAIL"),
        ("Time", "TIME"),
    ],
    table: r"{{.Revision}}\t{{.CreatedAt}}\t{{.By}}\t{{.Action}}\t{{.Detail}}",
    quiet: "{{.Revision}}",
    raw: &[],
};

/// What differs between two revisions.
pub(crate) const DIFF: Layout = Layout {
    fields: &[("Path", "PATH"), ("From", "FROM"), ("To", "TO")],
    table: r"{{.Path}}\t{{.From}}\t{{.To}}",
    quiet: "{{.Path}}",
    raw: &[],
};

/// One row for each entry, in the API's order: the newest first.
pub(crate) fn rows(entries: &[HistoryEntry], now: Timestamp) -> Vec<Value> {
    entries
        .iter()
        .map(|entry| match entry {
            HistoryEntry::Revision { revision, author } => HISTORY.row([
                revision.to_string().into(),
                ago(author.at, now).into(),
                author.by.as_str().into(),
                author.action.as_str().into(),
                "".into(),
                rfc3339(author.at).into(),
            ]),
            HistoryEntry::Webhook(call) => {
                let detail = match (&call.error, call.warnings.as_slice()) {
                    (Some(error), _) => format!("failed: {error}"),
                    (None, []) => call.image.clone(),
                    (None, warnings) => format!("{} ({})", call.image, warnings.join("; ")),
                };
                HISTORY.row([
                    call.revision
                        .map_or_else(|| "-".to_owned(), |revision| revision.to_string())
                        .into(),
                    ago(call.at, now).into(),
                    format!("webhook {}", call.webhook).into(),
                    "webhook called".into(),
                    detail.into(),
                    rfc3339(call.at).into(),
                ])
            }
        })
        .collect()
}

/// One row for each difference; `-` where there was nothing, or is nothing any more.
pub(crate) fn diff_rows(differences: &[Difference]) -> Vec<Value> {
    let shown = |value: &Option<Value>| match value {
        None => "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.to_string(),
    };
    differences
        .iter()
        .map(|difference| {
            DIFF.row([
                difference.path.as_str().into(),
                shown(&difference.from).into(),
                shown(&difference.to).into(),
            ])
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::meshctl::{output::Format, views::testing::NOW};

    #[test]
    fn revisions_and_webhooks_are_one_list() {
        let entries: Vec<HistoryEntry> = serde_json::from_value(json!([
            {"kind": "webhook", "webhook": "ci", "at": NOW, "image": "nginx:1@sha256:aa"},
            {"kind": "revision", "revision": "1-9f2c04ab", "author": {"by": "root", "at": NOW.0 - 60_000, "action": "create"}},
        ]))
        .unwrap();
        assert_eq!(
            HISTORY
                .render(&rows(&entries, NOW), &Format::Table, false)
                .unwrap(),
            "REVISION     CREATED                  BY           ACTION           DETAIL\n\
             -            Less than a second ago   webhook ci   webhook called   nginx:1@sha256:aa\n\
             1-9f2c04ab   About a minute ago       root         create           \n"
        );
    }

    #[test]
    fn differences_show_what_is_missing_as_a_dash() {
        let differences: Vec<Difference> = serde_json::from_value(json!([
            {"path": "mode.replicated.replicas", "from": 1, "to": 2},
            {"path": "labels.a", "to": "x"},
        ]))
        .unwrap();
        assert_eq!(
            DIFF.render(&diff_rows(&differences), &Format::Table, false)
                .unwrap(),
            "PATH                       FROM      TO\n\
             mode.replicated.replicas   1         2\n\
             labels.a                   -         x\n"
        );
    }
}
