//! The input of an operation besides its path: query arguments, a precondition, a body.

use schemars::{Schema, SchemaGenerator};

/// Generates a type's schema for the OpenAPI document.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// The input of an operation.
#[derive(Clone, Copy)]
pub(super) struct Input {
    pub(super) arguments: &'static [Argument],
    pub(super) precondition: Precondition,
    pub(super) body: Body,
}

/// A query argument.
#[derive(Debug)]
pub(super) struct Argument {
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    /// Whether it may be given more than once.
    pub(super) repeats: bool,
}

impl Argument {
    pub(super) const fn once(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            description,
            repeats: false,
        }
    }

    pub(super) const fn repeated(name: &'static str, description: &'static str) -> Self {
        Self {
            name,
            description,
            repeats: true,
        }
    }
}

/// Whether the request names the revision that it was made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Precondition {
    /// No.
    None,
    /// It may do so in `If-Match`.
    Optional,
    /// It must do so in `If-Match`.
    Required,
}

/// The body of a request.
#[derive(Clone, Copy)]
pub(super) enum Body {
    /// No body.
    None,
    /// Any body, which is ignored.
    Ignored { limit: usize },
    /// JSON; where it is optional, an empty body means `{}`.
    Json {
        schema: SchemaOf,
        content_type: &'static str,
        limit: usize,
        optional: bool,
    },
}
