//! Splits a container's log stream into lines.

use bollard::{container::LogOutput, errors::Error, query_parameters::LogsOptionsBuilder};
use futures_util::{Stream, StreamExt, stream::BoxStream};
use mesh_orchestrator::objects::Timestamp;

/// Longer lines are cut; the engine itself splits lines at 16 KiB.
const MAX_LINE_BYTES: usize = 64 << 10;

/// Lines as they come.
pub type LogStream = BoxStream<'static, LogLine>;

/// The part of a container's output to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Continue with new output.
    pub follow: bool,
    /// Start with this many of the last lines; `None` is all.
    pub tail: Option<u64>,
    /// Only output written since then.
    pub since: Option<Timestamp>,
}

/// One line of a container's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// When it was written: RFC 3339, UTC, nanoseconds.
    pub time: String,
    /// Whether to standard error.
    pub is_error: bool,
    /// The line without its end.
    pub line: String,
}

impl LogQuery {
    pub(super) fn options(self) -> bollard::query_parameters::LogsOptions {
        // The client library supports whole seconds only; rounded down.
        let since = self
            .since
            .map_or(0, |since| i32::try_from(since.0 / 1000).unwrap_or(i32::MAX));
        let tail = self
            .tail
            .map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        LogsOptionsBuilder::new()
            .follow(self.follow)
            .stdout(true)
            .stderr(true)
            .timestamps(true)
            .since(since)
            .tail(&tail)
            .build()
    }
}

/// The lines of the engine's stream, up to its end or first error.
pub(super) fn lines(output: impl Stream<Item = Result<LogOutput, Error>> + Send + 'static) -> LogStream {
    output
        .take_while(|piece| std::future::ready(piece.is_ok()))
        .filter_map(|piece| std::future::ready(piece.ok()))
        .map(|piece| futures_util::stream::iter(split(&piece)))
        .flatten()
        .boxed()
}

/// The lines of one piece. The engine puts a timestamp before the first line, and with a terminal before
/// each.
fn split(piece: &LogOutput) -> Vec<LogLine> {
    let (message, is_error) = match piece {
        LogOutput::StdErr { message } => (message, true),
        LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
            (message, false)
        }
    };
    let text = String::from_utf8_lossy(message);
    let mut time = String::new();
    let mut lines = Vec::new();
    for line in text.strip_suffix('\n').unwrap_or(&text).split('\n') {
        let line = match line.split_once(' ') {
            Some((first, rest)) if is_time(first) => {
                first.clone_into(&mut time);
                rest
            }
            None if is_time(line) => {
                line.clone_into(&mut time);
                ""
            }
            _ => line,
        };
        let line = line.strip_suffix('\r').unwrap_or(line);
        let end = line.floor_char_boundary(MAX_LINE_BYTES);
        lines.push(LogLine {
            time: time.clone(),
            is_error,
            line: line[..end].to_owned(),
        });
    }
    lines
}

/// Whether a text is a timestamp of the engine's: `2026-01-02T03:04:05.678901234Z`.
fn is_time(text: &str) -> bool {
    text.len() >= 20
        && text.ends_with('Z')
        && text.as_bytes().get(4) == Some(&b'-')
        && text.as_bytes().get(10) == Some(&b'T')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_keep_their_time_and_stream() {
        let out = |text: &'static str| LogOutput::StdOut { message: text.into() };
        let pieces = [
            Ok(out("2026-01-02T03:04:05.678901234Z hello world\n")),
            Ok(LogOutput::StdErr {
                message: "2026-01-02T03:04:06.000000000Z oh\r\n".into(),
            }),
            Ok(out("2026-01-02T03:04:07.000000000Z \n")),
            Err(Error::RequestTimeoutError),
            Ok(out("never read")),
        ];
        let lines: Vec<_> = lines(futures_util::stream::iter(pieces)).collect().await;
        let seen: Vec<_> = lines
            .iter()
            .map(|line| (&line.time[17..19], line.is_error, line.line.as_str()))
            .collect();
        assert_eq!(
            seen,
            [
                ("05", false, "hello world"),
                ("06", true, "oh"),
                ("07", false, "")
            ]
        );
    }

    #[test]
    fn a_very_long_line_is_cut() {
        let message = format!("2026-01-02T03:04:05.678901234Z {}", "ä".repeat(MAX_LINE_BYTES));
        let lines = split(&LogOutput::StdOut {
            message: message.into(),
        });
        assert_eq!(lines[0].line.len(), MAX_LINE_BYTES);
    }
}
