//! The orchestrator's objects as docker's columns and `--pretty` texts. Pure: answers in, text out.

pub(crate) mod files;
pub(crate) mod filter;
pub(crate) mod history;
pub(crate) mod inspect;
pub(crate) mod nodes;
pub(crate) mod operator;
pub(crate) mod pretty;
pub(crate) mod service_pretty;
pub(crate) mod services;
pub(crate) mod stacks;
pub(crate) mod tasks;
#[cfg(test)]
pub(crate) mod testing;
