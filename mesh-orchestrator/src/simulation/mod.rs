//! A seeded simulation of a cluster that drives the control loops. Imports `loops`; only tests import it.
