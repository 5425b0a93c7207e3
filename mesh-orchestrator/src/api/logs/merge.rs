//! Merges streams of lines: ordered by time if they end, nearly so if they are followed.

use std::time::Duration;

use futures_util::{StreamExt, future::join_all, stream::BoxStream};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use crate::api::types::LogLine;

/// How long a line is held back for earlier lines of other streams.
const WINDOW: Duration = Duration::from_millis(100);

/// Maximum number of lines that are held back.
const MAX_HELD: usize = 1000;

/// Merges streams that end, each in order, by time.
pub(super) async fn in_order(streams: Vec<BoxStream<'static, LogLine>>, into: mpsc::Sender<LogLine>) {
    let mut heads = join_all(streams.into_iter().map(|mut stream| async move {
        let head = stream.next().await;
        (head, stream)
    }))
    .await;
    loop {
        // The first stream with the earliest time, so that each stream keeps its order.
        let earliest = heads
            .iter()
            .enumerate()
            .filter_map(|(index, (head, _))| Some((head.as_ref()?, index)))
            .min_by(|(one, _), (other, _)| one.time.cmp(&other.time))
            .map(|(_, index)| index);
        let Some((head, stream)) = earliest.and_then(|index| heads.get_mut(index)) else {
            return;
        };
        let next = stream.next().await;
        if let Some(line) = std::mem::replace(head, next)
            && into.send(line).await.is_err()
        {
            return;
        }
    }
}

/// Forwards lines as they arrive, sorted by time within a short window.
pub(super) async fn nearly_in_order(mut from: mpsc::Receiver<LogLine>, into: mpsc::Sender<LogLine>) {
    loop {
        let first = tokio::select! {
            first = from.recv() => first,
            // The client has gone.
            () = into.closed() => return,
        };
        let Some(first) = first else {
            return;
        };
        let mut window = vec![first];
        let end = Instant::now() + WINDOW;
        while window.len() < MAX_HELD {
            match timeout_at(end, from.recv()).await {
                Ok(Some(line)) => window.push(line),
                Ok(None) | Err(_) => break,
            }
        }
        window.sort_by(|one, other| one.time.cmp(&other.time));
        for line in window {
            if into.send(line).await.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use proptest::prelude::*;

    use super::*;
    use crate::api::types::LogStream;

    fn line(task: usize, time: u32) -> LogLine {
        LogLine {
            time: format!("{time:010}"),
            task: task.to_string().as_str().into(),
            task_name: format!("web.{task}"),
            node: "n1".into(),
            stream: LogStream::Stdout,
            line: String::new(),
        }
    }

    proptest! {
        #[test]
        fn merged_lines_are_complete_and_in_order(
            mut times in prop::collection::vec(prop::collection::vec(0_u32..50, 0..20), 0..5),
        ) {
            times.iter_mut().for_each(|times| times.sort_unstable());
            let expected: usize = times.iter().map(Vec::len).sum();
            let streams: Vec<BoxStream<'static, LogLine>> = times
                .into_iter()
                .enumerate()
                .map(|(task, times)| {
                    let lines: Vec<LogLine> = times.into_iter().map(|time| line(task, time)).collect();
                    stream::iter(lines).boxed()
                })
                .collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let merged = runtime.block_on(async {
                let (into, mut merged) = mpsc::channel(expected.max(1));
                in_order(streams, into).await;
                let mut lines = Vec::new();
                while let Some(line) = merged.recv().await {
                    lines.push(line);
                }
                lines
            });
            prop_assert_eq!(merged.len(), expected);
            prop_assert!(merged.windows(2).all(|pair| pair[0].time <= pair[1].time));
        }
    }

    #[tokio::test]
    async fn a_line_that_is_slightly_late_is_still_in_order() {
        let (lines, from) = mpsc::channel(8);
        let (into, mut merged) = mpsc::channel(8);
        for time in [2, 1] {
            lines.send(line(0, time)).await.unwrap();
        }
        drop(lines);
        nearly_in_order(from, into).await;
        assert_eq!(merged.recv().await.unwrap().time, "0000000001");
        assert_eq!(merged.recv().await.unwrap().time, "0000000002");
        assert!(merged.recv().await.is_none());
    }
}
