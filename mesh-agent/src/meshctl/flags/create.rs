//! `service create`'s flags, and the specification that they make.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use mesh_orchestrator::spec::{
    ContainerSpec, Global, Placement, Replicated, ReplicatedJob, ResourceRequirements, RestartPolicy,
    ServiceMode, ServiceSpec, TaskSpec,
};

use super::{Surroundings, UsageError, lists::Additions, settings::Settings};

/// What a new service shall be.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct CreateFlags {
    /// Service name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Service mode ("replicated", "global", "replicated-job", "global-job")
    #[arg(long, default_value = "replicated", value_name = "MODE")]
    mode: String,
    /// Set environment variables
    #[arg(long, short = 'e', value_name = "NAME[=VALUE]")]
    env: Vec<String>,
    /// Read in a file of environment variables
    #[arg(long, value_name = "FILE")]
    env_file: Vec<PathBuf>,
    /// Service labels
    #[arg(long, short = 'l', value_name = "NAME[=VALUE]")]
    label: Vec<String>,
    /// Container labels
    #[arg(long, value_name = "NAME[=VALUE]")]
    container_label: Vec<String>,
    /// Attach a filesystem mount to the service
    #[arg(long, value_name = "MOUNT")]
    mount: Vec<String>,
    /// Network attachments
    #[arg(long, value_name = "NETWORK")]
    network: Vec<String>,
    /// Publish a port as a node port
    #[arg(long, short = 'p', value_name = "PORT")]
    publish: Vec<String>,
    /// Placement constraints
    #[arg(long, value_name = "CONSTRAINT")]
    constraint: Vec<String>,
    /// Add a placement preference
    #[arg(long, value_name = "spread=KEY")]
    placement_pref: Vec<String>,
    /// Specify secrets to expose to the service
    #[arg(long, value_name = "SECRET")]
    secret: Vec<String>,
    /// Specify configurations to expose to the service
    #[arg(long, value_name = "CONFIG")]
    config: Vec<String>,
    /// Set one or more custom host-to-IP mappings (host:ip)
    #[arg(long, value_name = "HOST:IP")]
    host: Vec<String>,
    /// Sysctl options
    #[arg(long, value_name = "NAME=VALUE")]
    sysctl: Vec<String>,
    /// Device files of the node
    #[arg(long, value_name = "HOST[:CONTAINER[:rwm]]")]
    device: Vec<String>,
    /// Services that must be ready before this one starts
    #[arg(long, value_name = "SERVICE")]
    depends_on: Vec<String>,
    #[command(flatten)]
    settings: Settings,
}

impl CreateFlags {
    /// Whether the registry is to be asked for the image's digest.
    pub(crate) fn resolves_image(&self) -> Option<bool> {
        self.settings.resolves_image(false)
    }

    /// The specification of a service that runs an image. `suffix` makes a name that was not chosen unique.
    pub(crate) fn specification(
        &self,
        image: &str,
        arguments: &[String],
        suffix: &str,
        surroundings: &Surroundings<'_>,
    ) -> Result<ServiceSpec, UsageError> {
        let mut spec = empty(
            self.name.clone().unwrap_or_else(|| name_for(image, suffix)),
            image,
        );
        spec.mode = self.mode()?;
        Arc::make_mut(&mut spec.task_template).container_spec.args = arguments.to_vec();
        let additions = Additions {
            labels: &self.label,
            container_labels: &self.container_label,
            env: &self.env,
            env_files: &self.env_file,
            mounts: &self.mount,
            networks: &self.network,
            ports: &self.publish,
            constraints: &self.constraint,
            preferences: &self.placement_pref,
            secrets: &self.secret,
            configs: &self.config,
            hosts: &self.host,
            sysctls: &self.sysctl,
            devices: &self.device,
            depends_on: &self.depends_on,
            suffix: "",
        };
        additions.apply(&mut spec, surroundings)?;
        self.settings.apply(&mut spec)?;
        Ok(spec)
    }

