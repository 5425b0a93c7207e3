//! Validates the names of labels.

use crate::spec::SpecError;

pub(super) fn check_labels<'a>(
    field: &str,
    mut names: impl Iterator<Item = &'a String>,
) -> Result<(), SpecError> {
    match names.find(|name| {
        name.is_empty()
            || name
                .chars()
                .any(|character| character.is_whitespace() || character == '=')
    }) {
        Some(name) => Err(SpecError::invalid(
            field,
            name,
            "a non-empty name without spaces and '='",
        )),
        None => Ok(()),
    }
}
