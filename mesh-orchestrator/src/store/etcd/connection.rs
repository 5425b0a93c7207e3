//! Calling an etcd cluster: its members one after another until one answers, and what a failure means for the
//! request. Depends on etcd-client and on the store's errors.

use std::{
    error::Error as _,
    fmt, fs,
    path::{Path, PathBuf},
    sync::{
        PoisonError, RwLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, ConnectError, Status};
use zeroize::Zeroizing;

use crate::store::{Revision, StoreError};

/// How long a member may take to be connected to before the next one is tried.
const CONNECT: Duration = Duration::from_secs(1);

/// How often an idle connection is probed, and how long the answer may take: a member that is cut off is
/// dropped after the sum.
const PROBE: Duration = Duration::from_secs(2);

/// The pause before the members are tried again, when none answered.
const PAUSE: Duration = Duration::from_millis(50);

/// The largest accepted answer, in bytes: small enough to arrive within the time of a call.
pub(super) const MAX_ANSWER_BYTES: usize = 8 << 20;

/// How to connect to the cluster.
#[derive(Clone, Debug)]
pub struct EtcdConfig {
    /// The members' client URLs: `https://10.0.0.1:2379`.
    pub endpoints: Vec<String>,
    /// Our certificate and authorities; `None` only if the cluster has no TLS.
    pub tls: Option<EtcdTls>,
    /// The prefix of all our keys in etcd, different for each cluster of ours. Starts with a slash and does
    /// not end with one.
    pub root: String,
    /// How long one operation may take, over all members.
    pub timeout: Duration,
}

impl EtcdConfig {
    /// For these members, with defaults otherwise: root `/mesh`, 5 s.
    #[must_use]
    pub fn new(endpoints: Vec<String>, tls: Option<EtcdTls>) -> Self {
        Self {
            endpoints,
            tls,
            root: "/mesh".to_owned(),
            timeout: Duration::from_secs(5),
        }
    }
}

/// TLS with a client certificate; all PEM.
#[derive(Clone)]
pub struct EtcdTls {
    /// The authorities that sign the members' certificates.
    pub authority: Vec<u8>,
    /// Our certificate, with its chain.
    pub certificate: Vec<u8>,
    /// Its key.
    pub key: Zeroizing<Vec<u8>>,
}

/// A file of the TLS configuration that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("could not read {path} for TLS to etcd; it must exist and be readable by the agent's user")]
pub struct EtcdTlsFile {
    path: PathBuf,
    source: std::io::Error,
}

impl EtcdTls {
    /// Reads the three files.
    ///
    /// # Errors
    /// When one cannot be read. Their content is checked when the store is opened.
    pub fn from_files(authority: &Path, certificate: &Path, key: &Path) -> Result<Self, EtcdTlsFile> {
        let read = |path: &Path| {
            fs::read(path).map_err(|source| EtcdTlsFile {
                path: path.to_owned(),
                source,
            })
        };
        Ok(Self {
            authority: read(authority)?,
            certificate: read(certificate)?,
            key: Zeroizing::new(read(key)?),
        })
    }
}

impl fmt::Debug for EtcdTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EtcdTls").finish_non_exhaustive()
    }
}

/// Whether a call changes something, so that it must not be repeated when its outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    Write,
}

/// What a failure means for the request.
enum Verdict {
    /// Not executed; another member may execute it.
    NotDone,
    /// It may have been executed, or may still be.
    Doubt,
    /// Not executed, and another member would refuse it, too.
    Refused(&'static str),
    /// The requested revision was compacted.
    Compacted,
}

/// One client for each member. A call goes to the member that answered last.
pub(super) struct Connection {
    members: RwLock<Vec<Client>>,
    preferred: AtomicUsize,
    timeout: Duration,
    name: String,
    config: EtcdConfig,
}

impl Connection {
    pub(super) async fn new(config: &EtcdConfig) -> Result<Self, StoreError> {
        let name = config.endpoints.join(",");
        let members = connect(config, &name).await?;
        Ok(Self {
            members: RwLock::new(members),
            preferred: AtomicUsize::new(0),
            timeout: config.timeout,
            name,
            // The key is not kept.
            config: EtcdConfig {
                tls: None,
                ..config.clone()
            },
        })
    }

