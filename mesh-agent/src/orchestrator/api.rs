//! What the orchestrator's API needs from this node: the logs of its tasks, those of other nodes, and the
//! digests of images.

use std::{path::PathBuf, sync::Arc};

use async_trait::async_trait;
use futures_util::{StreamExt, stream, stream::BoxStream};
use mesh_orchestrator::{
    api::{
        ImageResolver, LogOptions, LoginError, Logs, LogsError, Parts, Peers, ResolveError, TaskLine,
        types::LogStream,
    },
    cluster::Cluster,
    objects::{NodeId, Task},
    secrets::Vault,
};

use super::{
    runtime::{LogQuery, RegistryCredential, Runtime, RuntimeError},
    worker::credential,
};

/// The API's dependencies.
pub(super) fn parts(
    backups: PathBuf,
    public_url: Option<String>,
    node: NodeId,
    cluster: &Cluster,
    vault: &Arc<Vault>,
    runtime: &Arc<dyn Runtime>,
    peers: Arc<dyn Peers>,
) -> Parts {
    Parts {
        cluster: cluster.clone(),
        vault: Arc::clone(vault),
        node,
        backups,
        public_url,
        logs: Arc::new(EngineLogs(Arc::clone(runtime))),
        peers,
        images: Arc::new(EngineImages {
            runtime: Arc::clone(runtime),
            vault: Arc::clone(vault),
        }),
    }
}

/// The logs of this node's containers.
#[derive(Debug)]
struct EngineLogs(Arc<dyn Runtime>);

#[async_trait]
impl Logs for EngineLogs {
    async fn lines(
        &self,
        task: &Task,
        options: &LogOptions,
    ) -> Result<BoxStream<'static, Result<TaskLine, LogsError>>, LogsError> {
        let Some(container) = task.status.container.clone() else {
            return Ok(stream::empty().boxed());
        };
        let query = LogQuery {
            follow: options.follow,
            tail: options.tail,
            since: options.since,
        };
        let runtime = Arc::clone(&self.0);
        let subject = format!("task {}", task.name());
        // The engine does not answer before the first line, but following an empty log must start at once.
        let lines = async move {
            match runtime.logs(&container, query).await {
                Ok(lines) => lines
                    .map(|line| {
                        Ok(TaskLine {
                            time: line.time,
                            stream: match line.is_error {
                                true => LogStream::Stderr,
                                false => LogStream::Stdout,
                            },
                            line: line.line,
                        })
                    })
                    .boxed(),
                Err(RuntimeError::Gone(_)) => stream::empty().boxed(),
                Err(error) => stream::once(std::future::ready(Err(LogsError {
                    subject,
                    source: Box::new(error),
                })))
                .boxed(),
            }
        };
        Ok(stream::once(lines).flatten().boxed())
    }
}

/// Resolves image tags through the engine, which implements the registries' protocol.
#[derive(Debug)]
struct EngineImages {
    runtime: Arc<dyn Runtime>,
    vault: Arc<Vault>,
}

#[async_trait]
impl ImageResolver for EngineImages {
    async fn digest(&self, image: &str) -> Result<String, ResolveError> {
        let failed = |source: mesh_orchestrator::store::Source| ResolveError {
            image: image.to_owned(),
            source,
        };
        let credential = credential(self.vault.as_ref(), image)
            .await
            .map_err(|error| failed(Box::new(error)))?;
        self.runtime
            .digest(image, credential.as_ref())
            .await
            .map_err(|error| failed(Box::new(error)))
    }

    async fn log_in(&self, registry: &str, username: &str, password: &str) -> Result<(), LoginError> {
        let credential = RegistryCredential {
            username: username.to_owned(),
            password: password.to_owned(),
        };
        let login = self.runtime.log_in(registry, &credential).await;
        login.map_err(|error| LoginError {
            registry: registry.to_owned(),
            source: Box::new(error),
        })
    }
}
