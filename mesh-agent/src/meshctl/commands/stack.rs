//! `meshctl stack`: compose files, deployed as docker does.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use mesh_orchestrator::{
    api::types::{ConfigCreate, ConfigView, SecretCreate, SecretView, ServiceChanged, ServiceView, TaskView},
    spec::ServiceSpec,
};

use super::{ListFlags, PlainListFlags, read_file, say, service::TaskFlags, service_change, warn, warn_all};
use crate::meshctl::{
    client::{Api, ApiError},
    compose::{self, FileKind, MAX_BYTES, NewFile, STACK_IMAGE, Stack},
    failure::Failure,
    flags::{Surroundings, fields},
    progress::{WaitFlags, wait_for_services},
    views::{
        filter::Filter,
        services,
        stacks::{self, NAMESPACE},
    },
};

/// Docker's commands for stacks.
#[derive(Debug, Subcommand)]
pub enum StackCommand {
    /// Deploy a new stack or update an existing stack
    #[command(visible_alias = "up")]
    Deploy(Deploy),
    /// List stacks
    #[command(visible_alias = "list")]
    Ls(PlainListFlags),
    /// List the tasks in the stack
    Ps(Ps),
    /// List the services in the stack
    Services(Services),
    /// Remove one or more stacks
    #[command(visible_aliases = ["remove", "down"])]
    Rm(Remove),
}

/// A stack to deploy.
#[derive(Debug, Args)]
pub struct Deploy {
    /// Path to a compose file, or "-" to read from stdin; later ones are put on top
    #[arg(long, short = 'c', required = true, value_name = "FILE")]
    compose_file: Vec<PathBuf>,
    /// Prune services that are no longer referenced
    #[arg(long)]
    prune: bool,
    /// Accepted for scripts: credentials are stored by `meshctl registry login`
    #[arg(long)]
    with_registry_auth: bool,
    /// Query the registry to resolve image digests
    #[arg(long, value_name = "WHEN", value_parser = ["always", "changed", "never"])]
    resolve_image: Option<String>,
    #[command(flatten)]
    wait: WaitFlags,
    /// The stack's name
    #[arg(value_name = "STACK")]
    stack: String,
}

/// Tasks of a stack.
#[derive(Debug, Args)]
pub struct Ps {
    /// The stack's name
    #[arg(value_name = "STACK")]
    stack: String,
    #[command(flatten)]
    tasks: TaskFlags,
}

/// Services of a stack.
#[derive(Debug, Args)]
pub struct Services {
    /// The stack's name
    #[arg(value_name = "STACK")]
    stack: String,
    #[command(flatten)]
    list: ListFlags,
}

/// Stacks to remove.
#[derive(Debug, Args)]
pub struct Remove {
    /// Do not wait for stack removal
    #[arg(long, short = 'd', num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    detach: Option<bool>,
    /// The stacks' names
    #[arg(required = true, value_name = "STACK")]
    stacks: Vec<String>,
}

pub(super) async fn run(api: &Api, command: StackCommand) -> Result<(), Failure> {
    match command {
        StackCommand::Deploy(deploy) => deploy.run(api).await,
        StackCommand::Ls(list) => {
            let views: Vec<ServiceView> = api.get(&["services"], &[]).await?;
            list.print(&stacks::LAYOUT, &stacks::rows(&views))
        }
        StackCommand::Ps(ps) => {
            ps.tasks.check()?;
            let mut views: Vec<TaskView> = Vec::new();
            for service in services_of(api, &ps.stack).await? {
                let tasks: Vec<TaskView> = api.get(&["services", service.id.as_str(), "tasks"], &[]).await?;
                views.extend(tasks);
            }
            if views.is_empty() {
                return Err(Failure::Outcome(format!("nothing found in stack: {}", ps.stack)));
            }
            ps.tasks.print(views, false)
        }
        StackCommand::Services(Services { stack, list }) => {
            let filter = Filter::parse(&list.filter, &services::FILTERS)?;
            let views = services_of(api, &stack).await?;
            if views.is_empty() {
                eprintln!("Nothing found in stack: {stack}");
                return Ok(());
            }
            list.print(&services::LAYOUT, &services::rows(views, &filter))
        }
        StackCommand::Rm(remove) => {
            let mut failures = Vec::new();
            for stack in &remove.stacks {
                if let Err(failure) = remove_stack(api, stack, remove.detach != Some(true)).await {
                    failures.push(failure);
                }
            }
            Failure::all(failures)
        }
    }
}

