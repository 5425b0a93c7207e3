//! `service update`'s flags, and what they change of a specification.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use mesh_orchestrator::spec::{ServiceMode, ServiceSpec};

use super::{
    Surroundings, UsageError, fields,
    lists::{Additions, Removals},
    settings::Settings,
    words,
};

/// What shall be different.
#[derive(Clone, Debug, Default, PartialEq, Args)]
pub(crate) struct UpdateFlags {
    /// Service image tag
    #[arg(long, value_name = "IMAGE")]
    image: Option<String>,
    /// Service command args
    #[arg(long, value_name = "COMMAND", allow_hyphen_values = true)]
    args: Option<String>,
    /// Force update even if no changes require it
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = fields::truth)]
    force: Option<bool>,
    /// Add or update an environment variable
    #[arg(long, value_name = "NAME[=VALUE]")]
    env_add: Vec<String>,
    /// Add or update the environment variables of a file
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Remove an environment variable
    #[arg(long, value_name = "NAME")]
    env_rm: Vec<String>,
    /// Add or update a service label
    #[arg(long, value_name = "NAME[=VALUE]")]
    label_add: Vec<String>,
    /// Remove a label by its key
    #[arg(long, value_name = "NAME")]
    label_rm: Vec<String>,
    /// Add or update a container label
    #[arg(long, value_name = "NAME[=VALUE]")]
    container_label_add: Vec<String>,
    /// Remove a container label by its key
    #[arg(long, value_name = "NAME")]
    container_label_rm: Vec<String>,
    /// Add or update a mount on a service
    #[arg(long, value_name = "MOUNT")]
    mount_add: Vec<String>,
    /// Remove a mount by its target path
    #[arg(long, value_name = "TARGET")]
    mount_rm: Vec<String>,
    /// Add a network
    #[arg(long, value_name = "NETWORK")]
    network_add: Vec<String>,
    /// Remove a network
    #[arg(long, value_name = "NETWORK")]
    network_rm: Vec<String>,
    /// Add or update a published port
    #[arg(long, value_name = "PORT")]
    publish_add: Vec<String>,
    /// Remove a published port by its target port
    #[arg(long, value_name = "PORT")]
    publish_rm: Vec<String>,
    /// Add or update a placement constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_add: Vec<String>,
    /// Remove a constraint
    #[arg(long, value_name = "CONSTRAINT")]
    constraint_rm: Vec<String>,
    /// Add a placement preference
    #[arg(long, value_name = "spread=KEY")]
    placement_pref_add: Vec<String>,
    /// Remove a placement preference
    #[arg(long, value_name = "spread=KEY")]
    placement_pref_rm: Vec<String>,
    /// Add or update a secret on a service
    #[arg(long, value_name = "SECRET")]
    secret_add: Vec<String>,
    /// Remove a secret
    #[arg(long, value_name = "SECRET")]
    secret_rm: Vec<String>,
    /// Add or update a config file on a service
    #[arg(long, value_name = "CONFIG")]
    config_add: Vec<String>,
    /// Remove a configuration file
    #[arg(long, value_name = "CONFIG")]
    config_rm: Vec<String>,
    /// Add a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "HOST:IP")]
    host_add: Vec<String>,
    /// Remove a custom host-to-IP mapping (host:ip)
    #[arg(long, value_name = "HOST:IP")]
    host_rm: Vec<String>,
    /// Add or update a sysctl option
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl_add: Vec<String>,
    /// Remove a sysctl option
    #[arg(long, value_name = "NAME")]
    sysctl_rm: Vec<String>,
    /// Add or update a device file of the node
    #[arg(long, value_name = "HOST[:CONTAINER[:rwm]]")]
    device_add: Vec<String>,
    /// Remove a device file by its path
    #[arg(long, value_name = "PATH")]
    device_rm: Vec<String>,
    /// Add a service that must be ready before this one starts
    #[arg(long, value_name = "SERVICE")]
    depends_on_add: Vec<String>,
    /// Remove a service that this one waits for
    #[arg(long, value_name = "SERVICE")]
    depends_on_rm: Vec<String>,
    #[command(flatten)]
    settings: Settings,
}

