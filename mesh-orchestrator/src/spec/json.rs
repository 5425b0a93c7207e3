//! Parses specifications and other JSON that users send, with errors that name the path and the nearest known
//! field.

use serde::de::DeserializeOwned;

use super::{MAX_SPEC_BYTES, ServiceSpec, SpecError};

impl ServiceSpec {
    /// Parses and validates a specification.
    ///
    /// # Errors
    /// If it is malformed or invalid. The error names the field, its value and what is allowed.
    pub fn from_json(json: &[u8]) -> Result<Self, SpecError> {
        if json.len() > MAX_SPEC_BYTES {
            return Err(SpecError::TooLarge { size: json.len() });
        }
        read::<Self>(json, "specification")?.validated()
    }
}

/// Parses any JSON; errors about the whole document call it `whole`.
///
/// # Errors
/// If it is malformed. The error names the path, and for an unknown field the nearest known one.
pub(crate) fn read<T: DeserializeOwned>(json: &[u8], whole: &str) -> Result<T, SpecError> {
    let mut reader = serde_json::Deserializer::from_slice(json);
    let mut track = serde_path_to_error::Track::new();
    let result = T::deserialize(serde_path_to_error::Deserializer::new(&mut reader, &mut track));
    result
        .and_then(|read| reader.end().map(|()| read))
        .map_err(|error| explain(whole, &track.path().to_string(), &error.to_string()))
}

/// The known name that is most similar to a given one, if any is similar enough.
pub(crate) fn nearest<'a>(field: &str, known: impl Iterator<Item = &'a str>) -> Option<String> {
    // Docker's API uses the same names in camel case.
    let field = field.to_lowercase().replace(['_', '-'], "");
    known
        .map(|name| (strsim::damerau_levenshtein(&field, &name.replace('_', "")), name))
        .min()
        .filter(|(distance, name)| *distance <= 1 + name.len() / 3)
        .map(|(_, name)| name.into())
}

/// Serde's message for an unknown field quotes that field, then the known ones.
fn explain(whole: &str, path: &str, message: &str) -> SpecError {
    let mut quoted = message.split('`').skip(1).step_by(2);
    match (message.starts_with("unknown field"), quoted.next()) {
        (true, Some(field)) => SpecError::UnknownField {
            path: path.strip_suffix(&format!(".{field}")).unwrap_or(whole).into(),
            field: field.into(),
            nearest: nearest(field, quoted),
        },
        _ => SpecError::Malformed {
            path: if path == "." { whole } else { path }.into(),
            message: message.into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str) -> String {
        ServiceSpec::from_json(json.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn a_minimal_specification_gets_dockers_defaults() {
        let spec =
            ServiceSpec::from_json(br#"{"name":"web","task_template":{"container_spec":{"image":"nginx"}}}"#)
                .unwrap();
        assert_eq!(spec.task_template.container_spec.image, "nginx:latest");
        assert_eq!(spec.mode, crate::spec::ServiceMode::default());
        assert_eq!(spec.update_config.parallelism, 1);
        let json = serde_json::to_vec(&spec).unwrap();
        assert_eq!(ServiceSpec::from_json(&json), Ok(spec));
    }

    #[test]
    fn the_error_for_an_unknown_field_suggests_the_nearest_known_one() {
        assert_eq!(
            error(r#"{"name":"web","task_template":{"container_spec":{"imgae":"nginx"}}}"#),
            "task_template.container_spec: unknown field \"imgae\": did you mean \"image\"?"
        );
        assert_eq!(
            error(r#"{"name":"web","mode":{"replicated":{"Replicas":2}}}"#),
            "mode.replicated: unknown field \"Replicas\": did you mean \"replicas\"?"
        );
        assert_eq!(error(r#"{"xyzzy":1}"#), "specification: unknown field \"xyzzy\"");
    }

    #[test]
    fn the_error_for_a_wrong_type_names_its_path() {
        let message = error(r#"{"name":"web","mode":{"replicated":{"replicas":"two"}}}"#);
        assert!(
            message.starts_with("mode.replicated.replicas: invalid type"),
            "{message}"
        );
        let message = error(r#"{"name":"web","update_config":{"delay":"5"}}"#);
        assert!(
            message.starts_with("update_config.delay: invalid duration \"5\""),
            "{message}"
        );
    }

    #[test]
    fn too_large_a_specification_is_refused_without_parsing() {
        let error = ServiceSpec::from_json(&vec![b' '; MAX_SPEC_BYTES + 1]).unwrap_err();
        assert_eq!(
            error,
            SpecError::TooLarge {
                size: MAX_SPEC_BYTES + 1
            }
        );
    }
}
