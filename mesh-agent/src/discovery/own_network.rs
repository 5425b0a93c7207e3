//! For tests: a network namespace of their own. Imports nothing of ours.

use mesh_support::{command, namespace::in_new_network};

/// Runs a test on a thread with a network namespace of its own, which ends with the thread.
pub(super) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    in_new_network(|| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(test());
    })
    .expect("this test makes a network namespace: run it as root");
}

/// Runs `ip` with these arguments.
pub(super) fn ip(arguments: &str) {
    let arguments: Vec<_> = arguments.split_whitespace().collect();
    command::output("ip", &arguments, "").unwrap();
}
