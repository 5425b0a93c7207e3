//! Operations on services, their tasks and webhooks.

use axum::http::StatusCode;

use super::{DELETE, GET, PATCH, POST, PUT};
use crate::{
    api::{
        history,
        input::{Argument, Precondition},
        logs::{self, NDJSON},
        operation::Operation,
        services, tasks,
        types::{
            HistoryEntry, LogLine, Resource, RevisionView, RollbackRequest, ScaleRequest, ServiceChanged,
            ServiceView, TaskView, WebhookAnswer, WebhookCreate, WebhookPatch, WebhookView,
        },
        webhooks,
    },
    spec::ServiceSpec,
    store::Difference,
};

/// What a webhook's caller may send; it is not looked at.
const WEBHOOK_BODY: usize = 1 << 20;

const LOG_ARGUMENTS: &[Argument] = &[
    Argument::once("follow", "Go on with what will be written: true or false."),
    Argument::once("tail", "Only so many of each task's last lines, or `all`."),
    Argument::once(
        "since",
        "Only what was written since: RFC 3339, seconds since 1970, or how long ago (`10m`).",
    ),
    Argument::once(
        "timestamps",
        "Accepted for Docker's users: each line has its time anyway.",
    ),
    Argument::once("local", "Only tasks of the asked node: true or false."),
];

const SERVICE_FILTERS: &[Argument] = &[
    Argument::repeated("label", "Only with this label: `name` or `name=value`."),
    Argument::repeated("name", "Only those whose name begins so."),
    Argument::once("stack", "Only those of a stack."),
];

const TASK_FILTERS: &[Argument] = &[
    Argument::once("service", "Only those of a service."),
    Argument::once("node", "Only those of a node."),
];

const COMPARED: &[Argument] = &[
    Argument::once(
        "from",
        "A revision's number; the one before the other if left out.",
    ),
    Argument::once("to", "A revision's number; the current one if left out."),
];

pub(super) fn services_and_tasks() -> Vec<Operation> {
    use Resource::Services;
    vec![
        Operation::new(
            GET,
            "/v1/services",
            "listServices",
            "All services, by name.",
            services::list,
        )
        .reads(Services)
        .arguments(SERVICE_FILTERS)
        .answers::<Vec<ServiceView>>(StatusCode::OK),
        Operation::new(
            POST,
            "/v1/services",
            "createService",
            "Makes a service.",
            services::create,
        )
        .writes(Services)
        .takes::<ServiceSpec>()
        .answers::<ServiceChanged>(StatusCode::CREATED)
        .tagged(),
        Operation::new(
            GET,
            "/v1/services/{service}",
            "inspectService",
            "A service.",
            services::inspect,
        )
        .reads(Services)
        .answers::<ServiceView>(StatusCode::OK)
        .tagged(),
        Operation::new(
            PUT,
            "/v1/services/{service}",
            "replaceService",
            "Gives a service another specification.",
            services::replace,
        )
        .writes(Services)
        .precondition(Precondition::Required)
        .takes::<ServiceSpec>()
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            PATCH,
            "/v1/services/{service}",
            "modifyService",
            "Changes what a merge patch (RFC 7396) names of a service's specification; null removes.",
            services::modify,
        )
        .writes(Services)
        .precondition(Precondition::Optional)
        .takes_patch::<serde_json::Value>()
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            DELETE,
            "/v1/services/{service}",
            "removeService",
            "Removes a service; its tasks stop.",
            services::remove,
        )
        .writes(Services),
        Operation::new(
            POST,
            "/v1/services/{service}/scale",
            "scaleService",
            "Changes the number of a replicated service's tasks.",
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
            "Scales a service to 0 and keeps its definition.",
            services::pause,
        )
        .writes(Services)
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            POST,
            "/v1/services/{service}/resume",
            "resumeService",
            "Scales a paused service back to the number of tasks that it had.",
            services::resume,
        )
        .writes(Services)
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            POST,
            "/v1/services/{service}/rollback",
            "rollBackService",
            "Goes back to an older specification, by the rollback policy.",
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
            "Spreads a service's tasks anew.",
            services::rebalance,
        )
        .writes(Services)
        .answers::<ServiceChanged>(StatusCode::OK)
        .tagged(),
        Operation::new(
            GET,
            "/v1/services/{service}/history",
            "listServiceHistory",
            "The revisions that are kept and the calls of webhooks, the newest first.",
            history::history,
        )
        .reads(Services)
        .answers::<Vec<HistoryEntry>>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/services/{service}/revisions/{revision}",
            "inspectServiceRevision",
            "A service's specification as it was.",
            history::revision,
        )
        .reads(Services)
        .answers::<RevisionView>(StatusCode::OK)
        .tagged(),
        Operation::new(
            GET,
            "/v1/services/{service}/diff",
            "compareServiceRevisions",
            "What differs between two revisions' specifications.",
            history::difference,
        )
        .reads(Services)
        .arguments(COMPARED)
        .answers::<Vec<Difference>>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/services/{service}/tasks",
            "listServiceTasks",
            "A service's tasks, by slot, the newest first.",
            tasks::of_service,
        )
        .reads(Services)
        .answers::<Vec<TaskView>>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/services/{service}/logs",
            "readServiceLogs",
            "What all tasks of a service have written, on all nodes, one JSON object a line.",
            logs::of_service,
        )
        .reads(Services)
        .arguments(LOG_ARGUMENTS)
        .streams::<LogLine>(NDJSON),
        Operation::new(GET, "/v1/tasks", "listTasks", "All tasks.", tasks::list)
            .reads(Services)
            .arguments(TASK_FILTERS)
            .answers::<Vec<TaskView>>(StatusCode::OK),
        Operation::new(GET, "/v1/tasks/{task}", "inspectTask", "A task.", tasks::inspect)
            .reads(Services)
            .answers::<TaskView>(StatusCode::OK),
        Operation::new(
            GET,
            "/v1/tasks/{task}/logs",
            "readTaskLogs",
            "What a task has written, one JSON object a line.",
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
            "A service's webhooks, with their secret URLs.",
            webhooks::list,
        )
        .reads(Webhooks)
        .answers::<Vec<WebhookView>>(StatusCode::OK),
        Operation::new(POST,
            "/v1/services/{service}/webhooks",
            "createWebhook",
            "Makes a webhook: a secret URL that rolls the service.",
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
            "Rolls the webhook's service to what its image's tag means now. The secret is all that is needed.",
            webhooks::call,
        )
        .open()
        .ignores_body(WEBHOOK_BODY)
        .answers::<WebhookAnswer>(StatusCode::OK),
    ]
}
