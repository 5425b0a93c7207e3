//! Frames as only a hostile machine would send them: the client puts them on the wire as they are, perhaps in
//! the name of a node. Depends on `agent` and `wait`.

use std::{net::Ipv4Addr, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{Lab, agent::metric_sum, wait::wait_until};
use crate::{command::run_with_input, paths};

/// The mesh's UDP port.
const GENEVE_PORT: u16 = 6081;

/// What a node makes of a packet whose inside is empty.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// It is dropped before it is looked into.
    WithoutKey,
    /// It is dropped for what is in it.
    WithKey,
}

/// The destination and the source of frames.
#[derive(Debug)]
pub struct Route {
    to_mac: [u8; 6],
    from_mac: [u8; 6],
    to: [u8; 4],
    from: [u8; 4],
}

impl Lab {
    /// Sends a packet to a node in the name of another one, perhaps with a key.
    ///
    /// # Errors
    /// When the node has no backend to name, or does not drop the packet.
    pub fn send_as_peer(&self, node: &str, peer: &str, key: Option<[u8; 8]>) -> Result<Received> {
        let dump = self.meshctl(node, &["datapath", "dump", "--format", "json"])?;
        let answer: serde_json::Value = serde_json::from_str(&dump).context("the dump is not JSON")?;
        let dump = &answer["dump"];
        let network = dump["settings"]["vni"].as_u64().context("the dump has no VNI")?;
        let backend = dump["backends"][0]["address"]
            .as_str()
            .context("the dump has no backend")?
            .parse::<Ipv4Addr>()?;
        let mut route = Route::to(self, node)?;
        route.from = self.octets(peer)?;
        let [_, vni @ ..] = u32::try_from(network)?.to_be_bytes();
        // Geneve as of mesh_ebpf::headers: one option, whose type is a forwarded packet; its length is in
        // units of 4 bytes.
        let (length, key) = match &key {
            Some(key) => (4, key.as_slice()),
            None => (2, [].as_slice()),
        };
        let body = [
            [length + 1, 0x40, 0x08, 0x00].as_slice(),
            &vni,
            &[0, 0xff, 0x5a, 0x81, length],
            &backend.octets(),
            &[0, 80, 0, 0],
            key,
            &[0; 40],
        ]
        .concat();
        let counted = || -> Result<(f64, f64)> {
            let no_key = self.drops(node, &["reason=\"no_key\""])?;
            Ok((no_key, self.drops(node, &[])? - no_key))
        };
        let before = counted()?;
        self.inject(&[route.geneve(&body)])?;
        let mut after = before;
        wait_until("the packet to be dropped", Duration::from_secs(5), || {
            after = counted()?;
            ensure!(after != before, "the drops are still {after:?}");
            Ok(())
        })?;
        Ok(if after.0 > before.0 {
            Received::WithoutKey
        } else {
            Received::WithKey
        })
    }

    /// Sends frames from the client as they are.
    ///
    /// # Errors
    /// When not all of them could be sent.
    pub fn inject(&self, frames: &[Vec<u8>]) -> Result<()> {
        let lines: String = frames.iter().map(|frame| hexadecimal(frame) + "\n").collect();
        let program = paths::program("mesh-testbed");
        let program = program
            .to_str()
            .context("the target folder's path is not UTF-8")?;
        let sent = run_with_input(
            &mut self.command("client", [program, "inject"])?,
            lines.as_bytes(),
        )?;
        ensure!(
            sent == frames.len().to_string(),
            "{sent} frames were sent of {}",
            frames.len()
        );
        Ok(())
    }

    /// Sends SYNs to a node's port from random addresses, at most so many a second; returns how many.
    ///
    /// # Errors
    /// When it cannot send.
    pub fn flood(&self, node: &str, port: u16, rate: u32, seconds: u32) -> Result<u64> {
        let mac: Vec<String> = self.mac(node)?.iter().map(|byte| format!("{byte:02x}")).collect();
        let target = format!("{}:{port}", self.address(node)?);
        let (rate, seconds) = (rate.to_string(), seconds.to_string());
        let arguments = [
            "flood",
            &target,
            "--to-mac",
            &mac.join(":"),
            "--rate",
            &rate,
            "--seconds",
            &seconds,
        ];
        let sent = self.testbed("client", &arguments)?;
        sent.trim()
            .parse()
            .with_context(|| format!("the client printed `{sent}`"))
    }

    /// What a node's data path has dropped, for all reasons or some.
    ///
    /// # Errors
    /// When its metrics cannot be read.
    pub fn drops(&self, node: &str, labels: &[&str]) -> Result<f64> {
        Ok(metric_sum(&self.metrics(node)?, "mesh_drops_total", labels))
    }

    fn octets(&self, name: &str) -> Result<[u8; 4]> {
        let address: Ipv4Addr = self.address(name)?.parse().context("no address")?;
        Ok(address.octets())
    }

    fn mac(&self, name: &str) -> Result<[u8; 6]> {
        let script = "ip -oneline link show eth0 | sed 's/.*ether //; s/ .*//'";
        let text = self.run(name, ["sh", "-c", script])?;
        let bytes: Vec<u8> = text
            .trim()
            .split(':')
            .map(|byte| u8::from_str_radix(byte, 16))
            .collect::<Result<_, _>>()?;
        bytes
            .try_into()
            .map_err(|_| anyhow::anyhow!("`{text}` is no MAC address"))
    }
}

impl Route {
    /// From the client to a node.
    ///
    /// # Errors
    /// When their addresses cannot be read.
    pub fn to(lab: &Lab, node: &str) -> Result<Self> {
        Ok(Self {
            to_mac: lab.mac(node)?,
            from_mac: lab.mac("client")?,
            to: lab.octets(node)?,
            from: lab.octets("client")?,
        })
    }

    /// A frame with this IP packet.
    #[must_use]
    pub fn frame(&self, ip: &[u8]) -> Vec<u8> {
        [self.to_mac.as_slice(), &self.from_mac, &[0x08, 0x00], ip].concat()
    }

    /// An IPv4 header with a correct checksum; `total` is the length it claims.
    #[must_use]
    pub fn ip(&self, protocol: u8, fragment: u16, options: &[u8], total: u16) -> Vec<u8> {
        let length = 5 + options.len() / 4;
        let mut header = vec![0x40 | length as u8, 0];
        header.extend(total.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, protocol, 0, 0]);
        header.extend(self.from);
        header.extend(self.to);
        header.extend(options);
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    /// A packet to the mesh's UDP port.
    #[must_use]
    pub fn geneve(&self, body: &[u8]) -> Vec<u8> {
        let length = 8 + body.len() as u16;
        let (ip, udp) = (self.ip(17, 0, &[], 20 + length), udp(GENEVE_PORT, length));
        self.frame(&[ip.as_slice(), &udp, body].concat())
    }
}

/// A UDP header without a checksum; `length` is the length it claims.
#[must_use]
pub fn udp(port: u16, length: u16) -> Vec<u8> {
    [40_001, port, length, 0].map(u16::to_be_bytes).concat()
}

fn checksum(header: &[u8]) -> u16 {
    let sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1]))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
