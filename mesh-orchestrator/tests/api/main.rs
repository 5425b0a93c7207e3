//! The API over real HTTP: a Unix socket, a real store, the leader's loops, and simulated agents that take
//! tasks through their states. Needs `etcd` and `etcdctl` for the store that becomes unavailable.

mod access;
mod backups;
mod client;
mod documents;
mod files;
mod history;
mod nodes;
mod providers;
mod server;
mod services;
mod streams;
mod webhooks;