    fn mode(&self) -> Result<ServiceMode, UsageError> {
        let (replicas, concurrent) = (self.settings.replicas(), self.settings.max_concurrent());
        let only = |flag: &str, modes: &str| {
            Err(UsageError::Line(format!(
                "{flag} can only be used with {modes} mode"
            )))
        };
        match self.mode.as_str() {
            "global" | "global-job" if replicas.is_some() => only("replicas", "replicated or replicated-job"),
            "global" | "global-job" | "replicated" if concurrent.is_some() => {
                only("max-concurrent", "replicated-job")
            }
            "global" => Ok(ServiceMode::Global(Global {})),
            "global-job" => Ok(ServiceMode::GlobalJob(Global {})),
            "replicated-job" => {
                let total_completions = replicas.unwrap_or(1);
                Ok(ServiceMode::ReplicatedJob(ReplicatedJob {
                    max_concurrent: concurrent.unwrap_or(total_completions),
                    total_completions,
                }))
            }
            "replicated" => Ok(ServiceMode::Replicated(Replicated {
                replicas: replicas.unwrap_or(1),
            })),
            other => Err(UsageError::Line(format!(
                "unknown mode {other:?}: use replicated, global, replicated-job or global-job"
            ))),
        }
    }
}

/// A specification with docker's defaults.
pub(crate) fn empty(name: String, image: &str) -> ServiceSpec {
    ServiceSpec {
        name,
        labels: Default::default(),
        mode: ServiceMode::default(),
        task_template: Arc::new(TaskSpec {
            runtime: Default::default(),
            container_spec: ContainerSpec {
                image: image.to_owned(),
                ..ContainerSpec::default()
            },
            resources: ResourceRequirements::default(),
            restart_policy: RestartPolicy::default(),
            placement: Placement::default(),
            networks: Vec::new(),
            log_driver: None,
            force_update: 0,
        }),
        update_config: Default::default(),
        rollback_config: Default::default(),
        rebalance_config: Default::default(),
        endpoint_spec: Default::default(),
        depends_on: Vec::new(),
    }
}

