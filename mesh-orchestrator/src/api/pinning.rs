//! Replaces the tags of new images by their digests. Imports `call` and `images`.

use std::sync::Arc;

use super::{
    call::Call,
    error::ApiError,
    images::{resolve, tagged},
};
use crate::spec::ServiceSpec;

/// Pins the image of a new specification to the digest that its tag refers to now, as Docker does; one
/// that is `current`ly used stays as it is, unless the caller asks for it. Returns a warning if the
/// registry does not say: then the tag keeps the digest that the service has, if it has one, and
/// otherwise each node asks the registry.
pub(super) async fn pin(
    call: &Call,
    spec: &mut ServiceSpec,
    current: Option<&ServiceSpec>,
) -> Result<Vec<String>, ApiError> {
    let image = spec.task_template.container_spec.image.clone();
    let used = current.map(|current| current.task_template.container_spec.image.as_str());
    let wanted = match call.argument(RESOLVE) {
        None => used != Some(&image),
        Some(_) => call.switch(RESOLVE)?,
    };
    if !wanted || image.contains('@') {
        return Ok(Vec::new());
    }
    let mut warnings = Vec::new();
    let pinned = match (resolve(call.api.images(), &image).await, used) {
        (Ok(pinned), _) => pinned,
        (Err(why), Some(used)) if tagged(used) == Some(&image) => {
            warnings.push(format!("image {image} stays on the digest that it had: {why}"));
            used.to_owned()
        }
        (Err(why), _) => {
            warnings.push(format!(
                "image {image} could not be accessed on a registry to record its digest ({why}): each node accesses it \
                 independently, so nodes may run different images"
            ));
            return Ok(warnings);
        }
    };
    Arc::make_mut(&mut spec.task_template).container_spec.image = pinned;
    Ok(warnings)
}

/// The query argument that says whether an image's tag is resolved.
pub(super) const RESOLVE: &str = "resolve_image";