async fn services_of(api: &Api, stack: &str) -> Result<Vec<ServiceView>, Failure> {
    compose::check_stack_name(stack)?;
    let views: Vec<ServiceView> = api.get(&["services"], &[("stack", stack)]).await?;
    let mut views: Vec<_> = views
        .into_iter()
        .filter(|view| view.spec.labels.get(NAMESPACE).is_some_and(|name| name == stack))
        .collect();
    views.sort_by(|left, right| left.spec.name.cmp(&right.spec.name));
    Ok(views)
}

async fn remove_stack(api: &Api, stack: &str, wait: bool) -> Result<(), Failure> {
    let services = services_of(api, stack).await?;
    let of_stack = |labels: &std::collections::BTreeMap<String, String>| {
        labels.get(NAMESPACE).is_some_and(|name| name == stack)
    };
    let secrets: Vec<SecretView> = api.get(&["secrets"], &[]).await?;
    let configs: Vec<ConfigView> = api.get(&["configs"], &[]).await?;
    let secrets: Vec<_> = secrets
        .into_iter()
        .filter(|secret| of_stack(&secret.labels))
        .collect();
    let configs: Vec<_> = configs
        .into_iter()
        .filter(|config| of_stack(&config.labels))
        .collect();
    if services.is_empty() && secrets.is_empty() && configs.is_empty() {
        eprintln!("Nothing found in stack: {stack}");
        return Ok(());
    }
    let names: Vec<String> = services.iter().map(|view| view.spec.name.clone()).collect();
    for name in &names {
        say(&format!("Removing service {name}"))?;
    }
    service_change::remove_quietly(api, &services, wait).await?;
    for secret in secrets {
        say(&format!("Removing secret {}", secret.name))?;
        api.delete(&["secrets", &secret.name]).await?;
    }
    for config in configs {
        say(&format!("Removing config {}", config.name))?;
        api.delete(&["configs", &config.name]).await?;
    }
    Ok(())
}

impl Deploy {
    async fn run(&self, api: &Api) -> Result<(), Failure> {
        let stack = self.read()?;
        if !stack.ignored.is_empty() {
            warn(&format!(
                "ignoring keys that have no effect here: {}",
                stack.ignored.join(", ")
            ));
        }
        let known = services_of(api, &self.stack).await?;
        if self.prune {
            self.prune(api, &known, &stack).await?;
        }
        put_files(api, &stack).await?;
        let query =
            service_change::resolving((self.resolve_image.as_deref() == Some("never")).then_some(false));
        let mut changed = Vec::new();
        // What others depend on comes first, so that their names are known.
        for spec in in_order(&stack.services) {
            match known.iter().find(|view| view.spec.name == spec.name) {
                Some(view) => {
                    if update(api, view, spec, query).await? {
                        changed.push(spec.name.clone());
                    }
                }
                None => {
                    say(&format!("Creating service {}", spec.name))?;
                    let made: ServiceChanged = api.post_with(&["services"], query, spec).await?;
                    warn_all(made.warnings.as_deref());
                    changed.push(spec.name.clone());
                }
            }
        }
        match self.wait.wait() {
            Some(wait) => wait_for_services(api, &changed, wait).await,
            None => Ok(()),
        }
    }

    fn read(&self) -> Result<Stack, Failure> {
        let mut files = Vec::new();
        for file in &self.compose_file {
            files.push((file.clone(), read_file(file, MAX_BYTES)?));
        }
        let current = std::env::current_dir().map_err(Failure::io("cannot find out the working folder"))?;
        let first = self.compose_file.first().map_or(Path::new("-"), PathBuf::as_path);
        let folder = match first.parent() {
            Some(parent) if first != Path::new("-") => current.join(parent),
            _ => current,
        };
        let surroundings = Surroundings {
            folder,
            variable: &|name| std::env::var(name).ok(),
            read: &|path| std::fs::read(path),
        };
        Ok(compose::read(&files, &self.stack, &surroundings)?)
    }

    async fn prune(&self, api: &Api, known: &[ServiceView], stack: &Stack) -> Result<(), Failure> {
        let wanted: BTreeSet<&str> = stack.services.iter().map(|spec| spec.name.as_str()).collect();
        let old: Vec<ServiceView> = known
            .iter()
            .filter(|view| !wanted.contains(view.spec.name.as_str()))
            .cloned()
            .collect();
        for view in &old {
            say(&format!("Removing service {}", view.spec.name))?;
        }
        service_change::remove_quietly(api, &old, false).await
    }
}

