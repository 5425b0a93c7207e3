//! The server that load balancers are measured with. Depends only on the message in its folder.

use std::{io, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{Ask, MESSAGE};

/// Bulk data is sent and received in pieces of this size.
const PIECE: usize = 128 * 1024;

/// Pause after a failed `accept`: memory or descriptors are short.
const PAUSE: Duration = Duration::from_millis(10);

/// Listens with a backlog long enough for bursts of new connections.
///
/// # Errors
/// When the port is taken.
pub fn listen(port: u16) -> Result<TcpListener> {
    let socket = tokio::net::TcpSocket::new_v4().context("no socket")?;
    socket.set_reuseaddr(true).context("could not share the port")?;
    socket
        .bind(([0, 0, 0, 0], port).into())
        .with_context(|| format!("could not bind TCP port {port}"))?;
    socket
        .listen(4096)
        .with_context(|| format!("could not listen on TCP port {port}"))
}

/// Serves; never returns.
pub async fn serve(listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Errors are the client's: it has closed the connection.
                tokio::spawn(async move { answer(stream).await.ok() });
            }
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut message = [0; MESSAGE];
    let mut buffer = Vec::new();
    loop {
        if stream.read_exact(&mut message).await.is_err() {
            // The connection has ended.
            return Ok(());
        }
        match Ask::from_bytes(message) {
            Some(Ask::Answer) => stream.write_all(&message).await?,
            Some(Ask::Send(mut count)) => {
                buffer.resize(PIECE, 0);
                while count > 0 {
                    let piece = count.min(PIECE as u64);
                    stream.write_all(&buffer[..piece as usize]).await?;
                    count -= piece;
                }
            }
            Some(Ask::Receive(mut count)) => {
                buffer.resize(PIECE, 0);
                while count > 0 {
                    let room = count.min(PIECE as u64) as usize;
                    match stream.read(&mut buffer[..room]).await? {
                        0 => return Ok(()),
                        read => count -= read as u64,
                    }
                }
                stream.write_all(&message).await?;
            }
            None => return Ok(()),
        }
    }
}
