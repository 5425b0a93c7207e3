//! Has managers' requests carried out on this node, and puts the answers into messages of limited length.

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::{mpsc, oneshot};

use super::wire::{FromManager, FromNode};
use crate::{
    model::DrainReport,
    source::{RelayedRequest, relay::MAX_TEXT},
};

/// How many requests of one manager are carried out at a time.
const MAX_RUNNING: usize = 8;
/// So many replicas in one part of an answer: managers of earlier releases take messages of 1 KiB, and a
/// replica's name and id have up to 115 characters.
const REPLICAS_IN_PART: usize = 4;
/// So many bytes of a text in one part of an answer: in a message, quotes and backslashes take two.
const TEXT_IN_PART: usize = 6 << 10;
const BUSY: &str = "its agent has too many requests to answer";
/// The longest reason of a refusal that is sent, in bytes.
const MAX_REFUSAL: usize = 400;

/// The requests of one manager.
pub(super) struct Requests {
    relayed: mpsc::Sender<RelayedRequest>,
    running: FuturesUnordered<BoxFuture<'static, Vec<FromNode>>>,
}

impl Requests {
    /// None yet; `relayed` takes them to where they are carried out.
    pub(super) fn new(relayed: mpsc::Sender<RelayedRequest>) -> Self {
        Self {
            relayed,
            running: FuturesUnordered::new(),
        }
    }

    /// Takes a request; gives any other message back.
    pub(super) fn take(&mut self, message: FromManager) -> Option<FromManager> {
        let is_full = self.running.len() >= MAX_RUNNING;
        let relayed = self.relayed.clone();
        match message {
            FromManager::Drain { number, request } => self.running.push(Box::pin(async move {
                let answered = match is_full {
                    true => Err(BUSY.to_owned()),
                    false => ask(relayed, |answer| RelayedRequest::Drain { request, answer }).await,
                };
                drained(number, answered)
            })),
            FromManager::Read { number, path } => self.running.push(Box::pin(async move {
                let answered = match is_full {
                    true => Err(BUSY.to_owned()),
                    false => ask(relayed, |answer| RelayedRequest::Read { path, answer }).await,
                };
                was_read(number, answered)
            })),
            other => return Some(other),
        }
        None
    }

    /// The messages of the next answer; `None` if nothing is asked. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Vec<FromNode>> {
        self.running.next().await
    }
}

async fn ask<T>(
    relayed: mpsc::Sender<RelayedRequest>,
    request: impl FnOnce(oneshot::Sender<Result<T, String>>) -> RelayedRequest,
) -> Result<T, String> {
    let (answer, answered) = oneshot::channel();
    let result = match relayed.send(request(answer)).await {
        Ok(()) => answered.await.ok(),
        Err(_) => None,
    };
    result.unwrap_or_else(|| Err("the agent is stopping".to_owned()))
}

fn drained(number: u64, answer: Result<DrainReport, String>) -> Vec<FromNode> {
    let part = |refusal, report, more| FromNode::Drained {
        number,
        refusal,
        report,
        more,
    };
    let report = match answer {
        Ok(report) => report,
        Err(refusal) => return vec![part(Some(short(&refusal)), DrainReport::default(), false)],
    };
    let of = |replicas: &[_]| DrainReport {
        node: report.node,
        replicas: replicas.to_vec(),
    };
    let mut chunks = report.replicas.chunks(REPLICAS_IN_PART).peekable();
    let mut parts = Vec::new();
    while let Some(chunk) = chunks.next() {
        parts.push(part(None, of(chunk), chunks.peek().is_some()));
    }
    if parts.is_empty() {
        parts.push(part(None, of(&[]), false));
    }
    parts
}

fn was_read(number: u64, answer: Result<String, String>) -> Vec<FromNode> {
    let part = |refusal, text: &str, more| FromNode::WasRead {
        number,
        refusal,
        text: text.to_owned(),
        more,
    };
    let text = match answer {
        Ok(text) if text.len() <= MAX_TEXT => text,
        Ok(_) => {
            let reason = "the answer is too long; narrow it down".to_owned();
            return vec![part(Some(reason), "", false)];
        }
        Err(refusal) => return vec![part(Some(short(&refusal)), "", false)],
    };
    let mut rest = text.as_str();
    let mut parts = Vec::new();
    while rest.len() > TEXT_IN_PART {
        let (first, others) = rest.split_at(rest.floor_char_boundary(TEXT_IN_PART));
        parts.push(part(None, first, true));
        rest = others;
    }
    parts.push(part(None, rest, false));
    parts
}

fn short(refusal: &str) -> String {
    refusal[..refusal.floor_char_boundary(MAX_REFUSAL)].to_owned()
}

#[cfg(test)]
mod tests {
    use super::{super::wire::MAX_FROM_NODE, *};

    #[test]
    fn every_part_of_a_text_fits_into_a_message() {
        let text = "\"\\".repeat(TEXT_IN_PART) + &"\u{1f6ab}".repeat(TEXT_IN_PART);
        let parts = was_read(7, Ok(text.clone()));
        let mut put_together = String::new();
        for (index, message) in parts.iter().enumerate() {
            let length = serde_json::to_vec(message).unwrap().len();
            assert!(length <= MAX_FROM_NODE, "{length}");
            let FromNode::WasRead { text, more, .. } = message else {
                panic!("{message:?}");
            };
            assert_eq!(*more, index + 1 < parts.len());
            put_together.push_str(text);
        }
        assert_eq!(put_together, text);
    }

    #[test]
    fn a_text_that_no_manager_takes_is_refused_here() {
        let parts = was_read(7, Ok("x".repeat(MAX_TEXT + 1)));
        assert_eq!(parts.len(), 1);
        assert!(
            matches!(&parts[0], FromNode::WasRead { refusal: Some(_), .. }),
            "{parts:?}"
        );
    }

    #[tokio::test]
    async fn a_manager_that_asks_too_much_is_refused() {
        let (relayed, mut asked) = mpsc::channel(2 * MAX_RUNNING);
        let mut requests = Requests::new(relayed);
        for number in 0..=MAX_RUNNING as u64 {
            let path = "status".to_owned();
            assert_eq!(requests.take(FromManager::Read { number, path }), None);
        }
        let parts = requests.next().await.unwrap();
        let FromNode::WasRead { number, refusal, .. } = &parts[0] else {
            panic!("{parts:?}");
        };
        assert_eq!(*number, MAX_RUNNING as u64);
        assert!(refusal.as_ref().unwrap().contains("too many"), "{refusal:?}");
        let RelayedRequest::Read { path, answer } = asked.recv().await.unwrap() else {
            panic!("something else was asked");
        };
        answer.send(Ok(path)).unwrap();
        let parts = requests.next().await.unwrap();
        assert!(
            matches!(&parts[0], FromNode::WasRead { refusal: None, .. }),
            "{parts:?}"
        );
    }
}
