//! Why a specification is refused: each error names the field, the value and what is allowed.

/// Largest specification, in bytes of JSON.
pub const MAX_SPEC_BYTES: usize = 1 << 20;

/// Why a specification is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// A field has a value that it cannot have.
    #[error("{field}: {value:?} is not possible: use {allowed}")]
    Invalid {
        /// Path of the field, e.g. `task_template.container_spec.image`.
        field: String,
        /// The value found.
        value: String,
        /// What the field may be.
        allowed: String,
    },
    /// A field that no one reads.
    #[error("{path}: unknown field {field:?}{}", nearest.as_ref().map(|name| format!(": did you mean {name:?}?")).unwrap_or_default())]
    UnknownField {
        /// Where it stands.
        path: String,
        /// The unknown name.
        field: String,
        /// The known name most like it.
        nearest: Option<String>,
    },
    /// Not JSON, or a value of the wrong type.
    #[error("{path}: {message}")]
    Malformed {
        /// Where the reader stopped.
        path: String,
        /// What it expected there.
        message: String,
    },
    /// More bytes than a specification may have.
    #[error("the specification has {size} bytes: at most {MAX_SPEC_BYTES} are allowed")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
    },
    /// Services that wait for each other.
    #[error("depends_on: {} would wait for each other forever: remove one of these dependencies", cycle.join(" -> "))]
    DependencyCycle {
        /// The names, the first again at the end.
        cycle: Vec<String>,
    },
}

impl SpecError {
    /// A field's value is refused.
    #[must_use]
    pub fn invalid(field: impl Into<String>, value: impl ToString, allowed: impl Into<String>) -> Self {
        Self::Invalid {
            field: field.into(),
            value: value.to_string(),
            allowed: allowed.into(),
        }
    }
}
