//! A talk between a client and a backend, checked hop by hop.

use super::*;
use crate::testing::View;

/// One kind of packet, in both directions.
#[derive(Clone, Debug)]
pub(super) struct Talk {
    pub(super) protocol: u8,
    pub(super) payload: Vec<u8>,
    /// Whether checksums are left to hardware.
    pub(super) unfinished: bool,
    /// Whether UDP has checksums.
    pub(super) summed: bool,
}

impl Talk {
    fn prepared(&self, frame: TestFrame) -> TestFrame {
        if self.protocol == PROTOCOL_UDP && !self.summed {
            frame.without_checksum()
        } else if self.unfinished {
            frame.unfinished()
        } else {
            frame
        }
    }

    /// The client's packets: the one that opens the flow, and the next.
    fn sent(&self, client: SocketAddrV4, frontend: SocketAddrV4) -> [TestFrame; 2] {
        let payload = &self.payload;
        let frames = if self.protocol == PROTOCOL_TCP {
            [SYN, ACK].map(|flags| {
                let segment = Segment {
                    flags,
                    sequence: 0xffff_0001,
                    acknowledgement: 7,
                    options: if flags == SYN {
                        &[1, 1, 1, 2, 4, 0x05, 0xb4, 0]
                    } else {
                        &[]
                    },
                    payload: if flags == SYN { b"" } else { payload },
                };
                tcp(client, frontend, segment)
            })
        } else {
            [b"first", payload.as_slice()].map(|payload| udp(client, frontend, payload))
        };
        frames.map(|frame| self.prepared(frame))
    }
}

/// Every kind of talk.
pub(super) fn talks() -> Vec<Talk> {
    let mut talks = Vec::new();
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        for payload in [vec![], b"odd".to_vec(), vec![0xff; 1000], vec![0; 401]] {
            for (unfinished, summed) in [(false, true), (true, true), (false, false)] {
                talks.push(Talk {
                    protocol,
                    payload: payload.clone(),
                    unfinished,
                    summed,
                });
            }
        }
    }
    talks
}

/// Client, frontend and the nodes between them.
pub(super) struct Path<'a> {
    pub(super) client: SocketAddrV4,
    pub(super) frontend: SocketAddrV4,
    /// The client that the container sees, unless its port is taken.
    pub(super) presented: SocketAddrV4,
    /// Where the client's packets enter.
    pub(super) hook: Hook,
    /// The last action for a reply.
    pub(super) home: Action,
    pub(super) entry_node: &'a TestTables,
    /// Where the container runs, if not on the entry node.
    pub(super) backend_node: Option<&'a TestTables>,
    /// Whether that node answers the client directly.
    pub(super) direct: bool,
}

impl Path<'_> {
    /// A client's packet as the container receives it.
    fn there(&self, mut frame: TestFrame) -> TestFrame {
        let action = run(self.entry_node, self.hook, &mut frame);
        if let Some(backend_node) = self.backend_node {
            assert_eq!(action, TO_PEER);
            let inner = view_inner(&frame);
            assert_eq!((inner.source, inner.destination), (self.presented, self.frontend));
            frame = frame.received();
            let action = run(backend_node, Hook::TcUplink, &mut frame);
            assert!(matches!(action, Action::IntoContainer { .. }), "{action:?}");
        } else {
            let into = matches!(action, Action::IntoContainer { .. });
            assert!(into != (self.hook == Hook::TcMesh0), "{action:?}");
        }
        frame
    }

    /// A container's packet as the client receives it; `hook` is where it arrives from the tunnel.
    fn back(&self, frame: TestFrame, hook: Hook) -> TestFrame {
        let mut frame = frame.routed(CLIENT_ROUTE);
        let Some(backend_node) = self.backend_node else {
            assert_eq!(run(self.entry_node, Hook::TcContainer, &mut frame), self.home);
            return frame;
        };
        let action = run(backend_node, Hook::TcContainer, &mut frame);
        if self.direct {
            assert_eq!(action, self.home);
            return frame;
        }
        assert_eq!(action, TO_PEER);
        let inner = view_inner(&frame);
        assert_eq!((inner.source, inner.destination), (self.frontend, self.presented));
        let mut frame = frame.received().routed(CLIENT_ROUTE);
        let client_is_here = matches!(self.hook, Hook::TcContainer | Hook::TcMesh0);
        let hook = if client_is_here && hook == Hook::Xdp {
            check_passed_whole(self.entry_node, hook, &frame);
            Hook::TcUplink
        } else {
            hook
        };
        assert_eq!(run(self.entry_node, hook, &mut frame), self.home);
        frame
    }

    /// Lets client and backend talk, and checks every packet on every hop.
    pub(super) fn hold(&self, talk: &Talk) {
        let mut expected_counters = BackendCounters {
            connections: 1,
            ..BackendCounters::default()
        };
        for sent in talk.sent(self.client, self.frontend) {
            let asked = view(&sent);
            expected_counters.packets_in += 1;
            expected_counters.bytes_in += sent.bytes.len() as u64 - 14;
            let got = self.there(sent);
            let seen = view(&got);
            let expected = View {
                source: self.presented,
                destination: at("172.18.0.1:80"),
                ..self.clamped(asked)
            };
            assert_eq!(seen, expected, "of {talk:?}");
            for hook in [Hook::Xdp, Hook::TcUplink] {
                let reply = talk.prepared(reply_to(&seen, ACK, &talk.payload));
                expected_counters.packets_out += 1;
                expected_counters.bytes_out += reply.bytes.len() as u64 - 14;
                let expected = View {
                    source: self.frontend,
                    destination: self.client,
                    ..view(&reply)
                };
                assert_eq!(view(&self.back(reply, hook)), expected, "of {talk:?}");
            }
        }
        let backend = u32::from(talk.protocol == PROTOCOL_UDP);
        if self.direct {
            // The entry node does not see them.
            (expected_counters.packets_out, expected_counters.bytes_out) = (0, 0);
        }
        assert_eq!(self.entry_node.counters(backend), expected_counters);
        assert_eq!(self.entry_node.all_drops(), 0);
        if let Some(backend_node) = self.backend_node {
            let counters = backend_node.counters(backend);
            assert_eq!(
                counters,
                BackendCounters::default(),
                "counted at the entry node only"
            );
            assert_eq!(backend_node.all_drops(), 0);
        }
    }

    /// What the tunnel changes in a packet.
    fn clamped(&self, mut view: View) -> View {
        if self.backend_node.is_some() && view.flags & SYN != 0 {
            view.options[5..7].copy_from_slice(&(INNER_MTU - 40).to_be_bytes());
        }
        view
    }
}
