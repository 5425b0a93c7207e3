//! The IPv6 clients that replicas see by an IPv4 address, as an operator asks for them. Pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{View, api};
use crate::datapath::mapped::MappedClient;

/// How many are listed by default.
pub const DEFAULT_CLIENTS: usize = 1_000;
/// How many can be listed.
pub const MAX_CLIENTS: usize = 200_000;

/// `GET /v1/clients`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientsQuery {
    /// Only the one with this address: its own, or the one that replicas see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// How many to list at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
}

/// Its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// [`api::VERSION`].
    pub version: u32,
    /// Id of the answering node.
    pub node: String,
    /// Host name of the answering node.
    pub hostname: String,
    /// Sorted by their own address.
    pub clients: Vec<MappedClient>,
    /// How many more there were than the limit.
    pub more: u64,
}

/// The first of those that were found.
pub(super) fn answer(view: &View, query: &ClientsQuery, mut found: Vec<MappedClient>) -> Clients {
    let limit = query.limit.unwrap_or(DEFAULT_CLIENTS).min(MAX_CLIENTS);
    found.sort();
    let more = found.len().saturating_sub(limit) as u64;
    found.truncate(limit);
    Clients {
        version: api::VERSION,
        node: view.node.clone(),
        hostname: view.hostname(),
        clients: found,
        more,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::fixture;

    fn list(query: &ClientsQuery) -> Clients {
        let agent = fixture::still();
        let found = agent.mapped_clients(query.address).unwrap();
        answer(&agent.view(), query, found)
    }

    #[test]
    fn clients_are_listed_by_their_own_address_up_to_the_limit() {
        let all = list(&ClientsQuery::default());
        let addresses: Vec<_> = all
            .clients
            .iter()
            .map(|client| client.address.to_string())
            .collect();
        assert_eq!(addresses, ["2001:db8::5", "2001:db8::7", "2001:db8::9"]);
        assert_eq!((all.hostname.as_str(), all.more), ("n1", 0));
        let first = list(&ClientsQuery {
            limit: Some(1),
            ..ClientsQuery::default()
        });
        assert_eq!((first.clients.len(), first.more), (1, 2));
    }

    #[test]
    fn a_client_is_found_by_either_address() {
        for address in ["2001:db8::7", "248.1.2.7"] {
            let found = list(&ClientsQuery {
                address: Some(address.parse().unwrap()),
                limit: None,
            });
            assert_eq!(found.clients.len(), 1, "{address}");
            assert_eq!(found.clients[0].mapped.to_string(), "248.1.2.7");
        }
    }
}