/// Services after those that they depend on. The file was checked for cycles.
fn in_order(specs: &[ServiceSpec]) -> Vec<&ServiceSpec> {
    let mut ordered: Vec<&ServiceSpec> = Vec::new();
    let mut left: Vec<&ServiceSpec> = specs.iter().collect();
    while !left.is_empty() {
        let (ready, others): (Vec<_>, Vec<_>) = left.iter().copied().partition(|spec| {
            spec.depends_on
                .iter()
                .all(|name| !left.iter().any(|other| other.name == *name))
        });
        if ready.is_empty() {
            ordered.extend(others);
            break;
        }
        ordered.extend(ready);
        left = others;
    }
    ordered
}

/// Whether there was anything to change.
async fn update(
    api: &Api,
    view: &ServiceView,
    spec: &ServiceSpec,
    query: &[(&str, &str)],
) -> Result<bool, Failure> {
    let mut spec = spec.clone();
    let (name, known) = (spec.name.clone(), &view.spec);
    let task = std::sync::Arc::make_mut(&mut spec.task_template);
    task.force_update = known.task_template.force_update;
    // The same tag stays on the digest that it had, as docker does it; a webhook or --image looks anew.
    if known.labels.get(STACK_IMAGE) == Some(&task.container_spec.image) {
        task.container_spec
            .image
            .clone_from(&known.task_template.container_spec.image);
    }
    spec.rebalance_config = known.rebalance_config.clone();
    say(&format!("Updating service {name} (id: {})", view.id))?;
    if spec == **known {
        return Ok(false);
    }
    let revision = view.revision.to_string();
    let changed: ServiceChanged = api
        .put_with(&["services", view.id.as_str()], query, Some(&revision), &spec)
        .await?;
    warn_all(changed.warnings.as_deref());
    Ok(true)
}

async fn put_files(api: &Api, stack: &Stack) -> Result<(), Failure> {
    let secrets: Vec<SecretView> = api.get(&["secrets"], &[]).await?;
    let configs: Vec<ConfigView> = api.get(&["configs"], &[]).await?;
    let is_there = |kind: FileKind, name: &str| match kind {
        FileKind::Secret => secrets.iter().any(|secret| secret.name == name),
        FileKind::Config => configs.iter().any(|config| config.name == name),
    };
    for (kind, name) in &stack.external {
        if !is_there(*kind, name) {
            return Err(Failure::Outcome(format!(
                "{kind} {name} is external and does not exist: make it with `meshctl {kind} create {name} FILE`"
            )));
        }
    }
    for file in &stack.files {
        if !is_there(file.kind, &file.name) {
            say(&format!("Creating {} {}", file.kind, file.name))?;
            create_file(api, file).await?;
            continue;
        }
        let same = match file.kind {
            // What is in a secret is never told; its size is.
            FileKind::Secret => secrets
                .iter()
                .any(|known| known.name == file.name && known.size == file.size),
            FileKind::Config => {
                let known: ConfigView = api.get(&["configs", &file.name], &[]).await?;
                known.data.as_deref() == Some(file.data.expose())
            }
        };
        if !same {
            return Err(Failure::Outcome(format!(
                "{} {} exists with other content, which cannot change: give it another name in the file (name: ...), as \
                 services that use it need a new one anyway",
                file.kind, file.name
            )));
        }
    }
    Ok(())
}

async fn create_file(api: &Api, file: &NewFile) -> Result<(), ApiError> {
    let (name, labels, data) = (file.name.clone(), file.labels.clone(), file.data.clone());
    match file.kind {
        FileKind::Secret => {
            let _: SecretView = api
                .post(&["secrets"], &SecretCreate { name, labels, data })
                .await?;
        }
        FileKind::Config => {
            let _: ConfigView = api
                .post(&["configs"], &ConfigCreate { name, labels, data })
                .await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meshctl::flags::empty;

    #[test]
    fn services_come_after_those_they_depend_on() {
        let spec = |name: &str, depends_on: &[&str]| {
            let mut spec = empty(name.into(), "x");
            spec.depends_on = depends_on.iter().map(|name| (*name).to_owned()).collect();
            spec
        };
        let specs = [spec("a", &["c"]), spec("b", &[]), spec("c", &["b", "elsewhere"])];
        let names: Vec<&str> = in_order(&specs).iter().map(|spec| spec.name.as_str()).collect();
        assert_eq!(names, ["b", "c", "a"]);
    }
}