impl UpdateFlags {
    /// Whether the registry is to be asked for the image's digest.
    pub(crate) fn resolves_image(&self) -> Option<bool> {
        self.settings.resolves_image(self.image.is_some())
    }

    /// Whether nothing was given.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Changes a specification as asked: removals first, then additions, then settings.
    pub(crate) fn apply(
        &self,
        spec: &mut ServiceSpec,
        surroundings: &Surroundings<'_>,
    ) -> Result<(), UsageError> {
        let removals = Removals {
            labels: &self.label_rm,
            container_labels: &self.container_label_rm,
            env: &self.env_rm,
            mounts: &self.mount_rm,
            networks: &self.network_rm,
            ports: &self.publish_rm,
            constraints: &self.constraint_rm,
            preferences: &self.placement_pref_rm,
            secrets: &self.secret_rm,
            configs: &self.config_rm,
            hosts: &self.host_rm,
            sysctls: &self.sysctl_rm,
            devices: &self.device_rm,
            depends_on: &self.depends_on_rm,
        };
        removals.apply(spec)?;
        let additions = Additions {
            labels: &self.label_add,
            container_labels: &self.container_label_add,
            env: &self.env_add,
            env_files: &self.env_file,
            mounts: &self.mount_add,
            networks: &self.network_add,
            ports: &self.publish_add,
            constraints: &self.constraint_add,
            preferences: &self.placement_pref_add,
            secrets: &self.secret_add,
            configs: &self.config_add,
            hosts: &self.host_add,
            sysctls: &self.sysctl_add,
            devices: &self.device_add,
            depends_on: &self.depends_on_add,
            suffix: "-add",
        };
        additions.apply(spec, surroundings)?;
        spec.mode = self.mode(spec.mode)?;
        let task = Arc::make_mut(&mut spec.task_template);
        if let Some(image) = &self.image {
            task.container_spec.image.clone_from(image);
        }
        if let Some(args) = &self.args {
            task.container_spec.args = words("args", args)?;
        }
        if self.force == Some(true) {
            task.force_update = task.force_update.wrapping_add(1);
        }
        self.settings.apply(spec)
    }

