//! The eBPF programs: each hook runs the packet logic and performs the action that it returns.
//!
//! Built for `bpfel-unknown-none` by `cargo xtask build`. The logic is in the library; here are the
//! hooks ([`xdp`], [`tc`], [`socket`]), the maps and the pointer casts they need.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "is_val_statically_known has no stable name")]

mod affinity_maps;
#[cfg(feature = "bench")]
mod bench;
mod flood_maps;
mod flow_maps;
mod mapped_maps;
mod maps;
mod monitor_maps;
mod signal_maps;
mod socket;
mod tc;
mod translate;
mod xdp;

/// Nothing in here panics; the linker removes this function.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
