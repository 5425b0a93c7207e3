//! `meshctl` as a program of its own; a link of this name to `mesh-agent` does the same.

fn main() -> std::process::ExitCode {
    mesh_agent::meshctl::cli::main()
}
