//! Operations on services, their tasks and webhooks.

use axum::http::StatusCode;

use super::{DELETE, GET, PATCH, POST, PUT};
use crate::{
    api::{
        history,
        input::{Argument, Precondition},
        logs::{self, NDJSON},
        operation::Operation,
        pinning, services, tasks,
        types::{
            HistoryEntry, LogLine, Resource, RevisionView, RollbackRequest, ScaleRequest, ServiceChanged,
            ServiceView, TaskView, WebhookAnswer, WebhookCreate, WebhookPatch, WebhookView,
        },
        webhooks,
    },
    spec::ServiceSpec,
    store::Difference,
};

/// Maximum size of the body of a webhook's call, which is ignored.
const RESOLVE: &[Argument] = &[Argument::once(
    pinning::RESOLVE,
    "Whether the image's tag is replaced by the digest that it refers to now; if left out, when the image changes.",
)];

const WEBHOOK_BODY: usize = 1 << 20;

const LOG_ARGUMENTS: &[Argument] = &[
    Argument::once("follow", "Continue with new output: true or false."),
    Argument::once("tail", "Only this number of last lines of each task, or `all`."),
    Argument::once(
        "since",
        "Only output since this time: RFC 3339, seconds since 1970, or a duration before now (`10m`).",
    ),
    Argument::once(
        "timestamps",
        "Accepted as in Docker's API, without effect: each line has a time.",
    ),
    Argument::once("local", "Only tasks on the node that answers: true or false."),
];

const SERVICE_FILTERS: &[Argument] = &[
    Argument::repeated("label", "Only services with this label: `name` or `name=value`."),
    Argument::repeated("name", "Only services whose name starts with this."),
    Argument::once("stack", "Only services of this stack."),
];

const TASK_FILTERS: &[Argument] = &[
    Argument::once("service", "Only tasks of this service."),
    Argument::once("node", "Only tasks on this node."),
];

const COMPARED: &[Argument] = &[
    Argument::once(
        "from",
        "The number of the old revision; the one before `to` if left out.",
    ),
    Argument::once(
        "to",
        "The number of the new revision; the current one if left out.",
    ),
];

