//! Extracts an agent task's program from its image and tries it out. Runs beside the worker's loop.

use std::{ffi::OsString, sync::Arc};

use super::{
    agent::AgentPrograms,
    prepare::{self, Order, Preparation, WorkError},
};
use crate::orchestrator::{
    program::{self, Digest, ProgramError, Programs, on_the_side},
    runtime::{Runtime, RuntimeError, Wanted},
};

/// The program's path in its image.
const IN_IMAGE: &str = "/mesh-agent";

/// Extracts the task's program from its image unless the node already has it, and checks that it runs here.
pub(super) async fn prepare(order: Order, programs: Arc<Programs>) -> Result<Preparation, WorkError> {
    let own = own(&programs).await?;
    let task = order.task.id.as_str();
    let known = programs.record().program_of(task).cloned();
    if let Some(program) = known.filter(|known| *known == own || programs.has(known)) {
        return Ok(prepared(own, program, None));
    }
    let warning = prepare::pull(&order).await?;
    let incoming = programs.incoming(task)?;
    let container = make_container(&order).await?;
    let copied = async {
        let archive = order.runtime.archive(&container, IN_IMAGE).await?;
        program::unpack(archive, incoming.clone()).await?;
        Ok::<_, WorkError>(())
    };
    let copied = copied.await;
    order.runtime.remove(&container).await?;
    copied?;
    program::check_file(&incoming)?;
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    program::try_out(&incoming, &arguments).await?;
    let program = on_the_side(move || programs.install(&incoming)).await?;
    Ok(prepared(own, program, warning))
}

fn prepared(own: Digest, program: Digest, warning: Option<String>) -> Preparation {
    Preparation {
        container: None,
        warning,
        programs: Some(AgentPrograms { own, wanted: program }),
    }
}

/// Creates a container of the task's image, never to be started, after removing any left by an earlier
/// attempt.
async fn make_container(order: &Order) -> Result<String, RuntimeError> {
    let mut task = order.task.clone();
    // The image need not have a command of its own: this container never runs.
    Arc::make_mut(&mut task.spec).container_spec.command = vec![IN_IMAGE.to_owned()];
    remove_leftovers(order.runtime.as_ref(), order).await?;
    order
        .runtime
        .create(Wanted {
            node: &order.node,
            hostname: &order.hostname,
            service_labels: &order.service_labels,
            task: &task,
            address: None,
            files: &[],
        })
        .await
}

async fn remove_leftovers(runtime: &dyn Runtime, order: &Order) -> Result<(), RuntimeError> {
    for left in runtime.containers(&order.node).await? {
        if left.task == order.task.id {
            runtime.remove(&left.id).await?;
        }
    }
    Ok(())
}

async fn own(programs: &Arc<Programs>) -> Result<Digest, ProgramError> {
    let programs = Arc::clone(programs);
    on_the_side(move || programs.own()).await
}
