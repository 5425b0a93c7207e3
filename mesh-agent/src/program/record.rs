//! Which program of the agent runs on this node, and whether it has proven itself. Pure.
//!
//! Invariants: a program that was never proven is tried [`ATTEMPTS`] times at most; going back leads to the program that
//! was proven last, and in the end to the installed one, which needs no file of ours.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Digest;

/// How often in a row a new program may end before it has proven itself.
pub(super) const ATTEMPTS: u32 = 3;

/// What is remembered of the agent's programs. A field that another release adds is ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The program that is to run; none is the installed one.
    pub current: Option<Digest>,
    /// The one that ran before it, to go back to.
    pub previous: Option<Digest>,
    /// Whose program this node has, or tries.
    pub deployed: Option<Deployed>,
    /// The current program has not proven itself yet.
    pub trial: Option<Trial>,
    /// How the last trial failed.
    pub failure: Option<Failure>,
}

/// The program of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployed {
    /// The task's id.
    pub task: String,
    /// Its program.
    pub program: Digest,
}

/// A program on trial.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trial {
    /// How often it was started.
    pub attempts: u32,
    /// Why the last attempt ended, if it could say so.
    pub reason: Option<String>,
}

/// A trial that has failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The task that wanted the program.
    pub task: String,
    /// The program.
    pub program: Digest,
    /// Why.
    pub reason: String,
}

impl Record {
    /// A task's new program: it is to run next, on trial.
    pub fn deploy(&mut self, task: &str, program: Digest) {
        // One that is on trial itself is nothing to go back to.
        if self.trial.is_none() {
            self.previous = self.current.take();
        }
        self.current = Some(program.clone());
        self.trial = Some(Trial::default());
        self.failure = None;
        self.deployed = Some(Deployed {
            task: task.to_owned(),
            program,
        });
    }

    /// A task's program is what runs already.
    pub fn adopt(&mut self, task: &str, program: Digest) {
        self.deployed = Some(Deployed {
            task: task.to_owned(),
            program,
        });
    }

    /// The program to execute now; none is the installed one. Counts the attempts of a trial, and ends one that has
    /// had enough of them.
    pub fn begin(&mut self) -> Option<&Digest> {
        match &mut self.trial {
            None => {}
            Some(trial) if trial.attempts < ATTEMPTS => {
                trial.attempts += 1;
                trial.reason = None;
            }
            Some(trial) => {
                let reason = trial.reason.take();
                let reason = reason.unwrap_or_else(|| "it has ended; the agent's log may say why".to_owned());
                self.go_back(format!("the new agent did not hold {ATTEMPTS} times: {reason}"));
            }
        }
        self.current.as_ref()
    }

    /// Why the attempt that is under way fails.
    pub fn fail(&mut self, reason: String) {
        if let Some(trial) = &mut self.trial {
            trial.reason = Some(reason);
        }
    }

    /// The current program cannot be executed at all.
    pub fn refuse(&mut self, reason: String) {
        self.go_back(reason);
    }

    /// The current program has proven itself; true if that is new.
    pub fn prove(&mut self) -> bool {
        self.trial.take().is_some()
    }

    /// Why a task's program was left.
    #[must_use]
    pub fn failure_of(&self, task: &str) -> Option<&str> {
        let failure = self.failure.as_ref().filter(|failure| failure.task == task);
        failure.map(|failure| failure.reason.as_str())
    }

    /// A task's program, if it is the one deployed last.
    #[must_use]
    pub fn program_of(&self, task: &str) -> Option<&Digest> {
        let deployed = self.deployed.as_ref().filter(|deployed| deployed.task == task);
        deployed.map(|deployed| &deployed.program)
    }

    /// The programs whose files are still needed.
    #[must_use]
    pub fn kept(&self) -> BTreeSet<&Digest> {
        self.current.iter().chain(&self.previous).collect()
    }

