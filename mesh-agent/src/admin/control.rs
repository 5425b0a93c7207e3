//! Commands from the admin socket to the running agent.

use tokio::sync::{mpsc, oneshot};

use crate::{
    datapath::{DatapathChoice, DatapathStatus},
    model::DrainRequest,
};

/// How many commands may wait; the agent executes one at a time.
const WAITING: usize = 4;

/// What the agent is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Change the data path.
    Datapath(DatapathRequest),
    /// Drain replicas of this node, or end that.
    Drain(DrainRequest),
}

/// A change of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DatapathRequest {
    /// Try the better rungs again now.
    Retry,
    /// Use another data path than the command line's, until the agent stops.
    Use(DatapathChoice),
}

/// A request and the channel for its answer.
#[derive(Debug)]
pub struct Command {
    /// The request.
    pub request: Request,
    /// Receives the data path's new status, or why nothing changed.
    pub answer: oneshot::Sender<Result<DatapathStatus, String>>,
}

/// The admin socket's end of the command channel.
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Command>);

/// Both ends of a command channel.
#[must_use]
pub fn channel() -> (Control, mpsc::Receiver<Command>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Control(sender), receiver)
}

impl Control {
    /// Sends a request, and waits for the answer.
    ///
    /// # Errors
    /// Why it was not done, in one line.
    pub async fn ask(&self, request: Request) -> Result<DatapathStatus, String> {
        let stopping = || "the agent is stopping".to_owned();
        let (answer, answered) = oneshot::channel();
        self.0
            .send(Command { request, answer })
            .await
            .map_err(|_| stopping())?;
        answered.await.map_err(|_| stopping())?
    }
}
