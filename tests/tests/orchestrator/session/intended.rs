//! The intended differences between `meshctl` and `docker`, each with its reason. Any other is a bug. Plain
//! data.

/// The part of the outcome that differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Output of docker only.
    Docker,
    /// Output of meshctl only.
    Meshctl,
    /// The exit code.
    Code,
    /// Whether anything is on standard error.
    Stderr,
}

/// An intended difference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Difference {
    /// Part of the command line.
    pub(crate) line: &'static str,
    pub(crate) part: Part,
    /// How the column, the key's path or the line of the output begins.
    pub(crate) piece: &'static str,
    /// The reason.
    #[expect(dead_code, reason = "documents the table")]
    pub(crate) why: &'static str,
}

pub(crate) const INTENDED: &[Difference] = &[
    // Objects.
    only_docker("secret inspect", "[].Version", NEVER_CHANGED),
    only_docker("config inspect", "[].Version", NEVER_CHANGED),
    only_docker("service inspect", "[].Endpoint.VirtualIPs", NO_OVERLAY),
    only_docker(
        "service inspect",
        "[].Spec.TaskTemplate.ContainerSpec.DNSConfig",
        NO_OVERLAY,
    ),
    only_docker(
        "service inspect",
        "[].Spec.TaskTemplate.ContainerSpec.Isolation",
        "for Windows only",
    ),
    only_docker(
        "service inspect",
        "[].Spec.TaskTemplate.ContainerSpec.Configs[].ConfigID",
        BY_NAME,
    ),
    only_docker(
        "service inspect",
        "[].Spec.TaskTemplate.ContainerSpec.Secrets[].SecretID",
        BY_NAME,
    ),
    only_meshctl(
        "service inspect",
        "[].ServiceStatus",
        "docker's API has it, but its inspect does not request it",
    ),
    only_meshctl("service inspect", "[].Revision", REVISIONS),
    only_meshctl("service inspect", "[].Author", REVISIONS),
    only_meshctl("service inspect", "Revision:", REVISIONS),
    only_meshctl("service inspect", "[].Rebalancing", "docker does not rebalance"),
    only_meshctl(
        "service inspect",
        "[].Spec.RebalanceConfig",
        "docker does not rebalance",
    ),
    only_meshctl("service inspect", " Progress deadline:", DEADLINE),
    only_meshctl(
        "service inspect",
        "[].Spec.UpdateConfig.ProgressDeadline",
        DEADLINE,
    ),
    only_meshctl(
        "service inspect",
        "[].Spec.RollbackConfig.ProgressDeadline",
        DEADLINE,
    ),
    only_meshctl(
        "service inspect",
        "[].Spec.TaskTemplate.ContainerSpec.Healthcheck.StartInterval",
        "docker's engines have it from release 25 on",
    ),
    // Nodes.
    only_meshctl("node ls --format json", ".Address", MORE),
    only_meshctl("node ls --format json", ".AgentVersion", MORE),
    only_meshctl("node ls --format json", ".DataPath", MORE),
    only_meshctl("node ls --format json", ".Role", MORE),
    only_meshctl("node ls --format json", ".Tasks", MORE),
    only_meshctl("node inspect", "[].Agent", MORE),
    only_meshctl("node inspect", "[].Reserved", MORE),
    only_meshctl("node inspect", "[].RunningTasks", MORE),
    only_meshctl("node inspect", "[].Status.Since", MORE),
    only_meshctl("node inspect --pretty", " Since:", MORE),
    only_meshctl("node inspect --pretty", "Agent:", MORE),
    only_meshctl("node inspect --pretty", " Version:", MORE),
    only_meshctl("node inspect --pretty", " Data Path:", MORE),
    only_meshctl("node inspect --pretty", " Engine:", MORE),
    only_meshctl("node inspect --pretty", "Reserved ", MORE),
    only_meshctl("node inspect --pretty", "Running Tasks:", MORE),
    only_docker("node inspect", "[].Version", NO_BIRTH),
    only_docker("node inspect", "[].CreatedAt", NO_BIRTH),
    only_docker("node inspect", "[].UpdatedAt", NO_BIRTH),
    only_docker("node inspect --pretty", "Joined at:", NO_BIRTH),
    only_docker("node inspect --pretty", " TrustRoot:", NO_AUTHORITY),
    only_docker("node inspect --pretty", " Issuer", NO_AUTHORITY),
    only_docker("node ls --format json", ".TLSStatus", NO_AUTHORITY),
    only_docker("node inspect --pretty", "TLS Info:", NO_AUTHORITY),
    only_docker("node inspect", "[].Description.TLSInfo", NO_AUTHORITY),
    only_docker("node inspect --pretty", "Plugins:", PLUGINS),
    only_docker("node inspect --pretty", " Log:", PLUGINS),
    only_docker("node inspect --pretty", " Network:", PLUGINS),
    only_docker("node inspect --pretty", " Volume:", PLUGINS),
    only_docker("node inspect", "[].Description.Engine.Plugins", PLUGINS),
    // Progress.
    only_docker("--name steady", "1/1:", STATES),
    only_meshctl("--name steady", "1/1:", STATES),
    // Stacks.
    only_docker("stack deploy", "Creating network", NO_OVERLAY),
    only_docker("stack rm", "Removing network", NO_OVERLAY),
    // Refusals.
    code("--update-order sideways", EARLY),
    code("--restart-condition sometimes", EARLY),
    code("--availability gone", EARLY),
];

const MORE: &str = "docker does not show it";
const NO_BIRTH: &str = "a node exists while its agent is alive, and has no history";
const STATES: &str = "docker shows the states of single tasks on terminals only";
const NEVER_CHANGED: &str = "these have no revisions: they never change";
const NO_OVERLAY: &str = "there is no overlay network: the mesh leads to services";
const BY_NAME: &str = "services name secrets and configs, and find new ones of the same name";
const REVISIONS: &str = "docker keeps no revisions";
const DEADLINE: &str = "docker has no progress deadline";
const NO_AUTHORITY: &str = "there is no certificate authority: certificates are the operator's";
const PLUGINS: &str = "the orchestrator does not ask for the engine's plugins";
const EARLY: &str = "refused as a flag's value; docker leaves it to its engine";

const fn only_docker(line: &'static str, piece: &'static str, why: &'static str) -> Difference {
    Difference {
        line,
        part: Part::Docker,
        piece,
        why,
    }
}

const fn only_meshctl(line: &'static str, piece: &'static str, why: &'static str) -> Difference {
    Difference {
        line,
        part: Part::Meshctl,
        piece,
        why,
    }
}

const fn code(line: &'static str, why: &'static str) -> Difference {
    Difference {
        line,
        part: Part::Code,
        piece: "",
        why,
    }
}