    /// Uses other certificates for new calls; those under way go on with the ones before.
    pub(super) async fn renew(&self, tls: EtcdTls) -> Result<(), StoreError> {
        let config = EtcdConfig {
            tls: Some(tls),
            ..self.config.clone()
        };
        let members = connect(&config, &self.name).await?;
        *self.members.write().unwrap_or_else(PoisonError::into_inner) = members;
        Ok(())
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The member to call, and its number for [`Self::avoid`].
    pub(super) fn member(&self) -> (usize, Client) {
        let members = self.members.read().unwrap_or_else(PoisonError::into_inner);
        let number = self.preferred.load(Ordering::Relaxed) % members.len();
        (number, members[number].clone())
    }

    /// Directs later calls to the next member, unless another call has done so.
    pub(super) fn avoid(&self, number: usize) {
        let next = (number + 1) % self.config.endpoints.len();
        let _ = self
            .preferred
            .compare_exchange(number, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Calls one member after another until one answers, or the time is up.
    pub(super) async fn call<T, F>(
        &self,
        operation: &'static str,
        call: Call,
        work: impl Fn(Client) -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let end = Instant::now() + self.timeout;
        let mut failures = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let patience = match call {
                // Leaves time for another member.
                Call::Read => left.min(self.timeout / 2),
                Call::Write => left,
            };
            let (number, client) = self.member();
            let (verdict, error) = match timeout(patience, work(client)).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => (judge(&error), error),
                Err(_) => (
                    Verdict::Doubt,
                    Error::GRpcStatus(Status::deadline_exceeded("no answer in time")),
                ),
            };
            self.avoid(number);
            match verdict {
                Verdict::Doubt if call == Call::Write => {
                    return Err(StoreError::OutcomeUnknown {
                        store: self.name.clone(),
                        source: Box::new(error),
                    });
                }
                Verdict::Refused(advice) => return Err(self.unavailable(operation, advice, error)),
                // The caller fills in the revisions.
                Verdict::Compacted => {
                    return Err(StoreError::Compacted {
                        requested: Revision(0),
                        oldest: Revision(0),
                    });
                }
                Verdict::NotDone | Verdict::Doubt => {}
            }
            failures += 1;
            if failures % self.config.endpoints.len() == 0 {
                sleep(PAUSE).await;
            }
            if Instant::now() >= end {
                return Err(self.unavailable(
                    operation,
                    "a majority of its members must run and be reached, with the right certificates",
                    error,
                ));
            }
        }
    }

    pub(super) fn unavailable(
        &self,
        operation: &'static str,
        advice: &'static str,
        source: impl Into<crate::store::Source>,
    ) -> StoreError {
        StoreError::Unavailable {
            operation,
            store: self.name.clone(),
            advice,
            source: source.into(),
        }
    }
}

/// A client for each member, which connects on first use.
async fn connect(config: &EtcdConfig, name: &str) -> Result<Vec<Client>, StoreError> {
    let invalid = |source: Error| StoreError::Unavailable {
        operation: "use the configuration",
        store: name.to_owned(),
        advice: "check the endpoints' URLs and the certificates",
        source: Box::new(source),
    };
    if config.endpoints.is_empty() {
        return Err(invalid(Error::InvalidArgs("there are no endpoints".to_owned())));
    }
    let mut options = ConnectOptions::new()
        .with_connect_timeout(CONNECT)
        .with_keep_alive(PROBE, PROBE)
        .with_keep_alive_while_idle(true)
        // A member without a leader refuses immediately and ends its watches, rather than blocking us.
        .with_require_leader(true);
    if let Some(tls) = &config.tls {
        options = options.with_tls(
            TlsOptions::new()
                .ca_certificate(Certificate::from_pem(&tls.authority))
                .identity(Identity::from_pem(&tls.certificate, tls.key.as_slice())),
        );
    }
    let mut members = Vec::new();
    for endpoint in &config.endpoints {
        let client = Client::connect([endpoint], Some(options.clone()))
            .await
            .map_err(invalid)?;
        members.push(client);
    }
    Ok(members)
}

impl fmt::Debug for Connection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connection")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Whether this side refused an answer because it is too large.
pub(super) fn is_too_large(error: &StoreError) -> bool {
    let StoreError::Unavailable { source, .. } = error else {
        return false;
    };
    // etcd itself uses this code for revisions.
    matches!(
        source.downcast_ref(),
        Some(Error::GRpcStatus(status))
            if status.code() == Code::OutOfRange && !status.message().contains("revision")
    )
}

fn judge(error: &Error) -> Verdict {
    let status = match error {
        Error::GRpcStatus(status) => status,
        Error::TransportError(_) | Error::IoError(_) => return Verdict::Doubt,
        _ => return Verdict::Refused("check the endpoints' URLs and the certificates"),
    };
    if was_not_sent(status) {
        return Verdict::NotDone;
    }
    let mentions = |text: &str| status.message().contains(text);
    match status.code() {
        Code::OutOfRange if mentions("compacted") => Verdict::Compacted,
        Code::OutOfRange if mentions("future revision") => {
            Verdict::Refused("the revision is ahead of etcd's: it is another cluster, or was restored")
        }
        Code::OutOfRange => Verdict::Refused("an answer is too large"),
        // The member checks this before it does anything.
        Code::Unavailable if mentions("no leader") => Verdict::NotDone,
        Code::ResourceExhausted if mentions("database space exceeded") => Verdict::Refused(
            "etcd's space quota is used up: compact and defragment it, then disarm its alarm (etcdctl alarm disarm)",
        ),
        Code::ResourceExhausted if mentions("too many requests") => Verdict::NotDone,
        Code::InvalidArgument => Verdict::Refused(
            "etcd's limits (--max-txn-ops, --max-request-bytes) must not be below its defaults",
        ),
        Code::PermissionDenied | Code::Unauthenticated => {
            Verdict::Refused("etcd must grant our certificate's user reading and writing below our root")
        }
        Code::NotFound => Verdict::Refused("the lease has ended"),
        _ => Verdict::Doubt,
    }
}

/// Whether the call failed before it was sent, because there was no connection.
fn was_not_sent(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(code: Code, message: &str) -> Verdict {
        judge(&Error::GRpcStatus(Status::new(code, message)))
    }

    #[test]
    fn only_calls_known_not_to_be_executed_are_repeated() {
        assert!(matches!(
            verdict(Code::Unavailable, "etcdserver: no leader"),
            Verdict::NotDone
        ));
        for doubtful in [
            "etcdserver: request timed out",
            "etcdserver: leader changed",
            "connection reset",
        ] {
            assert!(
                matches!(verdict(Code::Unavailable, doubtful), Verdict::Doubt),
                "{doubtful}"
            );
        }
        assert!(matches!(verdict(Code::Unknown, ""), Verdict::Doubt));
        assert!(matches!(verdict(Code::DeadlineExceeded, ""), Verdict::Doubt));
    }

    #[test]
    fn a_used_up_quota_is_refused_with_advice() {
        assert!(matches!(
            verdict(Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            Verdict::Refused(advice) if advice.contains("alarm disarm")
        ));
    }

    #[test]
    fn a_key_never_shows_in_debug_output() {
        let tls = EtcdTls {
            authority: b"authority".to_vec(),
            certificate: b"certificate".to_vec(),
            key: Zeroizing::new(b"private".to_vec()),
        };
        let config = EtcdConfig::new(vec!["https://127.0.0.1:1".to_owned()], Some(tls));
        assert!(!format!("{config:?}").contains("private"));
        assert!(!format!("{config:?}").contains(&format!("{:?}", b"private")));
    }
}
