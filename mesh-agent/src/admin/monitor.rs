//! What became of packets, by the names of the agent's view. Pure.

use std::{collections::BTreeSet, time::SystemTime};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    View,
    api::{self, Events, MonitorQuery, PacketEvent},
    flows::{backend, services},
};
use crate::{
    datapath::monitor::{EventKind, Observation, Observations},
    model::{Prefix, Protocol, ServiceKey},
};

/// What to show.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    services: Option<BTreeSet<ServiceKey>>,
    client: Option<Prefix>,
    event: Option<EventKind>,
    heads: Heads,
}

/// How much of the packets is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Heads {
    #[default]
    None,
    /// To other nodes: payload stays on its own.
    Headers,
    All,
}

impl Filter {
    /// What a query is about, of an operator here or of another node.
    ///
    /// # Errors
    /// When it names what is not in the cluster.
    pub(super) fn new(view: &View, query: &MonitorQuery, asked_by_node: bool) -> Result<Self, String> {
        let services = query.service.as_deref().map(|name| services(view, name));
        Ok(Self {
            services: services.transpose()?,
            client: query.client,
            event: query.event,
            heads: match (query.heads, asked_by_node) {
                (false, _) => Heads::None,
                (true, true) => Heads::Headers,
                (true, false) => Heads::All,
            },
        })
    }

    fn admits(&self, observation: &Observation, service: Option<ServiceKey>) -> bool {
        let is_of = |keys: &BTreeSet<_>| service.is_some_and(|key| keys.contains(&key));
        let goes_by = |prefix: Prefix| {
            observation.tuple.is_some_and(|tuple| {
                prefix.contains(tuple.source.into()) || prefix.contains(tuple.destination.into())
            })
        };
        self.event.is_none_or(|event| event == observation.kind)
            && self.services.as_ref().is_none_or(is_of)
            && self.client.is_none_or(goes_by)
    }
}

/// The reports with the names of what they are about.
pub(super) fn answer(view: &View, filter: &Filter, found: Observations) -> Events {
    let events = found.list.into_iter().filter_map(|observation| {
        let service = service_of(view, &observation);
        filter
            .admits(&observation, service)
            .then(|| event(view, filter, service, observation))
    });
    Events {
        version: api::VERSION,
        node: view.node.clone(),
        hostname: view.hostname(),
        events: events.collect(),
        next: found.next,
        lost: found.lost,
    }
}

/// The service of a packet's connection: of its backend, or by the port that it goes to or, as an answer,
/// comes from.
fn service_of(view: &View, observation: &Observation) -> Option<ServiceKey> {
    if let Some(backend) = observation.backend {
        return Some(backend.service);
    }
    let tuple = observation.tuple?;
    let (source, destination) = tuple.ports?;
    let protocol = Protocol::from_number(tuple.protocol)?;
    let mut keys = [destination, source]
        .into_iter()
        .map(|port| ServiceKey { protocol, port });
    keys.find(|key| view.desired.services.contains_key(key))
}

fn event(view: &View, filter: &Filter, service: Option<ServiceKey>, observation: Observation) -> PacketEvent {
    let tuple = observation.tuple;
    let ports = tuple.and_then(|tuple| tuple.ports);
    PacketEvent {
        time: rfc3339(observation.at),
        event: observation.kind,
        reason: observation.reason.map(str::to_owned),
        protocol: tuple.map(|tuple| protocol_name(tuple.protocol)),
        source: tuple.map(|tuple| tuple.source),
        source_port: ports.map(|(source, _)| source),
        destination: tuple.map(|tuple| tuple.destination),
        destination_port: ports.map(|(_, destination)| destination),
        service: service
            .and_then(|key| view.desired.services.get(&key))
            .map(|service| service.name.clone()),
        backend: observation.backend.map(|key| backend(view, &key)),
        interface: observation.interface,
        length: observation.length,
        head: match filter.heads {
            Heads::None => None,
            Heads::Headers => observation.head.get(..observation.headers).map(encode),
            Heads::All => Some(encode(&observation.head)),
        },
    }
}

fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

