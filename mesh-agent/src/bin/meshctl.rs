//! The operator's view of the mesh.
fn main() {}