pub(super) fn services_and_tasks() -> Vec<Operation> {
    use Resource::Services;
    vec![
        Operation::new(
            GET,
            "/v1/services",
            "listServices",
            "Lists all services by name.",
            services::list,
        )
        .reads(Services)
        .arguments(SERVICE_FILTERS)
        .answers::<Vec<ServiceView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/services",
            "createService",
            "Creates a service.",
            services::create,
        )
        .writes(Services)
        .arguments(RESOLVE)
        .takes::<ServiceSpec>()
        .answers::<ServiceChanged>(StatusCode::CREATED)
        .tagged(),
        Operation::new(
            GET,
            "/v1/services/{service}",
            "inspectService",
            "Shows a service.",
            services::inspect,
        )
        .reads(Services)
        .answers::<ServiceView>(StatusCode::OK)
        .tagged(),
        Operation::new(
            PUT,
            "/v1/services/{service}",
            "replaceService",
            "Replaces the specification of a service.",
            services::replace,
        )
        .writes(Services)
        .arguments(RESOLVE)
        .precondition(Precondition::Required)
        .takes::<ServiceSpec>()
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            PATCH,
            "/v1/services/{service}",
            "modifyService",
            "Applies a merge patch (RFC 7396) to the specification of a service; null removes a field.",
            services::modify,
        )
        .writes(Services)
        .arguments(RESOLVE)
        .precondition(Precondition::Optional)
        .takes_patch::<serde_json::Value>()
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            DELETE,
            "/v1/services/{service}",
            "removeService",
            "Removes a service and stops its tasks.",
            services::remove,
        )
        .writes(Services),
        Operation::new(
            POST,
            "/v1/services/{service}/scale",
            "scaleService",
            "Sets the number of replicas of a service.",
            services::scale,
        )
        .writes(Services)
        .takes::<ScaleRequest>()
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            POST,
            "/v1/services/{service}/pause",
            "pauseService",
            "Scales a service to 0 replicas and keeps its specification.",
            services::pause,
        )
        .writes(Services)
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            POST,
            "/v1/services/{service}/resume",
            "resumeService",
            "Scales a paused service back to its last number of replicas.",
            services::resume,
        )
        .writes(Services)
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            POST,
            "/v1/services/{service}/rollback",
            "rollBackService",
            "Rolls back to an older specification, by the rollback policy.",
            history::roll_back,
        )
        .writes(Services)
        .takes::<RollbackRequest>()
        .or_nothing()
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            POST,
            "/v1/services/{service}/rebalance",
            "rebalanceService",
            "Spreads the tasks of a service evenly again.",
            services::rebalance,
        )
        .writes(Services)
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            GET,
            "/v1/services/{service}/history",
            "listServiceHistory",
            "Lists the kept revisions and the calls of webhooks, the newest first.",
            history::history,
        )
        .reads(Services)
        .answers::<Vec<HistoryEntry>>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/services/{service}/revisions/{revision}",
            "inspectServiceRevision",
            "Shows the specification of a service at a revision.",
            history::revision,
        )
        .reads(Services)
        .answers::<RevisionView>(StatusCode::OK)
        .tagged(),
        Operation::new(
            GET,
            "/v1/services/{service}/diff",
            "compareServiceRevisions",
            "Lists the differences between the specifications of two revisions.",
            history::difference,
        )
        .reads(Services)
        .arguments(COMPARED)
        .answers::<Vec<Difference>>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/services/{service}/tasks",
            "listServiceTasks",
            "Lists the tasks of a service by slot, the newest first.",
            tasks::of_service,
        )
        .reads(Services)
        .answers::<Vec<TaskView>>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/services/{service}/logs",
            "readServiceLogs",
            "Reads the output of all tasks of a service on all nodes, one JSON object per line.",
            logs::of_service,
        )
        .reads(Services)
        .arguments(LOG_ARGUMENTS)
        .streams::<LogLine>(NDJSON),
        Operation::new(GET, "/v1/tasks", "listTasks", "Lists all tasks.", tasks::list)
            .reads(Services)
            .arguments(TASK_FILTERS)
            .answers::<Vec<TaskView>>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/tasks/{task}",
            "inspectTask",
            "Shows a task.",
            tasks::inspect,
        )
        .reads(Services)
        .answers::<TaskView>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/tasks/{task}/logs",
            "readTaskLogs",
            "Reads the output of a task, one JSON object per line.",
            logs::of_task,
        )
        .reads(Services)
        .arguments(LOG_ARGUMENTS)
        .streams::<LogLine>(NDJSON),
    ]
}

pub(super) fn webhook_operations() -> Vec<Operation> {
    use Resource::Webhooks;
    vec![
        Operation::new(GET,
            "/v1/services/{service}/webhooks",
            "listWebhooks",
            "Lists the webhooks of a service with their secret URLs.",
            webhooks::list,
        )
        .reads(Webhooks)
        .answers::<Vec<WebhookView>>(StatusCode::OK),
        Operation::new(POST,
            "/v1/services/{service}/webhooks",
            "createWebhook",
            "Creates a webhook: a secret URL that updates the service.",
            webhooks::create,
        )
        .writes(Webhooks)
        .takes::<WebhookCreate>()
        .answers::<WebhookView>(StatusCode::CREATED),
        Operation::new(PATCH,
            "/v1/services/{service}/webhooks/{webhook}",
            "modifyWebhook",
            "Enables or disables a webhook.",
            webhooks::modify,
        )
        .writes(Webhooks)
        .takes_patch::<WebhookPatch>()
        .answers::<WebhookView>(StatusCode::OK),
        Operation::new(DELETE,
            "/v1/services/{service}/webhooks/{webhook}",
            "removeWebhook",
            "Removes a webhook.",
            webhooks::remove,
        )
        .writes(Webhooks),
        Operation::new(POST,
            "/v1/webhooks/{secret}",
            "callWebhook",
            "Updates the service of the webhook to the image that its tag refers to now. Needs only the secret.",
            webhooks::call,
        )
        .open()
        .ignores_body(WEBHOOK_BODY)
        .answers::<WebhookAnswer>(StatusCode::OK),
    ]
}
