//! What is to be done next for a task that is this node's agent: as `machine` for containers, a pure function of one
//! look. And what takes time of it: getting the program out of its image.
//!
//! Invariants: the agent is never stopped because a task is; it gives way only to a program that was looked at and
//! tried out; RUNNING is said by the very program that the task is of.

use std::{ffi::OsString, sync::Arc};

use mesh_orchestrator::objects::{Task, TaskState, TaskStatus, Timestamp};

use super::{
    machine::{Next, Work},
    prepare::{self, Order, Preparation, WorkError},
};
use crate::{
    orchestrator::runtime::{Runtime, RuntimeError, Wanted},
    program::{self, Digest, ProgramError, Programs, on_the_side},
};

/// Where the program is in its image.
const IN_IMAGE: &str = "/mesh-agent";

/// What is known of the programs of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    /// What this process runs.
    pub(super) own: Digest,
    /// What the task's image has.
    pub(super) program: Digest,
}

/// How far this node's agent is with its own program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// The data path does not stand yet, or the store was not reached.
    Starting,
    /// It works.
    Proven,
    /// It is about to give way to another program.
    Leaving,
}

/// What is known of such a task at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct AgentLook<'a> {
    pub(super) now: Timestamp,
    pub(super) task: &'a Task,
    /// How far it has been reported.
    pub(super) said: TaskState,
    pub(super) doing: Option<Work>,
    /// Why preparing or starting was refused.
    pub(super) refused: Option<&'a str>,
    pub(super) prepared: Option<&'a Prepared>,
    pub(super) standing: Standing,
    /// Why the task's program was left again.
    pub(super) failure: Option<&'a str>,
}

const WAIT: Next = Next::Wait(None);

/// What to do next for the task. `Work::Start` is to give way to the task's program.
pub(super) fn next(look: &AgentLook<'_>) -> Next {
    let status = |state, message: &str| TaskStatus::new(state, look.now, message);
    let report = |state, message: &str| Next::Report(status(state, message));
    let failed = |message: &str, error: &str| {
        // What was never ready was never started.
        let state = match look.said < TaskState::Ready {
            true => TaskState::Rejected,
            false => TaskState::Failed,
        };
        Next::Report(status(state, message).with_error(error))
    };
    if look.said.is_terminal() {
        return WAIT;
    }
    if !look.task.desired.is_wanted() {
        return match look.doing {
            Some(_) => Next::Abandon,
            None => report(TaskState::Shutdown, "shut down; the node's agent goes on"),
        };
    }
    if let Some(reason) = look.failure {
        return failed("the agent went back to the program before", reason);
    }
    if let Some(reason) = look.refused {
        return failed("preparing failed", reason);
    }
    if look.doing.is_some() || look.standing == Standing::Leaving {
        return WAIT;
    }
    match look.said {
        TaskState::New | TaskState::Pending | TaskState::Assigned => {
            return report(TaskState::Accepted, "accepted");
        }
        TaskState::Accepted => return report(TaskState::Preparing, "preparing"),
        _ => {}
    }
    let Some(prepared) = look.prepared else {
        return Next::Begin(Work::Prepare);
    };
    let is_it = prepared.own == prepared.program;
    match look.said {
        TaskState::Preparing if is_it => {
            report(TaskState::Ready, "prepared: the node has this program already")
        }
        TaskState::Preparing => report(TaskState::Ready, "prepared"),
        TaskState::Ready if look.task.desired == TaskState::Ready => WAIT,
        TaskState::Ready => report(TaskState::Starting, "starting"),
        TaskState::Starting if !is_it => Next::Begin(Work::Start),
        TaskState::Starting if look.standing == Standing::Proven => report(TaskState::Running, "started"),
        TaskState::Running if !is_it => failed(
            "lost",
            "the node's agent runs another program: somebody has started it by hand",
        ),
        _ => WAIT,
    }
}

/// Gets the program of a task out of its image, unless the node has it, and makes sure that it can run here.
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
        agent: Some(Prepared { own, program }),
    }
}

/// A container of the task's image that is never started. One that an earlier attempt has left goes first.
async fn make_container(order: &Order) -> Result<String, RuntimeError> {
    let mut task = order.task.clone();
    // It need not be anything that could run.
    Arc::make_mut(&mut task.spec).container_spec.command = vec![IN_IMAGE.to_owned()];
    remove_leftovers(order.runtime.as_ref(), order).await?;
    order
        .runtime
        .create(Wanted {
            node: &order.node,
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

#[cfg(test)]
#[path = "agent/tests.rs"]
mod tests;
