//! Which tests failed and why, found in the output of test runners. Depends on nothing else here.

use std::collections::VecDeque;

/// How many lines of a test's message are shown: the reason and a little around it.
const LINES: usize = 15;
/// How much of a line: some show whole objects.
const WIDTH: usize = 400;
/// How many tests' messages are shown; when more fail, the first ones tell why. All are named.
const MESSAGES: usize = 6;
/// How many lines of a test's message are kept until its end is known.
const KEPT: usize = 200;
/// How anyhow begins the list of causes, in which the reason is the last.
const CAUSES: &str = "Caused by:";

/// What of a phase's output tells why it failed.
#[derive(Debug, Default)]
pub(super) struct Excerpt {
    failures: Vec<Failure>,
    part: Part,
    /// The last lines of all.
    tail: VecDeque<String>,
}

/// Where in the output the next line is.
#[derive(Debug, Default, PartialEq, Eq)]
enum Part {
    /// Outside of a test's message.
    #[default]
    Outside,
    /// In the message of the last failure.
    Message,
    /// In the backtrace that follows it.
    Backtrace,
}

#[derive(Debug)]
struct Failure {
    test: String,
    message: VecDeque<String>,
}

impl Excerpt {
    /// Takes the next line.
    pub(super) fn line(&mut self, line: &str) {
        keep(&mut self.tail, line, LINES);
        if let Some(test) = heading(line) {
            self.part = Part::Message;
            self.failures.push(Failure {
                test: test.to_owned(),
                message: VecDeque::new(),
            });
            return;
        }
        if line == "failures:" || line.starts_with("test result:") {
            self.part = Part::Outside;
        } else if self.part == Part::Message {
            let text = line.trim();
            if text.eq_ignore_ascii_case("stack backtrace:") {
                self.part = Part::Backtrace;
            } else if let Some(failure) = self.failures.last_mut()
                && !text.is_empty()
                && !text.starts_with("note: run with `RUST_BACKTRACE=1`")
            {
                keep(&mut failure.message, line, KEPT);
            }
        }
    }

    /// The failed tests with the ends of their messages; the end of the output if it names none.
    pub(super) fn report(&self) -> String {
        let mut text = String::new();
        if self.failures.is_empty() {
            for line in &self.tail {
                text += &format!("  {line}\n");
            }
        }
        for (number, failure) in self.failures.iter().enumerate() {
            text += &format!("  {}\n", failure.test);
            if number < MESSAGES {
                for line in failure.shown() {
                    text += &format!("    {line}\n");
                }
            }
        }
        text
    }
}

impl Failure {
    /// The causes, or the end of a message without any. Of many lines, the first ones say what was expected
    /// and the last ones what was found.
    fn shown(&self) -> Vec<&str> {
        let causes = self.message.iter().rposition(|line| line == CAUSES);
        let lines = self.message.iter().skip(causes.unwrap_or(0)).map(String::as_str);
        let lines: Vec<&str> = lines.collect();
        let left_out = lines.len().saturating_sub(LINES);
        if left_out == 0 {
            return lines;
        }
        if causes.is_none() {
            return lines[left_out..].to_vec();
        }
        let (head, tail) = (LINES / 2, LINES - LINES / 2 - 1);
        [&lines[..head], &["…"], &lines[lines.len() - tail..]].concat()
    }
}

/// The test that a line of a test runner begins the message of.
fn heading(line: &str) -> Option<&str> {
    let name = line.strip_prefix("---- ")?.strip_suffix(" ----")?;
    Some(name.strip_suffix(" stdout").unwrap_or(name))
}

fn keep(lines: &mut VecDeque<String>, line: &str, limit: usize) {
    if lines.len() == limit {
        lines.pop_front();
    }
    let mut kept: String = line.chars().take(WIDTH).collect();
    if kept.len() < line.len() {
        kept.push('…');
    }
    lines.push_back(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> String {
        let mut excerpt = Excerpt::default();
        for line in lines {
            excerpt.line(line);
        }
        excerpt.report()
    }

    #[test]
    fn a_story_is_named_with_its_causes_and_without_logs_and_backtrace() {
        let text = report(&[
            "test several::story ... FAILED",
            "",
            "failures:",
            "",
            "---- several::story ----",
            "the ends of the agents' logs:",
            "a line",
            "",
            "Caused by:",
            "    0: waited 120 s in vain for a leader; last seen",
            "    1: {\"node1\"} lead",
            "",
            "Stack backtrace:",
            "   0: anyhow::error",
            "",
            "failures:",
            "    several::story",
            "",
            "test result: FAILED. 1 passed; 1 failed",
        ]);
        assert_eq!(
            text,
            "  several::story\n    Caused by:\n        0: waited 120 s in vain for a leader; last seen\n        1: {\"node1\"} lead\n"
        );
    }

    #[test]
    fn of_a_unit_test_the_panics_message_is_shown() {
        let text = report(&[
            "---- tests::sum stdout ----",
            "thread 'tests::sum' panicked at src/lib.rs:1:5:",
            "assertion `left == right` failed",
            "  left: 1",
            " right: 2",
            "stack backtrace:",
            "   0: rust_begin_unwind",
            "note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace",
            "",
            "---- tests::other stdout ----",
            "no",
            "",
            "failures:",
        ]);
        assert_eq!(
            text,
            "  tests::sum\n    thread 'tests::sum' panicked at src/lib.rs:1:5:\n    assertion `left == right` failed\n      left: 1\n     right: 2\n  tests::other\n    no\n"
        );
    }

    #[test]
    fn of_many_causes_the_first_and_the_last_are_shown_and_long_lines_are_cut() {
        let mut lines = vec!["---- a ----".to_owned(), CAUSES.to_owned()];
        lines.extend((0..30).map(|number| format!("cause {number}")));
        lines.push("x".repeat(WIDTH + 1));
        let text = report(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(text.lines().count(), 1 + LINES);
        assert!(text.contains("cause 0\n") && text.contains("cause 29\n") && !text.contains("cause 15\n"));
        assert!(text.ends_with("x…\n"));
    }

    #[test]
    fn all_failed_tests_are_named_and_few_are_explained() {
        let names: Vec<String> = (0..=MESSAGES).map(|number| format!("test{number}")).collect();
        let headings: Vec<String> = names.iter().map(|name| format!("---- {name} ----")).collect();
        let lines: Vec<&str> = headings
            .iter()
            .flat_map(|heading| [heading.as_str(), "why"])
            .collect();
        let text = report(&lines);
        assert!(names.iter().all(|name| text.contains(name)), "{text}");
        assert_eq!(text.matches("why").count(), MESSAGES);
    }

    #[test]
    fn where_no_test_is_named_the_end_of_the_output_is_shown() {
        let lines: Vec<String> = (0..LINES * 2).map(|number| format!("line {number}")).collect();
        let text = report(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(text.lines().count(), LINES);
        assert!(text.ends_with(&format!("line {}\n", LINES * 2 - 1)), "{text}");
    }
}
