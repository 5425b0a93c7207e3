//! Reads the flow tables a page at a time, for operators: one record for each flow, by its forward entry.

use std::{collections::BTreeMap, net::SocketAddr};

use mesh_ebpf::abi::{Flow, FlowKey, FlowRecord, Opening, Origin, Progress, Role};

use super::{
    super::{
        DatapathError,
        flow_list::{FlowCursor, FlowState, Ingress, ListedFlow},
    },
    batch, failed,
    mapped::{self, socket},
    maps::Maps,
    tables::service_key,
};
use crate::model::BackendKey;

/// Visits the flows of the next page; returns whether there are more. `backends` has the backends by index,
/// with their generations, `now` is the time on the flows' clock.
pub(super) fn read(
    maps: &Maps,
    cursor: &mut FlowCursor,
    backends: &BTreeMap<u32, (u32, BackendKey)>,
    now: u32,
    visit: &mut dyn FnMut(ListedFlow),
) -> Result<bool, DatapathError> {
    // In the direction that entries take, so that none is missed on its way.
    let map = match cursor.tables {
        0 => &maps.half_open,
        1 => &maps.flows,
        _ => return Ok(false),
    };
    let position = &mut cursor.position;
    let ended = batch::next(
        map,
        position,
        |key: &FlowKey, FlowRecord { flow, .. }: &FlowRecord| {
            if flow.role == Role::FORWARD
                && let Some(flow) = listed(maps, key, flow, backends, now)
            {
                visit(flow);
            }
        },
    )
    .map_err(|error| failed("read the flow table", error))?;
    if ended {
        *cursor = FlowCursor {
            tables: cursor.tables + 1,
            ..FlowCursor::default()
        };
    }
    Ok(cursor.tables < 2)
}

fn listed(
    maps: &Maps,
    key: &FlowKey,
    flow: &Flow,
    backends: &BTreeMap<u32, (u32, BackendKey)>,
    now: u32,
) -> Option<ListedFlow> {
    let backend = backends.get(&flow.backend);
    let (client, presented) = (mapped::shown_socket(maps, flow.client), socket(flow.presented));
    Some(ListedFlow {
        protocol: service_key(key.protocol as u16, flow.frontend.port)?.protocol,
        client,
        frontend: mapped::shown_socket(maps, flow.frontend),
        presented: (SocketAddr::from(presented) != client).then_some(presented),
        backend: backend.and_then(|(generation, key)| (*generation == flow.generation).then_some(*key)),
        state: state(flow.from_client, flow.from_backend, flow.opening),
        idle_seconds: Some(now.saturating_sub(flow.seen)),
        ingress: match flow.origin {
            Origin::MESH0 => Ingress::Host,
            Origin::CONTAINER => Ingress::Container,
            Origin::TUNNEL | Origin::TUNNEL_DIRECT => Ingress::Node(flow.peer_address.into()),
            _ => Ingress::Network,
        },
    })
}

/// How far a flow has come, by its forward entry.
pub(super) fn state(from_client: Progress, from_backend: Progress, opening: Opening) -> FlowState {
    // A connection that was adopted is no open one before its backend has shown that it knows it.
    let is_proven = from_backend != Progress::UNPROVEN;
    if Progress::is_closed(from_client, from_backend) {
        FlowState::Closed
    } else if is_proven && Progress::is_closing(from_client, from_backend) {
        FlowState::Closing
    } else if is_proven && opening.is_open() {
        FlowState::Open
    } else {
        FlowState::HalfOpen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_follows_from_both_directions() {
        let (open, finished, reset) = (Progress::OPEN, Progress::FINISHED, Progress::RESET);
        for (opening, from_client, from_backend, expected) in [
            (Opening::asked(7), open, open, FlowState::HalfOpen),
            (Opening::ANSWERED, open, open, FlowState::HalfOpen),
            (Opening::OPEN, open, open, FlowState::Open),
            (Opening::OPEN, open, Progress::UNPROVEN, FlowState::HalfOpen),
            (Opening::OPEN, finished, open, FlowState::Closing),
            (Opening::OPEN, open, finished, FlowState::Closing),
            (Opening::OPEN, finished, finished, FlowState::Closed),
            (Opening::ANSWERED, open, reset, FlowState::Closed),
        ] {
            let found = state(from_client, from_backend, opening);
            assert_eq!(found, expected, "{opening:?} {from_client:?} {from_backend:?}");
        }
    }
}
