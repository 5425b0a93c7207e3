//! Resolves the tags of images, so that all tasks of a service run the same one. The agent, which can query
//! registries, implements the trait.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use mesh_support::error_chain;
use tokio::time::timeout;

use crate::store::Source;

/// How long to wait for a registry. If it does not answer in time, the tag is used without a digest.
const REGISTRY: Duration = Duration::from_secs(10);

/// Why a tag could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("could not resolve the image {image}")]
pub struct ResolveError {
    /// The image reference.
    pub image: String,
    /// Why.
    pub source: Source,
}

/// Why a login was not accepted.
#[derive(Debug, thiserror::Error)]
#[error("the registry {registry} did not accept the login, so that nothing was stored")]
pub struct LoginError {
    /// The registry's address.
    pub registry: String,
    /// Why.
    pub source: Source,
}

/// Queries registries, with the credentials that are stored for them.
#[async_trait]
pub trait ImageResolver: fmt::Debug + Send + Sync + 'static {
    /// The digest (`sha256:…`) that an image reference with a tag currently refers to.
    ///
    /// # Errors
    /// If the registry does not answer, does not know the image, or refuses access.
    async fn digest(&self, image: &str) -> Result<String, ResolveError>;

    /// Logs in to a registry, to see whether it accepts these credentials.
    ///
    /// # Errors
    /// If it refuses them, or does not answer.
    async fn log_in(&self, registry: &str, username: &str, password: &str) -> Result<(), LoginError>;
}

/// The image with the digest that its tag refers to now, or why that is not known.
pub(super) async fn resolve(images: &dyn ImageResolver, tagged: &str) -> Result<String, String> {
    match timeout(REGISTRY, images.digest(tagged)).await {
        Ok(Ok(digest)) if is_digest(&digest) => Ok(format!("{tagged}@{digest}")),
        Ok(Ok(other)) => Err(format!("the registry answered {other:?}, which is not a digest")),
        Ok(Err(error)) => Err(error_chain(&error)),
        Err(_) => Err(format!(
            "the registry did not answer within {} s",
            REGISTRY.as_secs()
        )),
    }
}

/// An image reference without its digest; `None` if it has a digest but no tag that could be resolved again.
pub(super) fn tagged(image: &str) -> Option<&str> {
    let Some((tagged, _)) = image.split_once('@') else {
        return Some(image);
    };
    let name = tagged.rsplit('/').next().unwrap_or(tagged);
    name.contains(':').then_some(tagged)
}

/// Whether a text is the digest of an image.
pub(super) fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:").is_some_and(|digits| {
        digits.len() == 64
            && digits
                .chars()
                .all(|digit| digit.is_ascii_digit() || ('a'..='f').contains(&digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reference_with_a_tag_can_be_resolved_again() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        assert!(is_digest(&digest) && !is_digest("sha256:0a") && !is_digest("latest"));
        for (image, expected) in [
            ("web:1".to_owned(), Some("web:1")),
            (format!("web:1@{digest}"), Some("web:1")),
            (format!("web@{digest}"), None),
            (format!("localhost:5000/web@{digest}"), None),
            (
                format!("localhost:5000/web:2@{digest}"),
                Some("localhost:5000/web:2"),
            ),
        ] {
            assert_eq!(tagged(&image), expected, "{image}");
        }
    }
}
