//! The settings with which a node joined its Swarm, from the file in which Docker keeps them: the engine's
//! API does not have them all.

use std::{fs, net::Ipv4Addr, path::Path};

use serde::Deserialize;

use super::host;

const FILE: &str = "docker-state.json";

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct SwarmState {
    #[serde(default)]
    data_path_addr: String,
}

/// The address of `--data-path-addr`, given the folder of the node's certificates. `None` if there is none,
/// or if the file cannot be read: a container sees the certificates only.
pub(crate) fn data_path_address(certificates: &Path) -> Option<Ipv4Addr> {
    let text = fs::read_to_string(certificates.parent()?.join(FILE)).ok()?;
    let state: SwarmState = serde_json::from_str(&text).ok()?;
    host(&state.data_path_addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_data_path_address_is_read_from_beside_the_certificates() {
        let folder = tempfile::tempdir().unwrap();
        let certificates = folder.path().join("certificates");
        assert_eq!(data_path_address(&certificates), None);
        for (address, expected) in [
            ("", None),
            ("0.0.0.0", None),
            ("10.7.0.3", Some(Ipv4Addr::new(10, 7, 0, 3))),
        ] {
            let text = format!(
                r#"{{"LocalAddr":"","ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"10.99.1.2:2377",
                    "DataPathAddr":"{address}","DefaultAddressPool":null,"JoinInProgress":false}}"#
            );
            fs::write(folder.path().join(FILE), text).unwrap();
            assert_eq!(data_path_address(&certificates), expected, "'{address}'");
        }
    }
}
