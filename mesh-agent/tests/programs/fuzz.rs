//! Random and spoilt frames, for a time: see [`mesh_agent_testing::fuzz`]. `cargo xtask fuzz` runs this for
//! longer, and sets what is read from the environment here.

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use mesh_agent_testing::{
    fuzz::{Finding, Generator, Tried, inputs, prepare, replay, run_for},
    idle::on_a_node,
};

/// How long a run takes that is a test among others.
const SECONDS: u64 = 10;
/// How often it takes that time where a busy or emulated processor has not got to every kind of frame.
const ROUNDS: u32 = 6;

#[test]
fn random_and_spoilt_frames_do_no_harm() {
    if let Some(file) = env::var_os("MESH_FUZZ_REPLAY") {
        let text = fs::read_to_string(&file).expect("the file to replay can be read");
        let inputs = inputs(&text).expect("the file has been written by an earlier run");
        println!("{} frames", inputs.len());
        on_a_node(|node| {
            prepare(node);
            println!("{:?}", check(replay(node, inputs)));
        });
        return;
    }
    let number = |name: &str| {
        let value = env::var(name).ok()?;
        Some(value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
    };
    let seconds = number("MESH_FUZZ_SECONDS").unwrap_or(SECONDS);
    let seed = number("MESH_FUZZ_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    println!("seed {seed}");
    on_a_node(|node| {
        prepare(node);
        let mut generator = Generator::new(seed);
        let mut tried = Tried::default();
        for _ in 0..ROUNDS {
            tried += check(run_for(node, &mut generator, Duration::from_secs(seconds)));
            if has_every_fate(tried) {
                break;
            }
        }
        println!("{tried:?}");
        assert!(has_every_fate(tried), "too few frames were tried");
    });
}

fn has_every_fate(tried: Tried) -> bool {
    let fates = [tried.passed, tried.dropped, tried.sent];
    let of_ipv6 = [tried.sent_from_ipv6, tried.sent_to_ipv6];
    fates.into_iter().chain(of_ipv6).all(|count| count > 0)
}

/// Keeps what a finding needs to be seen again.
fn check<T>(outcome: Result<T, Finding>) -> T {
    let finding = match outcome {
        Ok(done) => return done,
        Err(finding) => finding,
    };
    let folder = env::var_os("MESH_FUZZ_KEEP").map_or_else(env::temp_dir, PathBuf::from);
    let file = folder.join(format!("mesh-fuzz-{}.txt", std::process::id()));
    let kept = match fs::write(&file, finding.to_text()) {
        Ok(()) => format!("`cargo xtask fuzz --replay {}` shows it again", file.display()),
        Err(error) => format!("{} could not be written: {error}", file.display()),
    };
    let last = Finding {
        text: String::new(),
        inputs: finding.inputs.last().cloned().into_iter().collect(),
    };
    panic!("{}\nthe last frame:\n{}\n{kept}", finding.text, last.to_text());
}
