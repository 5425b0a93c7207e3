//! Splits a container's log stream into lines.

use bollard::{container::LogOutput, errors::Error, query_parameters::LogsOptionsBuilder};
use futures_util::{Stream, StreamExt, stream::BoxStream};
use mesh_orchestrator::objects::Timestamp;

/// Longer lines are cut.
const MAX_LINE_BYTES: usize = 1 << 20;

/// The length of the engine's longest timestamp.
const MAX_TIME_BYTES: usize = 35;

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
    let pieces = output
        .take_while(|piece| std::future::ready(piece.is_ok()))
        .filter_map(|piece| std::future::ready(piece.ok()))
        .map(Some)
        // The end completes lines that have no line break.
        .chain(futures_util::stream::iter([None]));
    pieces
        .scan(Splitter::default(), |splitter, piece| {
            let lines = match piece {
                Some(piece) => splitter.split(&piece),
                None => splitter.finish(),
            };
            std::future::ready(Some(futures_util::stream::iter(lines)))
        })
        .flatten()
        .boxed()
}

/// Puts lines together. The engine stores a long line in pieces of 16 KiB, each with the line's time, and
/// only the last has a line break; a terminal's output comes in pieces of any size.
#[derive(Debug, Default)]
struct Splitter {
    /// The lines that have begun: standard output, standard error.
    begun: [Option<Begun>; 2],
}

/// A line without its end.
#[derive(Debug, Default)]
struct Begun {
    time: String,
    bytes: Vec<u8>,
}

impl Splitter {
    /// The lines that a piece completes.
    fn split(&mut self, piece: &LogOutput) -> Vec<LogLine> {
        let (message, is_error) = match piece {
            LogOutput::StdErr { message } => (message, true),
            LogOutput::StdOut { message } | LogOutput::StdIn { message } | LogOutput::Console { message } => {
                (message, false)
            }
        };
        let begun = &mut self.begun[usize::from(is_error)];
        let mut lines = Vec::new();
        for text in message.split_inclusive(|byte| *byte == b'\n') {
            let (time, text) = timed(text);
            let line = begun.get_or_insert_default();
            if let Some(time) = time.filter(|_| line.time.is_empty()) {
                time.clone_into(&mut line.time);
            }
            let (text, is_whole) = match text.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (text, false),
            };
            // Room for a character that does not end there.
            let room = (MAX_LINE_BYTES + 4).saturating_sub(line.bytes.len());
            line.bytes.extend_from_slice(&text[..text.len().min(room)]);
            if is_whole {
                lines.extend(begun.take().map(|line| line.end(is_error)));
            }
        }
        lines
    }

    /// The lines that have not ended.
    fn finish(&mut self) -> Vec<LogLine> {
        let [out, error] = std::mem::take(&mut self.begun);
        let out = out.map(|line| line.end(false));
        out.into_iter().chain(error.map(|line| line.end(true))).collect()
    }
}

impl Begun {
    fn end(self, is_error: bool) -> LogLine {
        let text = String::from_utf8_lossy(&self.bytes);
        let text = text.strip_suffix('\r').unwrap_or(&text);
        LogLine {
            time: self.time,
            is_error,
            line: text[..text.floor_char_boundary(MAX_LINE_BYTES)].to_owned(),
        }
    }
}

/// The engine's timestamp at the beginning of a text, and what follows.
fn timed(text: &[u8]) -> (Option<&str>, &[u8]) {
    let end = text
        .iter()
        .take(MAX_TIME_BYTES + 1)
        .position(|byte| matches!(byte, b' ' | b'\n'))
        .unwrap_or(text.len().min(MAX_TIME_BYTES));
    match str::from_utf8(&text[..end]) {
        Ok(time) if is_time(time) => {
            let rest = &text[end..];
            (Some(time), rest.strip_prefix(b" ").unwrap_or(rest))
        }
        _ => (None, text),
    }
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

    #[tokio::test]
    async fn a_line_that_the_engine_stores_in_pieces_is_whole() {
        // A piece ends after so many bytes, also inside a character.
        let text = "ä".repeat(20_000);
        let time = "2026-01-02T03:04:05.678901234Z ";
        let mut pieces = Vec::new();
        for (index, part) in text.as_bytes().chunks(16_383).enumerate() {
            let mut message = time.as_bytes().to_vec();
            message.extend_from_slice(part);
            pieces.push(Ok(LogOutput::StdOut {
                message: message.into(),
            }));
            // Another stream's line between them.
            pieces.push(Ok(LogOutput::StdErr {
                message: format!("2026-01-02T03:04:06.00000000{index}Z {index}\n").into(),
            }));
        }
        pieces.push(Ok(LogOutput::StdOut {
            message: format!("{time}!\n").into(),
        }));
        pieces.push(Ok(LogOutput::StdOut {
            message: format!("{time}no line break").into(),
        }));
        let lines: Vec<_> = lines(futures_util::stream::iter(pieces)).collect().await;
        let out: Vec<&LogLine> = lines.iter().filter(|line| !line.is_error).collect();
        assert_eq!(out.len(), 2);
        assert!(out[0].line == format!("{text}!"), "{}", out[0].line.len());
        assert_eq!(out[0].time, time.trim_end());
        assert_eq!(out[1].line, "no line break");
        assert_eq!(lines.iter().filter(|line| line.is_error).count(), 3);
    }

    #[tokio::test]
    async fn a_very_long_line_is_cut() {
        let message = format!("2026-01-02T03:04:05.678901234Z {}", "ä".repeat(MAX_LINE_BYTES));
        let piece = Ok(LogOutput::StdOut {
            message: message.into(),
        });
        let lines: Vec<_> = lines(futures_util::stream::iter([piece])).collect().await;
        assert_eq!(lines[0].line.len(), MAX_LINE_BYTES);
    }
}
