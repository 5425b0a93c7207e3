//! Operations on nodes, secrets, configs, registries, backups, tokens and events.

use std::time::Duration;

use axum::http::StatusCode;

use super::{DELETE, GET, PATCH, POST, PUT};
use crate::api::{
    backups, events, files,
    input::Argument,
    nodes,
    operation::Operation,
    orchestrator, registries, tokens,
    types::{
        BackupDetail, BackupView, ConfigCreate, ConfigView, EventView, KeyRotation, KeyRotationRequest,
        NodePatch, NodeView, OrchestratorView, RegistryLogin, RegistryView, Resource, RestoreRequest,
        SecretCreate, SecretView, TokenCreate, TokenCreated, TokenView, WorkerAdmission,
    },
};

/// Backups of large clusters take long.
const BACKUP_PATIENCE: Duration = Duration::from_secs(300);

const FORCE: &[Argument] = &[Argument::once(
    "force",
    "Whether to remove a node whose status is unknown, or a ready worker without access to the store, too.",
)];

const AFTER: &[Argument] = &[Argument::once(
    "after",
    "The id of the last event that was received, for clients that cannot send Last-Event-ID.",
)];

pub(super) fn nodes_and_files() -> Vec<Operation> {
    use Resource::{Configs, Nodes, Registries, Secrets};
    vec![
        Operation::new(
            GET,
            "/v1/nodes",
            "listNodes",
            "Lists all nodes by host name.",
            nodes::list,
        )
        .reads(Nodes)
        .answers::<Vec<NodeView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/nodes",
            "admitWorker",
            "Admits a worker that has no access to the store, by the name in its certificate.",
            nodes::admit,
        )
        .writes(Nodes)
        .takes::<WorkerAdmission>()
        .answers::<NodeView>(StatusCode::CREATED),
        Operation::new(
            GET,
            "/v1/nodes/{node}",
            "inspectNode",
            "Shows a node.",
            nodes::inspect,
        )
        .reads(Nodes)
        .answers::<NodeView>(StatusCode::OK),
        Operation::new(
            PATCH,
            "/v1/nodes/{node}",
            "modifyNode",
            "Changes the availability and labels of a node; null removes a label.",
            nodes::modify,
        )
        .writes(Nodes)
        .takes_patch::<NodePatch>()
        .answers::<NodeView>(StatusCode::OK),
        Operation::new(
            DELETE,
            "/v1/nodes/{node}",
            "removeNode",
            "Removes a node that is down; a worker without access to the store, which is refused from then on, also by force.",
            nodes::remove,
        )
        .arguments(FORCE)
        .writes(Nodes),
        Operation::new(
            POST,
            "/v1/tunnel-key/rotate",
            "rotateTunnelKey",
            "Makes another key for packets between nodes; the one before stays valid until the next time.",
            nodes::rotate_tunnel_key,
        )
        .writes(Nodes),
        Operation::new(
            GET,
            "/v1/secrets",
            "listSecrets",
            "Lists all secrets by name, without their data.",
            files::list_secrets,
        )
        .reads(Secrets)
        .answers::<Vec<SecretView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/secrets",
            "createSecret",
            "Creates a secret.",
            files::create_secret,
        )
        .writes(Secrets)
        .takes::<SecretCreate>()
        .up_to(files::MAX_BODY_BYTES)
        .answers::<SecretView>(StatusCode::CREATED),
        Operation::new(
            GET,
            "/v1/secrets/{secret}",
            "inspectSecret",
            "Shows a secret, without its data.",
            files::inspect_secret,
        )
        .reads(Secrets)
        .answers::<SecretView>(StatusCode::OK),
        Operation::new(
            DELETE,
            "/v1/secrets/{secret}",
            "removeSecret",
            "Removes a secret that no service uses.",
            files::remove_secret,
        )
        .writes(Secrets),
        // It decides what all nodes can decrypt, so it requires the scope `all`.
        Operation::new(
            POST,
            "/v1/secrets-key/rotate",
            "rotateSecretsKey",
            "Replaces the key that encrypts secrets, in two steps where there are several nodes.",
            files::rotate_key,
        )
        .takes::<KeyRotationRequest>()
        .or_nothing()
        .answers::<KeyRotation>(StatusCode::OK)
        .within(BACKUP_PATIENCE),
        Operation::new(
            GET,
            "/v1/configs",
            "listConfigs",
            "Lists all configs by name, without their data.",
            files::list_configs,
        )
        .reads(Configs)
        .answers::<Vec<ConfigView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/configs",
            "createConfig",
            "Creates a config.",
            files::create_config,
        )
        .writes(Configs)
        .takes::<ConfigCreate>()
        .up_to(files::MAX_BODY_BYTES)
        .answers::<ConfigView>(StatusCode::CREATED),
        Operation::new(
            GET,
            "/v1/configs/{config}",
            "inspectConfig",
            "Shows a config with its data.",
            files::inspect_config,
        )
        .reads(Configs)
        .answers::<ConfigView>(StatusCode::OK),
        Operation::new(
            DELETE,
            "/v1/configs/{config}",
            "removeConfig",
            "Removes a config that no service uses.",
            files::remove_config,
        )
        .writes(Configs),
        Operation::new(
            GET,
            "/v1/registries",
            "listRegistries",
            "Lists the registries with stored credentials.",
            registries::list,
        )
        .reads(Registries)
        .answers::<Vec<RegistryView>>(StatusCode::OK),
        Operation::new(
            PUT,
            "/v1/registries/{host}",
            "logIn",
            "Stores credentials that a registry accepts.",
            registries::put,
        )
        .writes(Registries)
        .takes::<RegistryLogin>()
        .answers::<RegistryView>(StatusCode::OK),
        Operation::new(
            DELETE,
            "/v1/registries/{host}",
            "logOut",
            "Removes the credentials for a registry.",
            registries::remove,
        )
        .writes(Registries),
    ]
}

