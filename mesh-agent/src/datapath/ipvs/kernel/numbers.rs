//! The numbers of IPVS's generic netlink family, from `linux/ip_vs.h`.

use std::net::IpAddr;

/// `IPVS_GENL_VERSION`.
pub(super) const VERSION: u8 = 1;
/// Bytes of generic netlink's header: command, version, two reserved.
pub(super) const HEADER_BYTES: usize = 4;
/// Bytes of the address attribute, of either family.
pub(super) const ADDRESS_BYTES: usize = 16;

// IPVS_CMD_*.
pub(super) const NEW_SERVICE: u8 = 1;
pub(super) const SET_SERVICE: u8 = 2;
pub(super) const DELETE_SERVICE: u8 = 3;
pub(super) const GET_SERVICE: u8 = 4;
pub(super) const NEW_DESTINATION: u8 = 5;
pub(super) const SET_DESTINATION: u8 = 6;
pub(super) const DELETE_DESTINATION: u8 = 7;
pub(super) const GET_DESTINATION: u8 = 8;

// IPVS_CMD_ATTR_*.
pub(super) const SERVICE: u16 = 1;
pub(super) const DESTINATION: u16 = 2;

// IPVS_SVC_ATTR_*.
pub(super) const SERVICE_FAMILY: u16 = 1;
pub(super) const SERVICE_PROTOCOL: u16 = 2;
pub(super) const SERVICE_ADDRESS: u16 = 3;
pub(super) const SERVICE_PORT: u16 = 4;
pub(super) const SERVICE_MARK: u16 = 5;
pub(super) const SERVICE_SCHEDULER: u16 = 6;
pub(super) const SERVICE_FLAGS: u16 = 7;
pub(super) const SERVICE_TIMEOUT: u16 = 8;
pub(super) const SERVICE_NETMASK: u16 = 9;

// IPVS_DEST_ATTR_*.
pub(super) const DESTINATION_ADDRESS: u16 = 1;
pub(super) const DESTINATION_PORT: u16 = 2;
pub(super) const DESTINATION_METHOD: u16 = 3;
pub(super) const DESTINATION_WEIGHT: u16 = 4;
pub(super) const DESTINATION_UPPER_THRESHOLD: u16 = 5;
pub(super) const DESTINATION_LOWER_THRESHOLD: u16 = 6;
pub(super) const DESTINATION_ACTIVE: u16 = 7;
pub(super) const DESTINATION_INACTIVE: u16 = 8;
pub(super) const DESTINATION_STATISTICS: u16 = 10;
pub(super) const DESTINATION_FAMILY: u16 = 11;
pub(super) const DESTINATION_STATISTICS_64: u16 = 12;

// IPVS_STATS_ATTR_*.
pub(super) const STATISTICS_CONNECTIONS: u16 = 1;
pub(super) const STATISTICS_PACKETS_IN: u16 = 2;
pub(super) const STATISTICS_PACKETS_OUT: u16 = 3;
pub(super) const STATISTICS_BYTES_IN: u16 = 4;
pub(super) const STATISTICS_BYTES_OUT: u16 = 5;

// IP_VS_SVC_F_*.
pub(super) const FLAG_PERSISTENT: u32 = 0x01;
pub(super) const FLAG_SCHEDULER_1: u32 = 0x08;
pub(super) const FLAG_SCHEDULER_2: u32 = 0x10;
pub(super) const FLAG_SCHEDULER_3: u32 = 0x20;

/// `IP_VS_CONN_F_MASQ`: NAT.
pub(super) const MASQUERADE: u32 = 0;

/// The address family, as attributes have it.
pub(super) fn family(address: &IpAddr) -> u16 {
    // Both numbers are small and positive.
    match address {
        IpAddr::V4(_) => libc::AF_INET as u16,
        IpAddr::V6(_) => libc::AF_INET6 as u16,
    }
}
