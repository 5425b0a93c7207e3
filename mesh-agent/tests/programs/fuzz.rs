//! Random and spoilt frames, for a time: see [`mesh_agent_testing::fuzz`]. `cargo xtask fuzz` runs this for
//! longer, and sets what is read from the environment here.

use std::{
    env, fs,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use mesh_agent_testing::{
    fuzz::{Finding, Generator, inputs, prepare, replay, run_for},
    node::on_a_node,
};

/// How long a run takes that is a test among others.
const SECONDS: u64 = 10;

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
        let tried = run_for(node, &mut Generator::new(seed), Duration::from_secs(seconds));
        let tried = check(tried);
        println!("{tried:?}");
        assert!(tried.passed > 0 && tried.dropped > 0 && tried.sent > 0);
        assert!(tried.sent_from_ipv6 > 0 && tried.sent_to_ipv6 > 0);
    });
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
