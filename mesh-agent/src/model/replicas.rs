//! How many replicas services should have, and how many run: of all services, with or without ports.

/// The replicas of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replicas {
    /// The service's name.
    pub service: String,
    /// How many there should be; of a service without a number of them, those that are meant to run.
    pub wanted: u64,
    /// How many of those that are meant to run do.
    pub running: u64,
}
