//! Errors as people read them. Imports nothing; everything may import it.

use std::{error::Error, fmt::Write as _};

/// An error and everything that led to it, in one line.
#[must_use]
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
