//! Why a specification is refused: each error names the field, the value and what is allowed.

/// Largest specification, in bytes of JSON. A stored service has its previous one, too, and must fit into a
/// transaction of 1.5 MB.
pub const MAX_SPEC_BYTES: usize = 700_000;

/// Why a specification is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A field has an invalid value.
    #[error("{field}: {value:?} is invalid: must be {allowed}")]
    Invalid {
        /// Path of the field, e.g. `task_template.container_spec.image`.
        field: String,
        /// The value.
        value: String,
        /// What is allowed; completes the sentence "must be …".
        allowed: String,
    },
    /// A field that does not exist.
    #[error("{path}: unknown field {field:?}{}", nearest.as_ref().map(|name| format!(": did you mean {name:?}?")).unwrap_or_default())]
    UnknownField {
        /// Path of the object that contains it.
        path: String,
        /// The unknown name.
        field: String,
        /// The known field whose name is most similar.
        nearest: Option<String>,
    },
    /// Not JSON, or a value of the wrong type.
    #[error("{path}: {message}")]
    Malformed {
        /// Path at which parsing failed.
        path: String,
        /// The parser's message.
        message: String,
    },
    /// The specification is too large.
    #[error("the specification is too large: {size} bytes, at most {MAX_SPEC_BYTES} are allowed")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// Services that depend on each other.
    #[error("depends_on: {} is a cycle, in which no service could start: remove one of these dependencies", cycle.join(" -> "))]
    DependencyCycle {
        /// The names, with the first repeated at the end.
        cycle: Vec<String>,
    },
}

impl SpecError {
    /// An invalid value of a field.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: impl ToString, allowed: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }
}
