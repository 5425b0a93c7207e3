//! `service ps`, `node ps` and `stack ps`: docker's columns; earlier tasks of a slot are indented. Pure.

use mesh_orchestrator::{
    api::types::TaskView,
    objects::{Slot, TaskState, Timestamp},
};
use serde_json::Value;

use super::filter::Filter;
use crate::meshctl::output::{
    Format, Layout,
    people::{ago, capitalised, ellipsis, image, natural, short_id},
};

/// Docker's fields and columns.
pub(crate) const LAYOUT: Layout = Layout {
    fields: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Image", "IMAGE"),
        ("Node", "NODE"),
        ("DesiredState", "DESIRED STATE"),
        ("CurrentState", "CURRENT STATE"),
        ("Error", "ERROR"),
        ("Ports", "PORTS"),
    ],
    table: r"{{.ID}}\t{{.Name}}\t{{.Image}}\t{{.Node}}\t{{.DesiredState}}\t{{.CurrentState}}\t{{.Error}}\t{{.Ports}}",
    quiet: "{{.ID}}",
    raw: &[
        ("id", "ID"),
        ("name", "Name"),
        ("image", "Image"),
        ("node", "Node"),
        ("desired_state", "DesiredState"),
        ("current_state", "CurrentState"),
        ("error", "Error"),
        ("ports", "Ports"),
    ],
};

/// What tasks can be filtered by.
pub(crate) const FILTERS: [&str; 5] = ["desired-state", "id", "name", "node", "service"];

/// Columns of an error that are shown.
const ERROR_WIDTH: usize = 30;

/// How tasks are shown.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Show {
    /// Ids, images and errors are cut.
    pub(crate) trunc: bool,
    /// Names instead of the ids of services and nodes.
    pub(crate) resolve: bool,
    /// Ages are counted from here.
    pub(crate) now: Timestamp,
}

/// One row for each task that passes: by name, the newest of a slot first.
pub(crate) fn rows(mut tasks: Vec<TaskView>, filter: &Filter, format: &Format, show: Show) -> Vec<Value> {
    tasks.retain(|view| {
        let task = &view.task;
        let node = task.node.as_ref().map_or("", |node| node.as_str());
        filter.begins("id", task.id.as_str())
            && filter.begins("name", &view.name)
            && filter.any("service", |wanted| {
                wanted == &*task.service_name || task.service.as_str().starts_with(wanted)
            })
            && filter.any("node", |wanted| {
                view.node_hostname.as_deref() == Some(wanted)
                    || (!wanted.is_empty() && node.starts_with(wanted))
            })
            && filter.any("desired-state", |wanted| is_desired(task.desired, wanted))
    });
    let mut named: Vec<(String, TaskView)> =
        tasks.into_iter().map(|view| (name(&view, show), view)).collect();
    named.sort_by(|(left_name, left), (right_name, right)| {
        natural(left_name, right_name).then(right.task.created_at.cmp(&left.task.created_at))
    });
    let indented = matches!(format, Format::Table | Format::TableOf(_));
    let mut previous = "";
    let mut rows = Vec::new();
    for (name, view) in &named {
        let shown = if name == previous && indented {
            format!(" \\_ {name}")
        } else {
            name.clone()
        };
        previous = name;
        rows.push(row(view, shown, show));
    }
    rows
}

/// A task that completes is meant to run until it has; docker's filter calls all others `shutdown`.
fn is_desired(desired: TaskState, wanted: &str) -> bool {
    match wanted.to_lowercase().as_str() {
        "running" => desired.is_wanted(),
        "shutdown" => !desired.is_wanted(),
        "accepted" => false,
        wanted => desired.to_string() == wanted,
    }
}

fn name(view: &TaskView, show: Show) -> String {
    if show.resolve {
        return view.name.clone();
    }
    format!("{}.{}", view.task.service, view.task.slot)
}

fn row(view: &TaskView, name: String, show: Show) -> Value {
    let task = &view.task;
    let id = task.id.as_str();
    let picture = &task.spec.container_spec.image;
    let node = match (&view.node_hostname, &task.node) {
        (Some(hostname), _) if show.resolve => hostname.as_str(),
        (_, Some(node)) => node.as_str(),
        (_, None) => "",
    };
    let status = &task.status;
    LAYOUT.row([
        if show.trunc { short_id(id) } else { id }.into(),
        name.into(),
        if show.trunc { image(picture) } else { picture }.into(),
        node.into(),
        capitalised(&task.desired.to_string()).into(),
        current_state(status.state, status.at, show.now).into(),
        error(view, show.trunc).into(),
        host_ports(view).into(),
    ])
}

fn current_state(state: TaskState, at: Timestamp, now: Timestamp) -> String {
    format!(
        "{} {}",
        capitalised(&state.to_string()),
        ago(at, now).to_lowercase()
    )
}

