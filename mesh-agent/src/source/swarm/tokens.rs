//! The secret that all managers of a Swarm share, and only they: the managers' join token. Pure.

use serde::Deserialize;

use crate::model::TunnelKey;

/// What the engine answers on `/swarm`, as far as it is needed. Not printable.
#[derive(Deserialize)]
pub(super) struct Tokens {
    #[serde(rename = "JoinTokens", default)]
    join: JoinTokens,
}

#[derive(Default, Deserialize)]
struct JoinTokens {
    #[serde(rename = "Manager", default)]
    manager: String,
}

impl Tokens {
    /// The key of packets between nodes; `None` if there is no token.
    pub(super) fn key(&self, cluster_id: &str) -> Option<TunnelKey> {
        // SWMTKN-1-<digest of the root certificate>-<secret>. The digest is public.
        let (_, secret) = self.join.manager.rsplit_once('-')?;
        (!secret.is_empty()).then(|| TunnelKey::derive(secret.as_bytes(), cluster_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(manager: &str) -> Option<TunnelKey> {
        let answer = serde_json::json!({
            "ID": "cluster",
            "JoinTokens": {"Worker": "SWMTKN-1-digest-worker", "Manager": manager},
        });
        serde_json::from_value::<Tokens>(answer).unwrap().key("cluster")
    }

    #[test]
    fn the_key_follows_the_secret_of_the_managers_token() {
        let first = key("SWMTKN-1-digest-first");
        assert!(first.is_some());
        assert_eq!(first, key("SWMTKN-1-another-first"), "the root has been rotated");
        assert_ne!(first, key("SWMTKN-1-digest-second"));
        assert_ne!(first, key("SWMTKN-1-digest-worker"));
        assert_eq!(key("SWMTKN-1-digest-"), None);
        assert_eq!(key(""), None);
        let elsewhere: Tokens = serde_json::from_str("{}").unwrap();
        assert_eq!(elsewhere.key("cluster"), None);
    }
}
