//! Where the cluster's objects are kept: one trait, several implementations.
