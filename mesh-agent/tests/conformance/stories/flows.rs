//! The flows that a node lists, compared with the connections that there are.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use anyhow::{Result, ensure};
use mesh_agent::{
    datapath::flow_list::{FlowCursor, FlowState, Ingress, ListedFlow},
    model::{Balance, Protocol, ServiceKey},
};

use super::changes::connect_to_all;
use crate::{
    mesh::{Mesh, ingress_address},
    talk::PATIENCE,
    until,
};

const LISTED: ServiceKey = ServiceKey {
    protocol: Protocol::Tcp,
    port: 9350,
};

pub(super) fn listed(mesh: &mut Mesh<'_>) -> Result<()> {
    let replicas = ["a1", "a2"];
    mesh.publish("listed", &[LISTED], Balance::default());
    for replica in replicas {
        mesh.add_task("listed", replica);
    }
    mesh.start()?;
    let world = mesh.world;
    let kept = connect_to_all(&world.client, mesh.frontend(1, LISTED), &replicas)?;
    let entered = BTreeMap::from(replicas.map(|replica| (ingress_address(replica), Ingress::Network)));
    until_open(mesh, 1, &entered)?;
    // The replica's node knows by which node its connection has come.
    let from = Ingress::Node(world.node(1).address);
    until_open(mesh, 2, &[(ingress_address("a2"), from)].into())?;
    let clients: BTreeSet<_> = flows(mesh, 1)?.iter().map(|flow| flow.client.ip()).collect();
    ensure!(clients.len() == 1, "{clients:?} are one client");
    drop(kept);
    until_open(mesh, 1, &BTreeMap::new())
}

/// Waits until a node has these open connections, by replica.
fn until_open(mesh: &mut Mesh<'_>, node: usize, expected: &BTreeMap<Ipv4Addr, Ingress>) -> Result<()> {
    until("the open connections to be listed", PATIENCE, || {
        let flows = flows(mesh, node)?;
        let open = flows.iter().filter(|flow| flow.state == FlowState::Open);
        let open: BTreeMap<_, _> = open
            .filter_map(|flow| Some((flow.backend?.address, flow.ingress)))
            .collect();
        ensure!(open == *expected, "node{node} lists {flows:?}");
        Ok(())
    })
}

fn flows(mesh: &mut Mesh<'_>, node: usize) -> Result<Vec<ListedFlow>> {
    let mut flows = mesh.on(node, |datapath| {
        let (mut cursor, mut flows) = (FlowCursor::default(), Vec::new());
        while datapath.read_flows(&mut cursor, &mut |flow| flows.push(flow))? {}
        Ok::<_, anyhow::Error>(flows)
    })??;
    flows.retain(|flow| flow.service() == LISTED);
    Ok(flows)
}
