//! Operations on what is no service: nodes, secrets, configs, registries, backups, tokens, events.

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
        BackupDetail, BackupView, ConfigCreate, ConfigView, EventView, NodePatch, NodeView, OrchestratorView,
        RegistryLogin, RegistryView, Resource, RestoreRequest, SecretCreate, SecretView, TokenCreate,
        TokenCreated, TokenView,
    },
};

/// Backups of large clusters take a while.
const BACKUP_PATIENCE: Duration = Duration::from_secs(300);

const AFTER: &[Argument] = &[Argument::once(
    "after",
    "The id of the last event that was seen, where Last-Event-ID cannot be sent.",
)];

pub(super) fn nodes_and_files() -> Vec<Operation> {
    use Resource::{Configs, Nodes, Registries, Secrets};
    vec![
        Operation::new(
            GET,
            "/v1/nodes",
            "listNodes",
            "All nodes, by host name.",
            nodes::list,
        )
        .reads(Nodes)
        .answers::<Vec<NodeView>>(StatusCode::OK),
        Operation::new(GET, "/v1/nodes/{node}", "inspectNode", "A node.", nodes::inspect)
            .reads(Nodes)
            .answers::<NodeView>(StatusCode::OK),
        Operation::new(
            PATCH,
            "/v1/nodes/{node}",
            "modifyNode",
            "Changes a node's availability and labels; null removes a label.",
            nodes::modify,
        )
        .writes(Nodes)
        .takes_patch::<NodePatch>()
        .answers::<NodeView>(StatusCode::OK),
        Operation::new(
            DELETE,
            "/v1/nodes/{node}",
            "removeNode",
            "Forgets a node that is down.",
            nodes::remove,
        )
        .writes(Nodes),
        Operation::new(
            GET,
            "/v1/secrets",
            "listSecrets",
            "All secrets, by name.",
            files::list_secrets,
        )
        .reads(Secrets)
        .answers::<Vec<SecretView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/secrets",
            "createSecret",
            "Keeps a secret.",
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
            "A secret, without what is in it.",
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
        Operation::new(
            GET,
            "/v1/configs",
            "listConfigs",
            "All configs, by name.",
            files::list_configs,
        )
        .reads(Configs)
        .answers::<Vec<ConfigView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/configs",
            "createConfig",
            "Keeps a config.",
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
            "A config and what is in it.",
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
            "The registries that there are credentials for.",
            registries::list,
        )
        .reads(Registries)
        .answers::<Vec<RegistryView>>(StatusCode::OK),
        Operation::new(
            PUT,
            "/v1/registries/{host}",
            "logIn",
            "Stores the credentials for a registry.",
            registries::put,
        )
        .writes(Registries)
        .takes::<RegistryLogin>()
        .answers::<RegistryView>(StatusCode::OK),
        Operation::new(
            DELETE,
            "/v1/registries/{host}",
            "logOut",
            "Forgets the credentials for a registry.",
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
            "The asked node's backups, the oldest first.",
            backups::list,
        )
        .reads(Backups)
        .answers::<Vec<BackupView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/backups",
            "createBackup",
            "Makes a backup.",
            backups::create,
        )
        .writes(Backups)
        .within(BACKUP_PATIENCE)
        .answers::<BackupView>(StatusCode::CREATED),
        Operation::new(
            GET,
            "/v1/backups/{backup}",
            "inspectBackup",
            "Reads a backup through and says what is in it.",
            backups::inspect,
        )
        .reads(Backups)
        .within(BACKUP_PATIENCE)
        .answers::<BackupDetail>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/backups/{backup}/restore",
            "restoreBackup",
            "Puts a backup in the place of what is in the store.",
            backups::restore,
        )
        // It brings back tokens, secrets and all else: only for who may do everything.
        .within(BACKUP_PATIENCE)
        .takes::<RestoreRequest>()
        .or_nothing()
        .answers::<BackupDetail>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/tokens",
            "listTokens",
            "All tokens, without what has to be sent.",
            tokens::list,
        )
        .reads(Tokens)
        .answers::<Vec<TokenView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/tokens",
            "createToken",
            "Makes a token; this answer alone has it.",
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
            "What changes, as server-sent events. `reset` says that some are lost.",
            events::follow,
        )
        .reads(Services)
        .arguments(AFTER)
        .streams::<EventView>("text/event-stream"),
        Operation::new(
            GET,
            "/v1/orchestrator",
            "inspectOrchestrator",
            "The orchestrator, as the asked node sees it.",
            orchestrator::inspect,
        )
        .reads(Services)
        .answers::<OrchestratorView>(StatusCode::OK),
    ]
}
