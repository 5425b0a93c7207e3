//! Which agent program runs on this node, and whether it is on trial. Pure.
//!
//! Invariants: an unproven program gets at most [`ATTEMPTS`] attempts; going back leads to the last proven
//! program, and finally to the installed one, which needs no file in the state folder.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::Digest;

/// How often in a row a new program is started before its trial fails.
pub(super) const ATTEMPTS: u32 = 3;

/// The record on disk. Fields that another release adds are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// The program to run; `None` is the installed one.
    pub current: Option<Digest>,
    /// The program that ran before it, to go back to.
    pub previous: Option<Digest>,
    /// The task whose program this node runs or tries.
    pub deployed: Option<Deployed>,
    /// Present while the current program is on trial.
    pub trial: Option<Trial>,
    /// The last failed trial.
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
    /// Why the last attempt failed, if it was recorded.
    pub reason: Option<String>,
}

/// A failed trial.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The task whose program failed.
    pub task: String,
    /// The program.
    pub program: Digest,
    /// Why.
    pub reason: String,
}

impl Record {
    /// Makes a task's program the next one to run, on trial.
    pub fn deploy(&mut self, task: &str, program: Digest) {
        // Never go back to a program that is itself on trial.
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

    /// Records that a task's program is the one that already runs.
    pub fn adopt(&mut self, task: &str, program: Digest) {
        self.deployed = Some(Deployed {
            task: task.to_owned(),
            program,
        });
    }

    /// The program to execute now; `None` is the installed one. Counts the attempts of a trial, and ends the
    /// trial after the last one.
    pub fn begin(&mut self) -> Option<&Digest> {
        match &mut self.trial {
            None => {}
            Some(trial) if trial.attempts < ATTEMPTS => {
                trial.attempts += 1;
                trial.reason = None;
            }
            Some(trial) => {
                let reason = trial.reason.take();
                let reason = reason.unwrap_or_else(|| "it exited; see the agent's log".to_owned());
                self.go_back(format!("the new agent failed {ATTEMPTS} times: {reason}"));
            }
        }
        self.current.as_ref()
    }

    /// Records why the current attempt fails.
    pub fn fail(&mut self, reason: String) {
        if let Some(trial) = &mut self.trial {
            trial.reason = Some(reason);
        }
    }

    /// Goes back from a program that cannot be executed at all.
    pub fn refuse(&mut self, reason: String) {
        self.go_back(reason);
    }

    /// Ends the current program's trial; true if it was on trial.
    pub fn prove(&mut self) -> bool {
        self.trial.take().is_some()
    }

    /// Why the node went back from a task's program.
    #[must_use]
    pub fn failure_of(&self, task: &str) -> Option<&str> {
        let failure = self.failure.as_ref().filter(|failure| failure.task == task);
        failure.map(|failure| failure.reason.as_str())
    }

    /// A task's program, if it was the last one deployed.
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
    fn a_proven_program_and_the_previous_one_are_kept() {
        let mut record = Record::default();
        assert_eq!(record.begin(), None);
        record.deploy("t1", program('a'));
        assert_eq!(record.begin(), Some(&program('a')));
        assert!(record.prove() && !record.prove());
        record.deploy("t2", program('b'));
        assert_eq!(record.begin(), Some(&program('b')));
        assert!(record.prove());
        assert_eq!(record.kept(), [&program('a'), &program('b')].into());
        // Once proven, its starts are not counted.
        for _ in 0..10 {
            assert_eq!(record.begin(), Some(&program('b')));
        }
        assert_eq!(record.program_of("t2"), Some(&program('b')));
        assert_eq!((record.program_of("t1"), record.failure_of("t2")), (None, None));
    }

    #[test]
    fn after_three_failed_attempts_the_previous_program_runs() {
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
    fn without_a_previous_program_the_installed_one_runs() {
        let mut record = Record::default();
        record.deploy("t1", program('a'));
        for _ in 0..ATTEMPTS {
            assert!(record.begin().is_some());
        }
        assert_eq!(record.begin(), None);
        assert!(record.failure_of("t1").unwrap().contains("log"));
        // A new deployment starts a new trial.
        record.deploy("t2", program('a'));
        assert_eq!(record.begin(), Some(&program('a')));
        assert_eq!(record.failure_of("t1"), None);
    }

    #[test]
    fn fields_of_another_release_are_ignored() {
        let record: Record = serde_json::from_str(r#"{"current": null, "colour": "green"}"#).unwrap();
        assert_eq!(record, Record::default());
        assert!(serde_json::from_str::<Record>(r#"{"current": "../x"}"#).is_err());
    }

    proptest! {
        /// No sequence of events starts an unproven program more than three times in a row.
        #[test]
        fn an_unproven_program_is_started_three_times_at_most(steps in proptest::collection::vec(0_u8..6, 1..200)) {
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
                // A program that runs without a trial was proven, or is the installed one.
                prop_assert!(record.trial.is_none() || record.current.is_some());
                let text = serde_json::to_string(&record).unwrap();
                prop_assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record.clone());
            }
        }
    }
}
