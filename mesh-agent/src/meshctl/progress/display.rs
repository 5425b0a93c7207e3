//! Shows the progress of a service: bars on a terminal, one line for each change elsewhere. Both on standard
//! output, where docker has them.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use mesh_orchestrator::objects::TaskState;

use super::convergence::{Line, Picture};

/// States that a bar has to go through; as docker's.
const BAR_LENGTH: u64 = 9;

/// How progress is shown.
pub(crate) enum Display {
    /// Not at all.
    Quiet,
    /// Bars that move.
    Bars(Bars),
    /// Lines, each only when it has changed.
    Lines(BTreeMap<String, String>),
}

/// Bars that move.
pub(crate) struct Bars {
    all: MultiProgress,
    bars: BTreeMap<String, ProgressBar>,
}

impl Display {
    /// What fits the caller's standard output.
    pub(crate) fn new(quiet: bool) -> Self {
        if quiet {
            Self::Quiet
        } else if io::stdout().is_terminal() {
            Self::Bars(Bars {
                all: MultiProgress::with_draw_target(ProgressDrawTarget::stdout()),
                bars: BTreeMap::new(),
            })
        } else {
            Self::Lines(BTreeMap::new())
        }
    }

    /// Only for people: docker says nothing there.
    pub(crate) fn on_terminals(quiet: bool) -> Self {
        Self::new(quiet || !io::stdout().is_terminal())
    }

    /// The whole picture.
    pub(crate) fn show(&mut self, picture: &Picture) {
        self.set("overall progress", &overall(picture));
        for line in &picture.lines {
            self.task(line);
        }
        let stopping = match picture.surplus {
            0 => String::new(),
            surplus => format!("{surplus} tasks"),
        };
        for (name, text) in [("waiting", picture.waiting.join("; ")), ("stopping", stopping)] {
            if !text.is_empty() {
                self.set(name, &text);
            } else if let Self::Bars(bars) = self {
                bars.remove(name);
            }
        }
    }

    /// A line without a bar.
    pub(crate) fn set(&mut self, name: &str, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Bars(bars) => bars.bar(name, "{prefix}: {msg}").set_message(text.to_owned()),
            Self::Lines(shown) => {
                if shown.get(name).is_none_or(|known| known != text) {
                    // A progress that nobody can read stops nothing.
                    let _ = writeln!(io::stdout(), "{name}: {text}");
                    shown.insert(name.to_owned(), text.to_owned());
                }
            }
        }
    }

    /// A sentence that stays.
    pub(crate) fn say(&mut self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Bars(bars) => bars.all.suspend(|| {
                let _ = writeln!(io::stdout(), "{text}");
            }),
            Self::Lines(_) => {
                let _ = writeln!(io::stdout(), "{text}");
            }
        }
    }

    /// Nothing moves any more; what is to be seen stays.
    pub(crate) fn finish(&mut self) {
        if let Self::Bars(bars) = self {
            for bar in bars.bars.values() {
                bar.abandon();
            }
        }
    }

    fn task(&mut self, line: &Line) {
        let text = task_text(line);
        match self {
            Self::Bars(bars) if line.error.is_empty() => {
                let bar = bars.bar(&line.label, "{prefix}: {msg:9} [{bar:50.green}]");
                bar.set_position(line.state.map_or(0, position));
                bar.set_message(text);
            }
            Self::Bars(bars) => {
                let bar = bars.bar(&line.label, "{prefix}: {msg}");
                bar.set_message(text);
            }
            Self::Quiet | Self::Lines(_) => self.set(&line.label, &text),
        }
    }
}

impl Bars {
    /// The bar of a name, in this style.
    fn bar(&mut self, name: &str, template: &str) -> &ProgressBar {
        let bar = self.bars.entry(name.to_owned()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::new(BAR_LENGTH));
            bar.set_prefix(name.to_owned());
            bar
        });
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar
    }

    fn remove(&mut self, name: &str) {
        if let Some(bar) = self.bars.remove(name) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }
}

fn overall(picture: &Picture) -> String {
    let Picture {
        done,
        total,
        rollback,
        ..
    } = picture;
    if *rollback {
        format!("rolling back update: {done} out of {total} tasks")
    } else {
        format!("{done} out of {total} tasks")
    }
}

fn task_text(line: &Line) -> String {
    match (line.state, line.error.as_str()) {
        (Some(state), "") => state.to_string(),
        (None, "") => String::new(),
        (_, error) => error.to_owned(),
    }
}

/// How far a state is on its way to running.
fn position(state: TaskState) -> u64 {
    match state {
        TaskState::New => 1,
        TaskState::Pending => 3,
        TaskState::Assigned => 4,
        TaskState::Accepted => 5,
        TaskState::Preparing => 6,
        TaskState::Ready => 7,
        TaskState::Starting => 8,
        TaskState::Running | TaskState::Complete => BAR_LENGTH,
        TaskState::Shutdown
        | TaskState::Failed
        | TaskState::Rejected
        | TaskState::Remove
        | TaskState::Orphaned => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_dockers() {
        let mut picture = Picture {
            done: 1,
            total: 3,
            ..Picture::default()
        };
        assert_eq!(overall(&picture), "1 out of 3 tasks");
        picture.rollback = true;
        assert_eq!(overall(&picture), "rolling back update: 1 out of 3 tasks");
        let line = |state, error: &str| Line {
            label: "1/3".into(),
            state,
            error: error.into(),
        };
        assert_eq!(task_text(&line(Some(TaskState::Preparing), "")), "preparing");
        assert_eq!(
            task_text(&line(Some(TaskState::Rejected), "no such image")),
            "no such image"
        );
    }

    #[test]
    fn states_only_go_forward_on_the_bar() {
        let on_the_way = TaskState::ALL
            .into_iter()
            .take_while(|state| *state <= TaskState::Running);
        let positions: Vec<u64> = on_the_way.map(position).collect();
        assert!(positions.is_sorted());
        assert_eq!(positions.last(), Some(&BAR_LENGTH));
    }
}
