//! Nodes whose programs are loaded, for the next test: the verifier takes seconds for them. Imports
//! [`crate::node`].
//!
//! A test that leaves its node as it found it passes it on: what it has applied is taken back, all maps are
//! emptied, and the network is compared with that of the beginning. Any other node ends with its test.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{Mutex, MutexGuard, Once, PoisonError},
};

use mesh_support::{at_exit, command, namespace::Namespace};

use crate::node::Node;

/// A node that no test has.
struct Idle {
    namespace: Namespace,
    node: Node,
    /// Its links, routes and neighbours.
    network: String,
}

static IDLE: Mutex<Vec<Idle>> = Mutex::new(Vec::new());

/// Runs a test on a node whose programs may be loaded already, in a thread whose namespaces are the node's.
#[track_caller]
pub fn on_a_node(test: impl FnOnce(&mut Node) + Send) {
    static END: Once = Once::new();
    // The nodes' cgroups outlive the process.
    END.call_once(|| at_exit(end));
    let waiting = nodes().pop();
    let Idle {
        namespace,
        node,
        network,
    } = waiting.unwrap_or_else(make);
    let left = namespace.enter(move || {
        let mut node = node;
        let outcome = catch_unwind(AssertUnwindSafe(|| test(&mut node)));
        match outcome {
            Ok(()) => (node.start_over() && self::network() == network).then_some((node, network)),
            Err(panic) => {
                drop(node);
                resume_unwind(panic);
            }
        }
    });
    if let Some((node, network)) = left {
        nodes().push(Idle {
            namespace,
            node,
            network,
        });
    }
}

extern "C" fn end() {
    nodes().clear();
}

fn nodes() -> MutexGuard<'static, Vec<Idle>> {
    IDLE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn make() -> Idle {
    let namespace = Namespace::with_mounts()
        .expect("this test loads eBPF programs into network namespaces: run it as root");
    let (node, network) = namespace.enter(|| (Node::with_bpffs(), network()));
    Idle {
        namespace,
        node,
        network,
    }
}

/// What a test may have changed outside of the maps.
fn network() -> String {
    let show = |what: &[&str]| command::output("ip", what, "").expect("`ip` shows what there is");
    [
        show(&["-details", "link"]),
        show(&["address"]),
        show(&["route", "show", "table", "all"]),
        show(&["neighbour"]),
    ]
    .concat()
}
