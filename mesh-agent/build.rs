//! Embeds the eBPF object that `cargo xtask build` made. Without one the agent still builds (for checks, and
//! for those who only want `meshctl`), and says at run time what is missing. A static program has its
//! relocations packed, which are a thirteenth of it otherwise.

use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

fn main() {
    println!("cargo::rerun-if-env-changed=MESH_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("mesh.o");
    match env::var_os("MESH_EBPF_OBJECT").map(PathBuf::from) {
        Some(object) => {
            wait_for(&object);
            println!("cargo::rerun-if-changed={}", object.display());
            fs::copy(&object, &out).unwrap_or_else(|error| {
                panic!(
                    "cannot copy the eBPF object MESH_EBPF_OBJECT={}: {error}",
                    object.display()
                )
            });
        }
        None => fs::write(&out, []).expect("OUT_DIR is writable"),
    }
    // A dynamic one would depend on a loader of glibc 2.36 or later.
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    if features.split(',').any(|feature| feature == "crt-static") {
        println!("cargo::rustc-link-arg-bins=-Wl,--pack-dyn-relocs=relr");
    }
}

/// Where `cargo xtask` builds the object at the same time: until it is there, or its build has failed.
fn wait_for(object: &Path) {
    let is_awaited = env::var_os("MESH_EBPF_OBJECT_AWAITED").is_some();
    while is_awaited && !object.exists() && !object.with_extension("failed").exists() {
        thread::sleep(Duration::from_millis(200));
    }
}
