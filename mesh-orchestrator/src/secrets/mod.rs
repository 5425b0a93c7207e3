//! Encryption at rest of secrets, configs and registry credentials.