    fn mode(&self, mode: ServiceMode) -> Result<ServiceMode, UsageError> {
        let (replicas, concurrent) = (self.settings.replicas(), self.settings.max_concurrent());
        let only = |flag: &str, modes: &str| {
            Err(UsageError::Line(format!(
                "{flag} can only be used with {modes} mode"
            )))
        };
        Ok(match mode {
            ServiceMode::Replicated(_) | ServiceMode::Global(_) | ServiceMode::GlobalJob(_)
                if concurrent.is_some() =>
            {
                return only("max-concurrent", "replicated-job");
            }
            ServiceMode::Global(_) | ServiceMode::GlobalJob(_) if replicas.is_some() => {
                return only("replicas", "replicated or replicated-job");
            }
            ServiceMode::Replicated(mut settings) => {
                settings.replicas = replicas.unwrap_or(settings.replicas);
                ServiceMode::Replicated(settings)
            }
            ServiceMode::ReplicatedJob(mut job) => {
                job.total_completions = replicas.unwrap_or(job.total_completions);
                job.max_concurrent = concurrent.unwrap_or(job.max_concurrent);
                ServiceMode::ReplicatedJob(job)
            }
            ServiceMode::Global(_) | ServiceMode::GlobalJob(_) => mode,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use mesh_orchestrator::spec::Replicated;

    use super::{
        super::{create::empty, testing::surroundings},
        *,
    };

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: UpdateFlags,
        service: String,
    }

    fn update(spec: &ServiceSpec, line: &str) -> Result<ServiceSpec, String> {
        let words = shlex::split(line).unwrap();
        let line = Line::try_parse_from(["update".to_owned()].into_iter().chain(words))
            .map_err(|error| error.to_string())?;
        assert_eq!(line.service, "web");
        let mut spec = spec.clone();
        line.flags
            .apply(&mut spec, &surroundings())
            .map_err(|error| error.to_string())?;
        spec.validated().map_err(|error| error.to_string())
    }

    fn web() -> ServiceSpec {
        empty("web".into(), "nginx:1")
    }

    #[test]
    fn without_flags_nothing_changes() {
        assert_eq!(update(&web(), "web"), Ok(web()));
    }

    #[test]
    fn flags_stand_on_either_side_of_the_service() {
        let spec = update(&web(), "--image nginx:2 web --replicas 4 --args 'a \"b c\"'").unwrap();
        assert_eq!(spec.task_template.container_spec.image, "nginx:2");
        assert_eq!(spec.task_template.container_spec.args, ["a", "b c"]);
        assert_eq!(spec.mode, ServiceMode::Replicated(Replicated { replicas: 4 }));
    }

    #[test]
    fn what_was_added_can_be_removed_by_name() {
        let added = update(
            &web(),
            "web --env-add A=1 --env-add HOME --label-add l=1 --container-label-add c=1 --mount-add src=v,dst=/v --network-add bridge \
             --publish-add 80:8080 --constraint-add node.role==worker --placement-pref-add spread=node.id --secret-add s --config-add c \
             --host-add db:10.0.0.1 --sysctl-add net.a=1 --device-add /dev/fuse --depends-on-add db --cap-add SYS_TIME --user me",
        )
        .unwrap();
        assert_eq!(added.task_template.container_spec.env, ["A=1", "HOME=/root"]);
        let removed = update(
            &added,
            "web --env-rm A --env-rm HOME --label-rm l --container-label-rm c --mount-rm /v --network-rm bridge --publish-rm 8080 \
             --constraint-rm 'node.role == worker' --placement-pref-rm spread=node.id --secret-rm s --config-rm c --host-rm db:10.0.0.1 \
             --sysctl-rm net.a --device-rm /dev/fuse --depends-on-rm db --cap-add RESET --user ''",
        );
        assert_eq!(removed, Ok(web()));
    }

    #[test]
    fn an_addition_replaces_what_has_the_same_name() {
        let spec = update(&web(), "web --env-add A=1 --mount-add src=v,dst=/v").unwrap();
        let spec = update(&spec, "web --env-add A=2 --mount-add src=w,dst=/v,ro").unwrap();
        assert_eq!(spec.task_template.container_spec.env, ["A=2"]);
        assert_eq!(spec.task_template.container_spec.mounts[0].source, "w");
        assert_eq!(spec.task_template.container_spec.mounts.len(), 1);
    }

    #[test]
    fn force_alone_changes_only_the_counter() {
        let mut expected = web();
        Arc::make_mut(&mut expected.task_template).force_update = 1;
        assert_eq!(update(&web(), "web --force"), Ok(expected));
        assert_eq!(update(&web(), "web --force=false"), Ok(web()));
    }

    #[test]
    fn a_health_check_comes_and_goes() {
        let with = update(&web(), "web --health-http 8080/health --health-interval 2s").unwrap();
        let with = update(&with, "web --health-timeout 1s").unwrap();
        let check = with.task_template.container_spec.healthcheck.clone().unwrap();
        assert_eq!((check.interval.as_secs(), check.timeout.as_secs()), (2, 1));
        assert_eq!(update(&with, "web --health-cmd ''"), Ok(web()));
        let none = update(&with, "web --no-healthcheck").unwrap();
        assert_eq!(update(&none, "web --no-healthcheck=false"), Ok(web()));
    }

    #[test]
    fn a_capability_is_either_added_or_dropped() {
        let dropped = update(&web(), "web --cap-drop ALL --cap-drop chown").unwrap();
        let spec = update(&dropped, "web --cap-add CHOWN").unwrap();
        let container = &spec.task_template.container_spec;
        assert_eq!(
            (
                container.capability_add.as_slice(),
                container.capability_drop.as_slice()
            ),
            (&["CHOWN".to_owned()][..], &["ALL".to_owned()][..])
        );
    }
}