/// Why it failed; of a task that waits, what for.
fn error(view: &TaskView, trunc: bool) -> String {
    let status = &view.task.status;
    let waits = matches!(status.state, TaskState::New | TaskState::Pending) && view.task.desired.is_wanted();
    let text = match &status.error {
        Some(error) => error.as_str(),
        None if waits => status.message.as_str(),
        None => "",
    };
    let text = text.replace('\n', " ");
    match (text.is_empty(), trunc) {
        (true, _) => text,
        (false, true) => format!("\"{}\"", ellipsis(&text, ERROR_WIDTH)),
        (false, false) => format!("\"{text}\""),
    }
}

fn host_ports(view: &TaskView) -> String {
    let ports = view.task.host_ports.iter();
    let texts: Vec<String> = ports
        .map(|port| {
            format!(
                "*:{}->{}/{}",
                port.published_port, port.target_port, port.protocol
            )
        })
        .collect();
    texts.join(",")
}

/// The number in a task's name; of a global service's task there is none.
pub(crate) fn slot_number(slot: &Slot) -> u32 {
    match slot {
        Slot::Number(number) => *number,
        Slot::Node(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meshctl::views::testing::{NOW, port, task};

    const SHOW: Show = Show {
        trunc: true,
        resolve: true,
        now: NOW,
    };

    fn tasks() -> Vec<TaskView> {
        let mut old = task("old45678901234567890", "web", 1, TaskState::Failed);
        old.task.created_at = Timestamp(0);
        old.task.status.error = Some("task: non-zero exit (137): out of memory".into());
        let mut host = task("host5678901234567890", "web", 10, TaskState::Running);
        host.task.host_ports = vec![port(80, 8080)];
        vec![
            old,
            host,
            task("new45678901234567890", "web", 1, TaskState::Running),
        ]
    }

    fn render(tasks: Vec<TaskView>, format: &Format, show: Show) -> String {
        let rows = rows(tasks, &Filter::default(), format, show);
        LAYOUT.render(&rows, format, false).unwrap()
    }

    #[test]
    fn the_table_is_dockers_with_earlier_tasks_indented() {
        assert_eq!(
            render(tasks(), &Format::Table, SHOW),
            "ID             NAME        IMAGE        NODE      DESIRED STATE   CURRENT STATE         ERROR                              PORTS\n\
             new456789012   web.1       nginx:1.27   alpha     Running         Running 2 hours ago                                      \n\
             old456789012    \\_ web.1   nginx:1.27   alpha     Shutdown        Failed 2 hours ago    \"task: non-zero exit (137): ou…\"   \n\
             host56789012   web.10      nginx:1.27   alpha     Running         Running 2 hours ago                                      *:80->8080/tcp\n"
        );
    }

    #[test]
    fn no_trunc_shows_all_and_no_resolve_ids() {
        let show = Show {
            trunc: false,
            resolve: false,
            ..SHOW
        };
        let text = render(
            tasks(),
            &Format::of(Some("{{.ID}} {{.Name}} {{.Node}} {{.Image}} {{.Error}}")),
            show,
        );
        assert!(
            text.starts_with(
                "new45678901234567890 0123456789abcdefghijklmno.1 node1 nginx:1.27@sha256:aa \n"
            ),
            "{text}"
        );
        assert!(text.contains("\"task: non-zero exit (137): out of memory\""));
    }

    #[test]
    fn a_task_that_waits_says_what_for() {
        for (state, name, reason) in [
            (
                TaskState::Pending,
                "Pending",
                "no suitable node (insufficient memory on 2 nodes)",
            ),
            (TaskState::New, "New", "waiting for database"),
        ] {
            let mut waiting = task("t", "web", 1, state);
            waiting.node_hostname = None;
            waiting.task.node = None;
            waiting.task.status.message = reason.into();
            let text = render(vec![waiting], &Format::Table, SHOW);
            let begins: String = reason.chars().take(20).collect();
            assert!(
                text.contains(&format!("{name} 2 hours ago   \"{begins}")),
                "{text}"
            );
        }
    }

    #[test]
    fn filters_choose() {
        let count = |text: &str| {
            let filter = Filter::parse(&[text.to_owned()], &FILTERS).unwrap();
            rows(tasks(), &filter, &Format::Table, SHOW).len()
        };
        assert_eq!(count("desired-state=running"), 2);
        assert_eq!(count("desired-state=shutdown"), 1);
        assert_eq!(count("node=alpha"), 3);
        assert_eq!(count("node=node1"), 3);
        assert_eq!(count("node=beta"), 0);
        assert_eq!(count("name=web.10"), 1);
        assert_eq!(count("id=old"), 1);
    }
}
