//! The parts of the IP header that say how a packet is to be treated on its way.

use super::*;

const CONGESTION_EXPERIENCED: u8 = 3;

/// A client's packet with this type of service and time to live.
fn marked(service_type: u8, hops: u8) -> TestFrame {
    let mut frame = syn();
    frame.bytes[ETHERNET_LENGTH + 1] = service_type;
    frame.bytes[ETHERNET_LENGTH + 8] = hops;
    fix_ip_checksum(&mut frame.bytes, ETHERNET_LENGTH);
    frame
}

/// What a container gets of a packet that came through the tunnel, whose outer header has the same type of
/// service first, and then another.
fn through_tunnel(service_type: u8, on_the_way: u8) -> (Action, Option<u8>) {
    let (entry_node, backend_node) = (node(1, REMOTE), node(2, REMOTE));
    let mut frame = marked(service_type, 64);
    assert_eq!(run(&entry_node, Hook::Xdp, &mut frame), TO_PEER);
    assert_eq!(
        frame.bytes[ETHERNET_LENGTH + 1],
        service_type,
        "of the outer header"
    );
    let mut frame = frame.received();
    frame.bytes[ETHERNET_LENGTH + 1] = on_the_way;
    fix_ip_checksum(&mut frame.bytes, ETHERNET_LENGTH);
    let action = run(&backend_node, Hook::TcUplink, &mut frame);
    let got = (action != Action::Drop).then(|| {
        view(&frame);
        frame.bytes[ETHERNET_LENGTH + 1]
    });
    (action, got)
}

#[test]
fn the_tunnel_carries_dscp_and_congestion_marks() {
    let dscp = 0xb8;
    for (sent, on_the_way, expected) in [
        (dscp, dscp, Some(dscp)),
        // A router in between sets another DSCP: the inner one stays (RFC 2983).
        (dscp, 0, Some(dscp)),
        (
            dscp | 1,
            dscp | CONGESTION_EXPERIENCED,
            Some(dscp | CONGESTION_EXPERIENCED),
        ),
        (2, CONGESTION_EXPERIENCED, Some(CONGESTION_EXPERIENCED)),
        (
            CONGESTION_EXPERIENCED,
            CONGESTION_EXPERIENCED,
            Some(CONGESTION_EXPERIENCED),
        ),
        // Marked although the sender does not understand it.
        (dscp, dscp | CONGESTION_EXPERIENCED, None),
    ] {
        let (action, got) = through_tunnel(sent, on_the_way);
        assert_eq!(got, expected, "{sent:#x} {on_the_way:#x}: {action:?}");
    }
}

#[test]
fn between_client_and_container_is_one_hop() {
    for (hops, expected) in [(64, 63), (2, 1), (1, 1)] {
        for replica in [LOCAL, REMOTE] {
            let (entry_node, backend_node) = (node(1, replica), node(2, replica));
            let mut frame = marked(0, hops);
            run(&entry_node, Hook::TcUplink, &mut frame);
            if replica.node == 2 {
                frame = frame.received();
                run(&backend_node, Hook::TcUplink, &mut frame);
            }
            assert_eq!(frame.bytes[ETHERNET_LENGTH + 8], expected, "of {hops}");
            view(&frame);
        }
    }
}
