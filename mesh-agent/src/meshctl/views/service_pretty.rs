//! `service inspect --pretty`: docker's layout. Pure.

use mesh_orchestrator::{
    api::types::ServiceView,
    objects::{Timestamp, UpdateStatus},
    spec::{ContainerSpec, FailureAction, MountKind, PublishMode, ServiceMode, UpdateConfig, UpdateOrder},
};

use super::{
    inspect::{capabilities, test},
    pretty::Pretty,
};
use crate::meshctl::{
    flags::units::{show_bytes, show_cpus},
    output::people::{ago, go_duration},
};

/// The text, between empty lines as docker's.
pub(crate) fn pretty(view: &ServiceView, now: Timestamp) -> String {
    let spec = &view.spec;
    let task = &spec.task_template;
    let mut text = Pretty::new();
    text.line("");
    text.line(format_args!("ID:\t\t{}", view.id));
    text.line(format_args!("Name:\t\t{}", spec.name));
    text.labels("Labels:", " ", &spec.labels);
    mode(&mut text, spec.mode);
    text.line(format_args!(
        "Revision:\t{} ({} by {})",
        view.revision, view.author.action, view.author.by
    ));
    if let Some(status) = &view.update_status {
        update_status(&mut text, status, now);
    }
    text.line("Placement:");
    let constraints: Vec<String> = task
        .placement
        .constraints
        .iter()
        .map(ToString::to_string)
        .collect();
    if !constraints.is_empty() {
        text.line(format_args!(" Constraints:\t[{}]", constraints.join(" ")));
    }
    let preferences: Vec<String> = task
        .placement
        .preferences
        .iter()
        .map(|one| format!("spread={}", one.spread))
        .collect();
    if !preferences.is_empty() {
        text.line(format_args!(" Preferences:   [{}]", preferences.join(" ")));
    }
    if task.placement.max_replicas_per_node > 0 {
        text.line(format_args!(
            " Max Replicas Per Node:   {}",
            task.placement.max_replicas_per_node
        ));
    }
    if !spec.mode.is_job() {
        policy(
            &mut text,
            "UpdateConfig:",
            " Update order:      ",
            &spec.update_config,
        );
        policy(
            &mut text,
            "RollbackConfig:",
            " Rollback order:    ",
            &spec.rollback_config,
        );
    }
    container(&mut text, &task.container_spec);
    if let Some(driver) = &task.log_driver {
        text.line("Log Driver:");
        text.line(format_args!(" Name:\t\t{}", driver.name));
        if !driver.options.is_empty() {
            text.line(" LogOpts:");
            for (name, value) in &driver.options {
                text.line(format_args!("  {name}:       {value}"));
            }
        }
        text.line("");
    }
    resources(&mut text, view);
    if !task.networks.is_empty() {
        text.line(format_args!("Networks: {} ", task.networks.join(" ")));
    }
    text.field("Depends on:\t", &spec.depends_on.join(" "));
    text.line("Endpoint Mode:\tvip");
    if !view.ports.is_empty() {
        text.line("Ports:");
        for port in &view.ports {
            text.line(format_args!(" PublishedPort = {}", port.published_port));
            text.line(format_args!("  Protocol = {}", port.protocol));
            text.line(format_args!("  TargetPort = {}", port.target_port));
            let mode = match port.publish_mode {
                PublishMode::Ingress => "ingress",
                PublishMode::Host => "host",
            };
            text.line(format_args!("  PublishMode = {mode}"));
        }
    }
    healthcheck(&mut text, &task.container_spec);
    text.line("");
    text.finish()
}

fn mode(text: &mut Pretty, mode: ServiceMode) {
    match mode {
        ServiceMode::Replicated(settings) => {
            text.line("Service Mode:\tReplicated");
            text.line(format_args!(" Replicas:\t{}", settings.replicas));
        }
        ServiceMode::Global(_) => text.line("Service Mode:\tGlobal"),
        ServiceMode::ReplicatedJob(job) => {
            text.line("Service Mode:\tReplicated Job");
            text.line(format_args!(" Total Completions:\t{}", job.total_completions));
            text.line(format_args!(" Max Concurrent:\t{}", job.max_concurrent));
        }
        ServiceMode::GlobalJob(_) => text.line("Service Mode:\tGlobal Job"),
    }
}

fn update_status(text: &mut Pretty, status: &UpdateStatus, now: Timestamp) {
    let state = serde_json::to_value(status.state).ok();
    text.line("UpdateStatus:");
    text.line(format_args!(
        " State:\t\t{}",
        state
            .as_ref()
            .and_then(|state| state.as_str())
            .unwrap_or_default()
    ));
    text.line(format_args!(" Started:\t{}", ago(status.started_at, now)));
    if let Some(at) = status.completed_at {
        text.line(format_args!(" Completed:\t{}", ago(at, now)));
    }
    text.line(format_args!(" Message:\t{}", status.message));
}

fn policy(text: &mut Pretty, title: &str, order: &str, config: &UpdateConfig) {
    text.line(title);
    text.line(format_args!(" Parallelism:\t{}", config.parallelism));
    if !config.delay.is_zero() {
        text.line(format_args!(" Delay:\t\t{}", go_duration(config.delay)));
    }
    let action = match config.failure_action {
        FailureAction::Pause => "pause",
        FailureAction::Continue => "continue",
        FailureAction::Rollback => "rollback",
    };
    text.line(format_args!(" On failure:\t{action}"));
    text.line(format_args!(
        " Monitoring Period: {}",
        go_duration(config.monitor)
    ));
    text.line(format_args!(" Max failure ratio: {}", config.max_failure_ratio));
    text.line(format_args!(
        " Progress deadline: {}",
        go_duration(config.progress_deadline)
    ));
    let direction = match config.order {
        UpdateOrder::StopFirst => "stop-first",
        UpdateOrder::StartFirst => "start-first",
    };
    text.line(format_args!("{order}{direction}"));
}

