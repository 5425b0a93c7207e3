//! Agents that are killed while they program the data path: whatever they leave, the next start repairs.

use std::mem::discriminant;

use aya::maps::{Array, HashMap, Map, MapData};
use mesh_agent::{
    datapath::{Datapath, memory::MemoryDatapath},
    model::{Desired, Location},
    plan::{DatapathChange, plan},
};
use mesh_agent_testing::{
    cluster::{CLIENT, DNS, PEER, WEB, arriving, frontend, ingress, serve},
    frames::{Packet, SYN},
    idle::on_a_node,
    node::Node,
    run::XDP_TX,
};
use mesh_ebpf::abi::{self, VERSION};

fn remote(numbers: &[u8]) -> Vec<(u8, Location)> {
    let remote = |number: &u8| (*number, Location::Remote(PEER));
    numbers.iter().map(remote).collect()
}

/// A service with five replicas, and one beside it.
fn before(node: &Node) -> Desired {
    let mut state = node.without_services();
    serve(&mut state, WEB, &remote(&[1, 2, 3, 4, 5]));
    serve(&mut state, DNS, &remote(&[6]));
    state
}

/// Some replicas are gone, some are new, one service is gone.
fn after(node: &Node) -> Desired {
    let mut state = node.without_services();
    serve(&mut state, WEB, &remote(&[4, 5, 6, 7]));
    state
}

/// Where in a plan an agent is killed next: after the last of several changes of a kind, and at the end.
pub(crate) fn next_cut(changes: &[DatapathChange], steps: usize) -> Option<usize> {
    let is_cut = |steps: &usize| match changes.get(*steps) {
        Some(next) => discriminant(next) != discriminant(&changes[*steps - 1]),
        None => true,
    };
    (steps + 1..=changes.len()).find(is_cut)
}

/// Kills an agent after so many changes of a plan; returns after how many to kill the next one.
fn killed_after(steps: usize, node: &mut Node, old: Option<&Desired>, new: &Desired) -> Option<usize> {
    let empty = Desired::default();
    if let Some(old) = old {
        node.apply(old);
    }
    let changes = plan(old.unwrap_or(&empty), new);
    let done = &changes[..steps.min(changes.len())];
    assert!(node.datapath().apply(done).is_empty());
    node.crash();

    node.load();
    node.apply(new);
    node.datapath()
        .prune(new)
        .expect("what is left over can be removed");
    let mut found = node.datapath().dump(0).expect("the tables can be read");
    found.flows.clear();
    let expected = MemoryDatapath { state: new.clone() }
        .dump(0)
        .expect("it is in memory");
    assert!(
        found == expected,
        "killed after {steps} of {} changes, last {:?}: the tables are\n{found}\nbut should be\n{expected}",
        changes.len(),
        done.last()
    );
    let syn = Packet::tcp(arriving(), CLIENT, frontend(WEB), SYN);
    assert_eq!(
        node.xdp(&syn.frame()).verdict,
        XDP_TX,
        "killed after {steps} changes"
    );
    next_cut(&changes, steps)
}

#[test]
fn an_agent_killed_at_any_step_of_its_first_plan_is_repaired_by_the_next() {
    let mut cut = Some(0);
    while let Some(steps) = cut {
        on_a_node(|node| {
            let new = before(node);
            cut = killed_after(steps, node, None, &new);
        });
    }
}

fn pinned<K: aya::Pod, V: aya::Pod>(node: &Node, name: &str) -> HashMap<MapData, K, V> {
    let map = Map::from_map_data(pin(node, name)).expect("a map of a known type");
    map.try_into().expect("a hash map of that type")
}

fn pin(node: &Node, name: &str) -> MapData {
    MapData::from_pin(node.pins().join(format!("v{VERSION}")).join(name)).expect("the map is pinned")
}

#[test]
fn the_flows_of_a_backend_that_was_half_removed_end() {
    on_a_node(|node| {
        let old = before(node);
        node.apply(&old);
        let mut index = pinned::<abi::BackendKey, u32>(node, "BACKEND_INDEX");
        let half_removed: Vec<_> = (index.keys())
            .map(|key| key.expect("a key"))
            .filter(|key| {
                [1, 2, 3]
                    .map(|number| ingress(number).into())
                    .contains(&key.address)
            })
            .collect();
        assert_eq!(half_removed.len(), 3);
        for key in half_removed {
            index.remove(&key).expect("it is there");
        }
        node.crash();

        node.load();
        let new = after(node);
        node.apply(&new);
        node.datapath()
            .prune(&new)
            .expect("what is left over can be removed");
        let backends: Array<_, abi::Backend> = Map::from_map_data(pin(node, "BACKENDS"))
            .expect("a map of a known type")
            .try_into()
            .expect("an array of backends");
        let in_use = backends
            .iter()
            .filter(|backend| backend.as_ref().expect("a backend").generation != 0);
        assert_eq!(in_use.count(), new.backends.len());
    });
}

#[test]
fn an_agent_killed_at_any_step_of_an_update_is_repaired_by_the_next() {
    let mut cut = Some(0);
    while let Some(steps) = cut {
        on_a_node(|node| {
            let (old, new) = (before(node), after(node));
            cut = killed_after(steps, node, Some(&old), &new);
        });
    }
}
