//! What the admin socket may ask the running agent to do, and how the two speak.

use tokio::sync::{mpsc, oneshot};

use crate::datapath::{DatapathChoice, DatapathStatus};

/// How many commands may wait; the agent obeys one at a time.
const WAITING: usize = 4;

/// What may be asked of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// To try the better rungs again now.
    Retry,
    /// To take another choice than that of the command line, until the agent ends.
    Use(DatapathChoice),
}

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Command {
    /// What is asked.
    pub request: Request,
    /// Takes how the data path stands afterwards, or why all is as it was.
    pub answer: oneshot::Sender<Result<DatapathStatus, String>>,
}

/// The admin socket's end.
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Command>);

/// A control and the agent's end of it.
#[must_use]
pub fn channel() -> (Control, mpsc::Receiver<Command>) {
    let (sender, receiver) = mpsc::channel(WAITING);
    (Control(sender), receiver)
}

impl Control {
    /// Asks, and waits for the answer.
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
