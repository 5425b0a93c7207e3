//! How answers are printed: docker's columns, templates and words for people. Pure; knows no object.

pub(crate) mod listing;
pub(crate) mod people;
pub(crate) mod template;

pub(crate) use listing::{Format, Layout};
