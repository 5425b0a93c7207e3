//! `meshctl` as a program of its own; where `mesh-agent` is installed, a link of this name to it does the same.

fn main() -> std::process::ExitCode {
    mesh_agent::meshctl::cli::main()
}
