//! Error text; goes once nothing names it by this path any more.

pub use mesh_support::error_chain;
