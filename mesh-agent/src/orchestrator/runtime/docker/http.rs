//! Requests that the client library cannot make: pulls and digests, whose credentials it encodes in an
//! alphabet that engines misread, and archives.

use std::{io, time::Duration};

use futures_util::StreamExt;
use mesh_orchestrator::spec::duration;
use serde::Deserialize;
use tokio::time::timeout;

use super::{DockerRuntime, refused};
use crate::{
    docker::{DockerError, refusal_message},
    orchestrator::runtime::{ArchiveStream, ImageReference, RegistryCredential, RuntimeError},
};

/// How long the engine or a registry may send nothing.
const PULL_SILENCE: Duration = Duration::from_secs(120);
/// See [`DockerRuntime`].
pub(super) const PULL_PATIENCE: Duration = Duration::from_secs(5);
/// The longest line of a pull's progress.
const MAX_PROGRESS_BYTES: usize = 1 << 20;

impl DockerRuntime {
    /// Pulls an image from its registry. If an image of that name `is_here`, a silent registry is soon
    /// given up.
    pub(super) async fn pull_from_registry(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
        is_here: bool,
    ) -> Result<(), RuntimeError> {
        let reference = ImageReference::parse(image);
        let connection = self.connection().await?;
        let mut request = connection
            .post("/images/create")
            .query(&[("fromImage", reference.name), ("tag", reference.version)]);
        if let Some(credential) = credential {
            request = request.header("X-Registry-Auth", credential.header(reference.registry()));
        }
        let unavailable = |source| {
            self.docker.reset();
            RuntimeError::Unavailable(DockerError::Get {
                path: "/images/create".to_owned(),
                source,
            })
        };
        let silent = |_| refused("pull", image, "the registry sent nothing for two minutes");
        let unanswered = |_| {
            let limit = duration::format(self.patience);
            refused(
                "pull",
                image,
                &format!("the registry did not answer within {limit}"),
            )
        };
        // The engine answers once it has found the image in the registry.
        let response = match is_here {
            true => timeout(self.patience, request.send()).await.map_err(unanswered)?,
            false => timeout(PULL_SILENCE, request.send()).await.map_err(silent)?,
        };
        let mut response = response.map_err(unavailable)?;
        let accepted = response.status().is_success();
        let mut progress = Vec::new();
        while let Some(chunk) = timeout(PULL_SILENCE, response.chunk())
            .await
            .map_err(silent)?
            .map_err(unavailable)?
        {
            progress.extend_from_slice(&chunk);
            let read = progress
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |end| end + 1);
            for line in progress[..read].split(|byte| *byte == b'\n') {
                if let Some(error) = refusal_message(line) {
                    return Err(refused("pull", image, &error));
                }
            }
            progress.drain(..read);
            if progress.len() > MAX_PROGRESS_BYTES {
                return Err(refused("pull", image, "unexpected answer from Docker"));
            }
        }
        match refusal_message(&progress) {
            Some(error) => Err(refused("pull", image, &error)),
            None if !accepted => Err(refused("pull", image, "Docker gave no reason")),
            None => Ok(()),
        }
    }

    pub(super) async fn look_up_digest(
        &self,
        image: &str,
        credential: Option<&RegistryCredential>,
    ) -> Result<String, RuntimeError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Distribution {
            descriptor: Descriptor,
        }
        #[derive(Deserialize)]
        struct Descriptor {
            digest: String,
        }
        let reference = ImageReference::parse(image);
        let connection = self.connection().await?;
        let name = match reference.is_pinned() {
            true => format!("{}@{}", reference.name, reference.version),
            false => format!("{}:{}", reference.name, reference.version),
        };
        let mut request = connection.get(&format!("/distribution/{name}/json"));
        if let Some(credential) = credential {
            request = request.header("X-Registry-Auth", credential.header(reference.registry()));
        }
        let body = timeout(PULL_SILENCE, async { request.send().await?.bytes().await })
            .await
            .map_err(|_| refused("look up", image, "the registry sent nothing for two minutes"))?
            .map_err(|source| {
                self.docker.reset();
                RuntimeError::Unavailable(DockerError::Get {
                    path: "/distribution".to_owned(),
                    source,
                })
            })?;
        match serde_json::from_slice::<Distribution>(&body) {
            Ok(found) => Ok(found.descriptor.digest),
            Err(_) => {
                let reason = refusal_message(&body);
                let reason = reason.as_deref().unwrap_or("unexpected answer from Docker");
                Err(refused("look up", image, reason))
            }
        }
    }

    /// Has the engine log in to a registry; it keeps nothing of that.
    pub(super) async fn check_login(
        &self,
        registry: &str,
        credential: &RegistryCredential,
    ) -> Result<(), RuntimeError> {
        let connection = self.connection().await?;
        let request = connection.post("/auth").json(&credential.body(registry));
        let answer = timeout(PULL_SILENCE, async {
            let response = request.send().await?;
            Ok((response.status(), response.bytes().await?))
        });
        let (status, body) = answer
            .await
            .map_err(|_| refused("log in to", registry, "the registry sent nothing for two minutes"))?
            .map_err(|source| {
                self.docker.reset();
                RuntimeError::Unavailable(DockerError::Get {
                    path: "/auth".to_owned(),
                    source,
                })
            })?;
        if status.is_success() {
            return Ok(());
        }
        let reason = refusal_message(&body).unwrap_or_else(|| format!("Docker answered {status}"));
        Err(refused("log in to", registry, &reason))
    }

    pub(super) async fn read_archive(
        &self,
        container: &str,
        path: &str,
    ) -> Result<ArchiveStream, RuntimeError> {
        let connection = self.connection().await?;
        let request = connection
            .get(&format!("/containers/{container}/archive"))
            .query(&[("path", path)]);
        let unavailable = |source| {
            self.docker.reset();
            RuntimeError::Unavailable(DockerError::Get {
                path: "/containers/archive".to_owned(),
                source,
            })
        };
        let silent = |_| refused("copy", path, "Docker sent nothing for two minutes");
        let response = timeout(PULL_SILENCE, request.send())
            .await
            .map_err(silent)?
            .map_err(unavailable)?;
        if !response.status().is_success() {
            let status = response.status();
            let body = response.bytes().await.map_err(unavailable)?;
            let reason = refusal_message(&body).unwrap_or_else(|| format!("Docker answered {status}"));
            return Err(refused("copy", path, &reason));
        }
        let chunks = futures_util::stream::try_unfold(response, |mut response| async {
            let chunk = timeout(PULL_SILENCE, response.chunk()).await;
            let chunk = chunk.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            let chunk = chunk.map_err(io::Error::other)?;
            Ok(chunk.map(|chunk| (chunk, response)))
        });
        Ok(chunks.boxed())
    }
}