fn rfc3339(at: SystemTime) -> String {
    // Any time from 1970 on that this clock has is one.
    OffsetDateTime::from(at).format(&Rfc3339).unwrap_or_default()
}

fn protocol_name(number: u8) -> String {
    match (Protocol::from_number(number), number) {
        (Some(protocol), _) => protocol.to_string(),
        (None, 1) => "icmp".to_owned(),
        (None, number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{admin::view::fixture, datapath::monitor::PacketTuple};

    fn observation(kind: EventKind) -> Observation {
        Observation {
            at: SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000),
            kind,
            reason: None,
            tuple: Some(PacketTuple {
                protocol: 6,
                source: "192.0.2.7".parse().unwrap(),
                destination: "192.168.0.1".parse().unwrap(),
                ports: Some((40_000, 9200)),
            }),
            backend: None,
            interface: "eth0".to_owned(),
            length: 74,
            head: vec![1, 2, 3],
            headers: 2,
        }
    }

    fn shown(query: &MonitorQuery, list: Vec<Observation>) -> Vec<PacketEvent> {
        let view = fixture::still().view();
        let filter = Filter::new(&view, query, false).unwrap();
        let found = Observations {
            list,
            next: 7,
            lost: 0,
        };
        answer(&view, &filter, found).events
    }

    #[test]
    fn an_event_has_the_names_of_service_and_replica() {
        let view = fixture::still().view();
        let key = view.desired.backends.keys().next().copied();
        let opened = Observation {
            backend: key,
            ..observation(EventKind::Opened)
        };
        let events = shown(&MonitorQuery::default(), vec![opened]);
        assert_eq!(events[0].time, "1970-01-01T00:00:01.5Z");
        assert_eq!(events[0].service.as_deref(), Some("web"));
        assert_eq!(events[0].backend.as_ref().unwrap().task, "web.1");
        assert_eq!(
            (events[0].source_port, events[0].destination_port),
            (Some(40_000), Some(9200))
        );
        assert_eq!(events[0].head, None, "payload is shown on request only");
    }

    #[test]
    fn an_answer_is_of_the_service_that_it_comes_from() {
        let mut reply = observation(EventKind::Refused);
        let tuple = reply.tuple.as_mut().unwrap();
        tuple.ports = Some((9200, 40_000));
        let query = MonitorQuery {
            heads: true,
            ..MonitorQuery::default()
        };
        let events = shown(&query, vec![reply]);
        assert_eq!(events[0].service.as_deref(), Some("web"));
        assert_eq!(events[0].head.as_deref(), Some("AQID"));
    }

    #[test]
    fn payload_stays_on_its_node() {
        let query = MonitorQuery {
            heads: true,
            ..MonitorQuery::default()
        };
        let view = fixture::still().view();
        let filter = Filter::new(&view, &query, true).unwrap();
        let list = vec![observation(EventKind::Opened)];
        let found = Observations {
            list,
            ..Observations::default()
        };
        let head = answer(&view, &filter, found).events[0].head.clone().unwrap();
        assert_eq!(STANDARD.decode(head).unwrap(), [1, 2]);
    }

    #[test]
    fn every_condition_of_a_query_counts() {
        let count = |query: MonitorQuery| shown(&query, vec![observation(EventKind::Dropped)]).len();
        let query = MonitorQuery::default;
        assert_eq!(count(query()), 1);
        for (client, expected) in [("192.0.2.0/24", 1), ("192.168.0.1", 1), ("192.0.2.8", 0)] {
            let client = Some(client.parse().unwrap());
            assert_eq!(count(MonitorQuery { client, ..query() }), expected);
        }
        for (event, expected) in [(EventKind::Dropped, 1), (EventKind::Opened, 0)] {
            let event = Some(event);
            assert_eq!(count(MonitorQuery { event, ..query() }), expected);
        }
        for (service, expected) in [("web", 1), ("dns", 0)] {
            let service = Some(service.to_owned());
            assert_eq!(count(MonitorQuery { service, ..query() }), expected);
        }
        let service = Some("nothing".to_owned());
        let error = Filter::new(
            &fixture::still().view(),
            &MonitorQuery { service, ..query() },
            false,
        );
        assert!(error.unwrap_err().contains("'nothing'"));
    }
}
