//! Embeds the eBPF object that `cargo xtask build` made. Without one the agent still builds (for
//! checks, and for those who only want `meshctl`), and says at run time what is missing.

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=MESH_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("mesh.o");
    match env::var_os("MESH_EBPF_OBJECT").map(PathBuf::from) {
        Some(object) => {
            println!("cargo::rerun-if-changed={}", object.display());
            fs::copy(&object, &out).unwrap_or_else(|error| {
                panic!("cannot copy the eBPF object MESH_EBPF_OBJECT={}: {error}", object.display())
            });
        }
        None => fs::write(&out, []).expect("OUT_DIR is writable"),
    }
}
