//! Printing of answers: docker's columns, templates and wording. Pure; independent of the kinds of objects.

pub(crate) mod listing;
pub(crate) mod people;
pub(crate) mod template;

pub(crate) use listing::{Format, Layout};
