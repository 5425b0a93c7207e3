//! Waiting until a service is as it was asked to be: what is seen (pure), how it is shown, and the loop.

mod convergence;
mod display;
mod wait;

pub(crate) use wait::{Removed, Wait, WaitFlags, wait_for_removal, wait_for_services};