fn container(text: &mut Pretty, container: &ContainerSpec) {
    text.line("ContainerSpec:");
    text.line(format_args!(" Image:\t\t{}", container.image));
    if !container.args.is_empty() {
        text.line(format_args!(" Args:\t\t{} ", container.args.join(" ")));
    }
    if !container.env.is_empty() {
        text.line(format_args!(" Env:\t\t{} ", container.env.join(" ")));
    }
    if let Some(dir) = &container.dir {
        text.line(format_args!(" Dir:\t\t{dir}"));
    }
    text.line(format_args!(" Init:\t\t{}", container.init));
    if let Some(user) = &container.user {
        text.line(format_args!(" User: {user}"));
    }
    if !container.capability_add.is_empty() || !container.capability_drop.is_empty() {
        text.line("Capabilities:");
        text.field(" Add: ", &capabilities(&container.capability_add).join(", "));
        text.field(" Drop: ", &capabilities(&container.capability_drop).join(", "));
    }
    if !container.sysctls.is_empty() {
        text.line("SysCtls:");
        for (name, value) in &container.sysctls {
            text.line(format_args!(" {name}: {value}"));
        }
    }
    if !container.mounts.is_empty() {
        text.line("Mounts:");
        for mount in &container.mounts {
            let kind = match mount.kind {
                MountKind::Bind => "bind",
                MountKind::Volume => "volume",
                MountKind::Tmpfs => "tmpfs",
            };
            text.line(format_args!(" Target:\t{}", mount.target));
            text.line(format_args!("  Source:\t{}", mount.source));
            text.line(format_args!("  ReadOnly:\t{}", mount.read_only));
            text.line(format_args!("  Type:\t\t{kind}"));
        }
    }
    for (title, files) in [("Configs:", &container.configs), ("Secrets:", &container.secrets)] {
        if !files.is_empty() {
            text.line(title);
            for file in files {
                text.line(format_args!(
                    " Target:\t{}",
                    file.target.as_ref().unwrap_or(&file.source)
                ));
                text.line(format_args!("  Source:\t{}", file.source));
            }
        }
    }
}

fn resources(text: &mut Pretty, view: &ServiceView) {
    let needs = &view.spec.task_template.resources;
    text.line("Resources:");
    let amounts = |text: &mut Pretty, title: &str, cpus: u64, memory: u64| {
        if cpus > 0 || memory > 0 {
            text.line(title);
        }
        if cpus > 0 {
            text.line(format_args!("  CPU:\t\t{}", show_cpus(cpus)));
        }
        if memory > 0 {
            text.line(format_args!("  Memory:\t{}", show_bytes(memory)));
        }
    };
    amounts(
        text,
        " Reservations:",
        needs.reservations.nano_cpus,
        needs.reservations.memory_bytes,
    );
    amounts(
        text,
        " Limits:",
        needs.limits.nano_cpus,
        needs.limits.memory_bytes,
    );
    if needs.limits.pids > 0 {
        text.line(format_args!("  PIDs:\t\t{}", needs.limits.pids));
    }
}

fn healthcheck(text: &mut Pretty, container: &ContainerSpec) {
    let Some(check) = &container.healthcheck else {
        return;
    };
    text.line(" Healthcheck:");
    text.line(format_args!("  Interval = {}", go_duration(check.interval)));
    text.line(format_args!("  Retries = {}", check.retries));
    text.line(format_args!(
        "  StartPeriod =\t{}",
        go_duration(check.start_period)
    ));
    text.line(format_args!("  Timeout =\t{}", go_duration(check.timeout)));
    text.line("  Tests:");
    for word in test(&check.test) {
        text.line(format_args!("\t Test = {word}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meshctl::views::testing::{NOW, port, service, spec_of};

    #[test]
    fn the_layout_is_dockers() {
        let mut view = service("web");
        view.ports = vec![port(30000, 80)];
        let spec = spec_of(&mut view);
        let task = std::sync::Arc::make_mut(&mut spec.task_template);
        task.resources.limits.nano_cpus = 500_000_000;
        task.resources.limits.memory_bytes = 10 << 20;
        task.resources.limits.pids = 20;
        task.container_spec.env = vec!["A=1".into()];
        let text = pretty(&view, NOW);
        for part in [
            "\nID:\t\t0123456789abcdefghijklmno\nName:\t\tweb\nLabels:\n tier=front\nService Mode:\tReplicated\n Replicas:\t2\n",
            "UpdateConfig:\n Parallelism:\t1\n On failure:\tpause\n Monitoring Period: 5s\n Max failure ratio: 0\n",
            "ContainerSpec:\n Image:\t\tnginx:1.27@sha256:aa\n Env:\t\tA=1 \n Init:\t\tfalse\n",
            "Resources:\n Limits:\n  CPU:\t\t0.5\n  Memory:\t10MiB\n  PIDs:\t\t20\n",
            "Ports:\n PublishedPort = 30000\n  Protocol = tcp\n  TargetPort = 80\n  PublishMode = ingress\n",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
