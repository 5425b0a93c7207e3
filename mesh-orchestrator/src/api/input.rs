//! What an operation takes beside its path: query arguments, a precondition, a body.

use schemars::{Schema, SchemaGenerator};

/// How a type describes itself in the OpenAPI document.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// What an operation takes.
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
    /// There is no revision.
    None,
    /// It may, in `If-Match`.
    Optional,
    /// It must, in `If-Match`.
    Required,
}

/// What a request carries.
#[derive(Clone, Copy)]
pub(super) enum Body {
    /// Nothing.
    None,
    /// Anything, which is not looked at.
    Ignored { limit: usize },
    /// JSON; nothing at all stands for `{}` where it is optional.
    Json {
        schema: SchemaOf,
        content_type: &'static str,
        limit: usize,
        optional: bool,
    },
}