pub(super) fn operator() -> Vec<Operation> {
    use Resource::{Backups, Services, Tokens};
    vec![
        Operation::new(
            GET,
            "/v1/backups",
            "listBackups",
            "Lists the backups on the node that answers, the oldest first.",
            backups::list,
        )
        .reads(Backups)
        .answers::<Vec<BackupView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/backups",
            "createBackup",
            "Creates a backup.",
            backups::create,
        )
        .writes(Backups)
        .within(BACKUP_PATIENCE)
        .answers::<BackupView>(StatusCode::CREATED),
        Operation::new(
            GET,
            "/v1/backups/{backup}",
            "inspectBackup",
            "Reads and verifies a whole backup, and shows its content.",
            backups::inspect,
        )
        .reads(Backups)
        .within(BACKUP_PATIENCE)
        .answers::<BackupDetail>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/backups/{backup}/restore",
            "restoreBackup",
            "Replaces the content of the store by that of a backup.",
            backups::restore,
        )
        // It restores tokens, secrets and everything else, so it requires the scope `all`.
        .within(BACKUP_PATIENCE)
        .takes::<RestoreRequest>()
        .or_nothing()
        .answers::<BackupDetail>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/tokens",
            "listTokens",
            "Lists all tokens, without the tokens themselves.",
            tokens::list,
        )
        .reads(Tokens)
        .answers::<Vec<TokenView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/tokens",
            "createToken",
            "Creates a token; only this answer contains it.",
            tokens::create,
        )
        .writes(Tokens)
        .takes::<TokenCreate>()
        .answers::<TokenCreated>(StatusCode::CREATED),
        Operation::new(
            DELETE,
            "/v1/tokens/{token}",
            "removeToken",
            "Removes a token.",
            tokens::remove,
        )
        .writes(Tokens),
        Operation::new(
            GET,
            "/v1/events",
            "followEvents",
            "Streams changes as server-sent events. The event `reset` means that some were lost.",
            events::follow,
        )
        .reads(Services)
        .arguments(AFTER)
        .streams::<EventView>("text/event-stream"),
        Operation::new(
            GET,
            "/v1/orchestrator",
            "inspectOrchestrator",
            "Shows the state of the orchestrator, as the node that answers sees it.",
            orchestrator::inspect,
        )
        .reads(Services)
        .answers::<OrchestratorView>(StatusCode::OK),
    ]
}
