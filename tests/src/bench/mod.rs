//! What load balancers are measured with: a minimal server and a closed-loop client, with messages of 16
//! bytes. Depends on nothing else here, so that mostly the path between them is measured.

pub mod client;
pub mod server;

/// Bytes of a message, and of the answer to it.
pub const MESSAGE: usize = 16;

/// A client's request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// One message.
    Answer,
    /// This many bytes.
    Send(u64),
    /// One message after this many more bytes.
    Receive(u64),
}

impl Ask {
    /// Its encoding: kind and count, big-endian.
    #[must_use]
    pub fn to_bytes(self) -> [u8; MESSAGE] {
        let (kind, count) = match self {
            Self::Answer => (0u64, 0),
            Self::Send(count) => (1, count),
            Self::Receive(count) => (2, count),
        };
        let mut bytes = [0; MESSAGE];
        bytes[..8].copy_from_slice(&kind.to_be_bytes());
        bytes[8..].copy_from_slice(&count.to_be_bytes());
        bytes
    }

    /// Reads it; `None` if this client does not send such a message.
    #[must_use]
    pub fn from_bytes(bytes: [u8; MESSAGE]) -> Option<Self> {
        let (kind, count) = bytes.split_first_chunk::<8>()?;
        let count = u64::from_be_bytes(count.try_into().ok()?);
        match u64::from_be_bytes(*kind) {
            0 => Some(Self::Answer),
            1 => Some(Self::Send(count)),
            2 => Some(Self::Receive(count)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use tokio::net::TcpListener;

    use super::*;
    use crate::bench::client::{Load, Measure};

    #[test]
    fn requests_survive_encoding() {
        for ask in [Ask::Answer, Ask::Send(7), Ask::Receive(u64::MAX)] {
            assert_eq!(Ask::from_bytes(ask.to_bytes()), Some(ask));
        }
        assert_eq!(Ask::from_bytes([9; MESSAGE]), None);
    }

    #[tokio::test]
    async fn each_measure_counts_what_was_done() -> anyhow::Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        tokio::spawn(server::serve(listener));
        for measure in [
            Measure::Connections,
            Measure::Requests,
            Measure::Upload,
            Measure::Download,
        ] {
            let load = Load {
                measure,
                target: address,
                sources: vec![Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 3)],
                concurrency: 2,
                seconds: 0.2,
            };
            let result = client::run(&load).await?;
            assert_eq!(result.errors, 0, "{measure:?}: {:?}", result.error);
            assert!(
                result.count > 0 && result.seconds >= 0.2,
                "{measure:?}: {result:?}"
            );
            if measure == Measure::Connections {
                assert!(result.median_us > 0.0 && result.p99_us >= result.median_us);
            }
        }
        Ok(())
    }

    #[tokio::test]
    async fn a_dead_target_is_counted_and_named() -> anyhow::Result<()> {
        // Nothing listens on a port that was free a moment ago.
        let address: SocketAddr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?;
        let load = Load {
            measure: Measure::Connections,
            target: address,
            sources: Vec::new(),
            concurrency: 1,
            seconds: 0.05,
        };
        let result = client::run(&load).await?;
        assert_eq!(result.count, 0);
        assert!(
            result.errors > 0 && result.error.contains("refused"),
            "{result:?}"
        );
        Ok(())
    }
}
