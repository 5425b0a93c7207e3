//! What a demo claims, and whether it held.

use std::process::ExitCode;

use anyhow::Result;

use crate::lab::Lab;

/// Claims in the order in which they were checked.
#[derive(Default)]
pub(super) struct Claims {
    all: Vec<(String, Result<(), String>)>,
}

impl Claims {
    /// Notes a claim, and why it did not hold.
    pub(super) fn claim(&mut self, what: String, outcome: Result<(), String>) {
        self.all.push((what, outcome));
    }

    fn held(&self) -> bool {
        self.all.iter().all(|(_, outcome)| outcome.is_ok())
    }

    /// Prints them, and ends the demo: with the lab down and what came of the claims where they are checked,
    /// with the lab up where the user wants to look around.
    pub(super) fn end(&self, mut lab: Lab, check: bool) -> Result<ExitCode> {
        println!();
        self.print();
        if !check {
            lab.keep();
            return Ok(ExitCode::SUCCESS);
        }
        lab.down()?;
        let (outcome, code) = match self.held() {
            true => ("every claim held", ExitCode::SUCCESS),
            false => ("not every claim held", ExitCode::FAILURE),
        };
        println!("the lab is down; {outcome}");
        Ok(code)
    }

    fn print(&self) {
        for (what, outcome) in &self.all {
            match outcome {
                Ok(()) => println!("  held    {what}"),
                Err(why) => println!("  FAILED  {what}: {why}"),
            }
        }
    }
}
