//! Runs a program on a frame, by `BPF_PROG_TEST_RUN` (Linux 5.18 for a chosen interface).

use aya::programs::{TestRun, TestRunOptions};
use mesh_support::error_chain;

/// XDP: drop.
pub const XDP_DROP: u32 = 1;
/// XDP: leave it to the kernel.
pub const XDP_PASS: u32 = 2;
/// XDP: out of the interface it came by.
pub const XDP_TX: u32 = 3;
/// XDP: out of another interface.
pub const XDP_REDIRECT: u32 = 4;
/// tc: leave it to the kernel.
pub const TC_UNSPEC: u32 = u32::MAX;
/// tc: drop.
pub const TC_SHOT: u32 = 2;
/// tc: out of, or into, another interface.
pub const TC_REDIRECT: u32 = 7;

/// Where a frame comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// XDP on the uplink.
    Xdp,
    /// tc on the uplink.
    Uplink,
    /// tc on an uplink without Ethernet headers: the frame begins with the IP header.
    Layer3,
    /// tc on the container's veth.
    Container,
    /// tc on mesh0.
    Local,
}

impl Entry {
    /// Every one.
    pub const ALL: [Self; 5] = [
        Self::Xdp,
        Self::Uplink,
        Self::Layer3,
        Self::Container,
        Self::Local,
    ];

    /// The name in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Uplink => "uplink",
            Self::Layer3 => "layer3",
            Self::Container => "container",
            Self::Local => "local",
        }
    }
}

/// A program's verdict on a frame, and the frame it left.
pub struct Output {
    /// One of the constants above.
    pub verdict: u32,
    /// The whole frame.
    pub frame: Vec<u8>,
}

/// Runs a program many times in a context (`struct xdp_md` or `struct __sk_buff`); returns the last output,
/// and the nanoseconds that each run took on average.
///
/// # Errors
/// The kernel's.
pub(crate) fn run<P>(program: &P, frame: &[u8], context: &[u8], repeat: u32) -> Result<(Output, u64), String>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = aya::TestRunResult>,
{
    let mut out = vec![0; 4096];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(context),
            repeat,
            ..TestRunOptions::default()
        })
        .map_err(|error| error_chain(&error))?;
    out.truncate(result.data_size_out as usize);
    let output = Output {
        verdict: result.return_value,
        frame: out,
    };
    Ok((output, result.duration.as_nanos() as u64))
}
