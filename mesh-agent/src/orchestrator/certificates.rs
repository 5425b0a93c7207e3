//! TLS configurations that follow their files: what renews certificates writes new files, and the agent
//! need not be restarted. Imports `tls`.

use std::{
    error::Error,
    fmt, fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use mesh_support::error_chain;
use tokio::time::sleep;
use tracing::{info, warn};

use super::tls::{Credentials, TlsError};

/// How often the files are looked at.
const CHECK: Duration = Duration::from_secs(10);

/// PEM files of a certificate.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// The authorities to trust; without them, none.
    pub(super) authority: Option<PathBuf>,
    /// The authorities of workers, on a manager that serves some.
    pub(super) workers: Option<PathBuf>,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

/// What shows that a file is another one: its time, size and inode.
type Stamp = Vec<Option<(Option<SystemTime>, u64, u64)>>;

impl Files {
    /// Reads them.
    pub(super) fn load(&self) -> Result<Credentials, TlsError> {
        Credentials::load(
            self.authority.as_deref(),
            self.workers.as_deref(),
            &self.certificate,
            &self.key,
        )
    }

    fn stamp(&self) -> Stamp {
        let stamp = |path: &PathBuf| {
            let found = fs::metadata(path).ok()?;
            Some((found.modified().ok(), found.len(), found.ino()))
        };
        [&self.certificate, &self.key]
            .into_iter()
            .chain(&self.authority)
            .chain(&self.workers)
            .map(stamp)
            .collect()
    }
}

/// Makes a value of what was read.
type Make<T> = fn(&Credentials) -> Result<Arc<T>, TlsError>;

/// Whether changed files are in use now.
pub(super) type Applied = BoxFuture<'static, Result<(), Box<dyn Error + Send + Sync>>>;

/// The newest value that was made of some files.
pub(super) struct Followed<T>(Arc<ArcSwap<T>>);

impl<T> fmt::Debug for Followed<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Followed").finish_non_exhaustive()
    }
}

impl<T> Clone for Followed<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: Send + Sync + 'static> Followed<T> {
    /// Makes a value of the files, and another one whenever they change. Files that cannot be used are
    /// logged, and the last value stays. Call it inside a tokio runtime.
    pub(super) fn start(files: Files, make: Make<T>) -> Result<Self, TlsError> {
        Self::start_checking(files, CHECK, make)
    }

    fn start_checking(files: Files, every: Duration, make: Make<T>) -> Result<Self, TlsError> {
        let seen = files.stamp();
        let value = Arc::new(ArcSwap::new(make(&files.load()?)?));
        let newest = Arc::downgrade(&value);
        let apply = move |files: Files| -> Applied {
            let newest = newest.clone();
            Box::pin(async move {
                if let Some(newest) = newest.upgrade() {
                    newest.store(make(&files.load()?)?);
                }
                Ok(())
            })
        };
        tokio::spawn(follow(files, seen, every, apply));
        Ok(Self(value))
    }

    /// The newest value.
    pub(super) fn current(&self) -> Arc<T> {
        self.0.load_full()
    }
}

/// Applies the files whenever they change.
pub(super) fn follow_files(files: Files, apply: impl Fn(Files) -> Applied + Send + 'static) {
    let seen = files.stamp();
    tokio::spawn(follow(files, seen, CHECK, apply));
}

async fn follow(files: Files, mut seen: Stamp, every: Duration, apply: impl Fn(Files) -> Applied) {
    let mut failed: Option<Stamp> = None;
    loop {
        sleep(every).await;
        let stamp = files.stamp();
        if stamp == seen {
            continue;
        }
        let certificate = files.certificate.display();
        // Certificate and key may be replaced one after the other: tried again each time.
        match apply(files.clone()).await {
            Ok(()) => {
                info!(%certificate, "read the changed certificate");
                seen = stamp;
                failed = None;
            }
            Err(error) if failed.as_ref() != Some(&stamp) => {
                warn!(
                    %certificate,
                    error = error_chain(error.as_ref()),
                    "the changed certificate cannot be used; the one before stays in use"
                );
                failed = Some(stamp);
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        net::TcpStream,
        time::{Instant, timeout},
    };
    use tokio_rustls::TlsConnector;

    use super::{
        super::listener::{API, TlsListener},
        *,
    };

    const QUICK: Duration = Duration::from_millis(20);
    const LIMIT: Duration = Duration::from_secs(10);

    fn write(files: &Files, name: &str) {
        let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
        fs::write(&files.key, made.signing_key.serialize_pem()).unwrap();
        fs::write(&files.certificate, made.cert.pem()).unwrap();
    }

    #[tokio::test]
    async fn a_renewed_certificate_is_served_without_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files {
            authority: None,
            workers: None,
            certificate: folder.path().join("certificate.pem"),
            key: folder.path().join("key.pem"),
        };
        write(&files, "one");
        let config =
            Followed::start_checking(files.clone(), QUICK, |credentials| credentials.server(false)).unwrap();
        let listener = TlsListener::bind("127.0.0.1:0".parse().unwrap(), config)
            .await
            .unwrap();
        let address = listener.address();
        tokio::spawn(listener.serve(API, axum::Router::new()));
        let connector = {
            // The client accepts whatever is shown: the name shows which certificate it is.
            let trusting = Files {
                authority: Some(files.certificate.clone()),
                ..files.clone()
            };
            move || TlsConnector::from(Arc::clone(&trusting.load().unwrap().client().unwrap().config))
        };
        let shown = async || {
            let stream = TcpStream::connect(address).await.unwrap();
            let name = rustls_pki_types::ServerName::try_from("any").unwrap();
            let stream = connector().connect(name, stream).await.ok()?;
            Some(stream.get_ref().1.peer_certificates()?.to_vec())
        };
        let first = shown().await.unwrap();
        // A key that does not match changes nothing.
        fs::write(&files.key, "no key").unwrap();
        sleep(QUICK * 5).await;
        write(&files, "other");
        let changed = async {
            loop {
                // The new one is trusted once it is shown.
                if let Some(second) = shown().await
                    && second != first
                {
                    return;
                }
                sleep(QUICK).await;
            }
        };
        let begun = Instant::now();
        assert!(
            timeout(LIMIT, changed).await.is_ok(),
            "after {:?}",
            begun.elapsed()
        );
    }
}