    fn go_back(&mut self, reason: String) {
        let failed = self.current.take();
        self.current = self.previous.take();
        self.trial = None;
        if let (Some(program), Some(deployed)) = (failed, self.deployed.take()) {
            self.failure = Some(Failure {
                task: deployed.task,
                program,
                reason,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn program(digit: char) -> Digest {
        Digest::try_from(digit.to_string().repeat(64)).unwrap()
    }

    #[test]
    fn a_program_that_holds_is_kept_and_so_is_the_one_before() {
        let mut record = Record::default();
        assert_eq!(record.begin(), None);
        record.deploy("t1", program('a'));
        assert_eq!(record.begin(), Some(&program('a')));
        assert!(record.prove() && !record.prove());
        record.deploy("t2", program('b'));
        assert_eq!(record.begin(), Some(&program('b')));
        assert!(record.prove());
        assert_eq!(record.kept(), [&program('a'), &program('b')].into());
        // Proven, it may be started as often as it likes.
        for _ in 0..10 {
            assert_eq!(record.begin(), Some(&program('b')));
        }
        assert_eq!(record.program_of("t2"), Some(&program('b')));
        assert_eq!((record.program_of("t1"), record.failure_of("t2")), (None, None));
    }

    #[test]
    fn a_program_that_ends_three_times_is_left_for_the_one_before() {
        let mut record = Record::default();
        record.deploy("t1", program('a'));
        record.begin();
        record.prove();
        record.deploy("t2", program('b'));
        for attempt in 1..=ATTEMPTS {
            assert_eq!(record.begin(), Some(&program('b')), "{attempt}");
            record.fail(format!("attempt {attempt} failed"));
        }
        assert_eq!(record.begin(), Some(&program('a')));
        let reason = record.failure_of("t2").unwrap();
        assert!(reason.contains("attempt 3 failed"), "{reason}");
        assert_eq!(record.trial, None);
        assert_eq!(record.failure_of("t1"), None);
    }

    #[test]
    fn one_that_ends_without_a_word_leads_back_to_the_installed_program() {
        let mut record = Record::default();
        record.deploy("t1", program('a'));
        for _ in 0..ATTEMPTS {
            assert!(record.begin().is_some());
        }
        assert_eq!(record.begin(), None);
        assert!(record.failure_of("t1").unwrap().contains("log"));
        // Whoever tries again begins anew.
        record.deploy("t2", program('a'));
        assert_eq!(record.begin(), Some(&program('a')));
        assert_eq!(record.failure_of("t1"), None);
    }

    #[test]
    fn what_another_release_has_added_is_ignored() {
        let record: Record = serde_json::from_str(r#"{"current": null, "colour": "green"}"#).unwrap();
        assert_eq!(record, Record::default());
        assert!(serde_json::from_str::<Record>(r#"{"current": "../x"}"#).is_err());
    }

    proptest! {
        /// Whatever is deployed and however it ends: nothing unproven is started more than three times in a row.
        #[test]
        fn nothing_unproven_is_tried_for_ever(steps in proptest::collection::vec(0_u8..6, 1..200)) {
            let mut record = Record::default();
            let mut unproven = 0;
            let mut task = 0;
            for step in steps {
                match step {
                    0 => {
                        task += 1;
                        record.deploy(&task.to_string(), program(['a', 'b', 'c'][task % 3]));
                        unproven = 0;
                    }
                    1 => {
                        record.prove();
                    }
                    2 => record.fail("no".to_owned()),
                    3 => record.refuse("not at all".to_owned()),
                    _ => {
                        record.begin();
                        unproven = if record.trial.is_some() { unproven + 1 } else { 0 };
                        prop_assert!(unproven <= ATTEMPTS);
                    }
                }
                // What runs without a trial has run before, or is the installed one.
                prop_assert!(record.trial.is_none() || record.current.is_some());
                let text = serde_json::to_string(&record).unwrap();
                prop_assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record.clone());
            }
        }
    }
}