/// The image's last word and the suffix: `nginx_x7k2`.
fn name_for(image: &str, suffix: &str) -> String {
    let name = image.split('@').next().unwrap_or(image);
    let name = name.rsplit('/').next().unwrap_or(name);
    let name = name.split(':').next().unwrap_or(name);
    format!("{name}_{suffix}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::Parser;
    use mesh_orchestrator::spec::{FailureAction, MountKind, Probe, UpdateOrder};

    use super::{super::testing::surroundings, *};

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        flags: CreateFlags,
        #[arg(required = true, trailing_var_arg = true)]
        command: Vec<String>,
    }

    fn create(line: &str) -> Result<ServiceSpec, String> {
        let words = shlex::split(line).unwrap();
        let line = Line::try_parse_from(["create".to_owned()].into_iter().chain(words))
            .map_err(|error| error.to_string())?;
        let (image, arguments) = line.command.split_first().unwrap();
        let spec = line
            .flags
            .specification(image, arguments, "x7k2", &surroundings())
            .map_err(|error| error.to_string())?;
        spec.validated().map_err(|error| error.to_string())
    }

    #[test]
    fn the_least_is_an_image() {
        let spec = create("nginx").unwrap();
        assert_eq!(spec, empty("nginx_x7k2".into(), "nginx:latest"));
        assert_eq!(create("localhost:5000/team/web:2").unwrap().name, "web_x7k2");
    }

    #[test]
    fn flags_end_at_the_image() {
        let spec = create("--name web nginx --name other -p 80").unwrap();
        assert_eq!(spec.name, "web");
        let args = &spec.task_template.container_spec.args;
        assert_eq!(args, &["--name", "other", "-p", "80"]);
    }

    #[test]
    fn what_a_docker_user_types_becomes_the_specification() {
        let spec = create(
            "--name web --replicas 3 -e A=1 -e HOME --env-file app.env -l tier=front --container-label c \
             --mount type=bind,src=./site,dst=/srv,readonly --network bridge -p 8080:80 --publish mode=host,target=53,published=53,protocol=udp \
             --constraint 'node.labels.zone == a' --placement-pref spread=node.labels.zone --replicas-max-per-node 2 \
             --limit-cpu 0.5 --limit-memory 512M --limit-pids 100 --reserve-cpu .25 --reserve-memory 64m \
             --cap-add net_admin --cap-drop CAP_CHOWN --health-cmd 'curl -f localhost' --health-interval 5s --health-retries 2 \
             --restart-condition on-failure --restart-delay 1s --restart-max-attempts 3 --restart-window 1m \
             --update-parallelism 2 --update-delay 1s --update-order start-first --update-monitor 3s \
             --update-failure-action rollback --update-max-failure-ratio .2 --update-progress-deadline 2m --rollback-order start-first \
             --stop-signal SIGINT --stop-grace-period 30s --log-driver json-file --log-opt max-size=1m --secret key --config source=c,target=/etc/c \
             --with-registry-auth -u 1000:1000 -w /srv --hostname h --init --read-only --sysctl net.core.somaxconn=1024 \
             --host db:10.0.0.1 --entrypoint 'sh -c' --depends-on db nginx:1.27 'echo hi'",
        )
        .unwrap();
        let task = &spec.task_template;
        let container = &task.container_spec;
        assert_eq!(spec.mode, ServiceMode::Replicated(Replicated { replicas: 3 }));
        assert_eq!(container.env, ["MODE=file", "A=1", "HOME=/root"]);
        assert_eq!(spec.labels["tier"], "front");
        assert_eq!(
            (container.mounts[0].kind, container.mounts[0].source.as_str()),
            (MountKind::Bind, "/work/site")
        );
        assert_eq!(spec.endpoint_spec.ports.len(), 2);
        assert_eq!(task.placement.constraints[0].to_string(), "node.labels.zone==a");
        assert_eq!(task.placement.max_replicas_per_node, 2);
        assert_eq!(task.resources.limits.memory_bytes, 512 << 20);
        assert_eq!(task.resources.reservations.nano_cpus, 250_000_000);
        assert_eq!(
            (
                container.capability_add.join(","),
                container.capability_drop.join(",")
            ),
            ("NET_ADMIN".into(), "CHOWN".into())
        );
        let health = container.healthcheck.as_ref().unwrap();
        assert_eq!(health.test, Probe::Shell("curl -f localhost".into()));
        assert_eq!(
            (health.interval, health.timeout, health.retries),
            (Duration::from_secs(5), Duration::from_secs(30), 2)
        );
        assert_eq!(spec.update_config.failure_action, FailureAction::Rollback);
        assert_eq!(spec.update_config.progress_deadline, Duration::from_secs(120));
        assert_eq!(spec.rollback_config.order, UpdateOrder::StartFirst);
        assert_eq!(container.command, ["sh", "-c"]);
        assert_eq!(container.args, ["echo hi"]);
        assert_eq!(container.stop_grace_period, Some(Duration::from_secs(30)));
        assert_eq!(task.log_driver.as_ref().unwrap().options["max-size"], "1m");
        assert!(container.init && container.read_only);
        assert_eq!(spec.depends_on, ["db"]);
    }

    #[test]
    fn jobs_have_completions() {
        let spec = create("--mode replicated-job --replicas 5 --max-concurrent 2 busybox").unwrap();
        let job = ReplicatedJob {
            max_concurrent: 2,
            total_completions: 5,
        };
        assert_eq!(spec.mode, ServiceMode::ReplicatedJob(job));
        assert_eq!(
            create("--mode global-job busybox").unwrap().mode,
            ServiceMode::GlobalJob(Global {})
        );
    }

    #[test]
    fn contradictions_are_refused_with_a_reason() {
        for (line, reason) in [
            (
                "--mode global --replicas 2 nginx",
                "replicas can only be used with replicated",
            ),
            (
                "--mode global --replicas-max-per-node 2 nginx",
                "replicas-max-per-node can only",
            ),
            ("--max-concurrent 2 nginx", "max-concurrent can only"),
            (
                "--mode replicated-job --update-delay 1s nginx",
                "not supported for jobs",
            ),
            ("--no-healthcheck --health-cmd true nginx", "conflicts"),
            ("--health-interval 1s nginx", "add --health-cmd"),
            ("--log-opt a=b nginx", "--log-driver"),
            ("--limit-memory lots nginx", "512M"),
            ("--mode best nginx", "replicated, global"),
            ("--update-order sideways nginx", "start-first"),
            ("--env-file missing.env nginx", "missing.env"),
            ("--constraint node.labels.a~b nginx", "--constraint"),
            ("--host db nginx", "name:address"),
            ("--dns 1.1.1.1 nginx", "--dns"),
            ("--publish 127.0.0.1:80:80 nginx", "every address"),
            ("", "required"),
        ] {
            let error = create(line).unwrap_err();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
