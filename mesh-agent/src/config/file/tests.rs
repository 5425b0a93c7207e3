use std::net::Ipv4Addr;

use clap::Parser;

use super::*;
use crate::config::{LogFormat, MetricsListen};

#[derive(Debug, Parser)]
struct Program {
    #[command(flatten)]
    file: ConfigFlag,
    #[command(subcommand)]
    command: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    Run {
        #[command(flatten)]
        options: Box<RunOptions>,
    },
    Health {
        #[arg(long, default_value = "/run/mesh/admin.sock")]
        admin_socket: PathBuf,
    },
}

/// A program that is called with a file of this content.
fn program(content: &str, arguments: &[&str]) -> (tempfile::NamedTempFile, Settings) {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), content).unwrap();
    let config = format!("--config={}", file.path().display());
    let line = std::iter::once("mesh-agent")
        .chain(arguments.iter().copied())
        .chain(std::iter::once(config.as_str()));
    let settings = Settings::new(
        <Program as clap::CommandFactory>::command(),
        line.map(OsString::from),
    );
    (file, settings)
}

fn options(content: &str, arguments: &[&str]) -> RunOptions {
    let (_file, settings) = program(content, arguments);
    let matches = settings.matches().unwrap();
    RunOptions::from_arg_matches(matches.subcommand_matches("run").unwrap()).unwrap()
}

#[track_caller]
fn assert_refused(content: &str, parts: &[&str]) {
    let (file, settings) = program(content, &["run"]);
    let error = mesh_support::error_chain(&settings.matches().unwrap_err());
    for part in parts.iter().chain([&file.path().to_str().unwrap()]) {
        assert!(error.contains(part), "'{part}' is missing in: {error}");
    }
}

const FILE: &str = r#"
    # How this node reports.
    metrics-listen = "off"
    log-format = "json"
    uplink = ["eth1", "eth2"]
    feed-port = 9500
    backend-metrics = false
    service-address = "169.254.96.7"
"#;

#[test]
fn the_file_sets_what_nothing_else_sets() {
    let options = options(FILE, &["run", "--feed-port", "9600", "--uplink=eth0"]);
    assert_eq!(options.metrics_listen, MetricsListen::Off);
    assert_eq!(options.log_format, LogFormat::Json);
    assert!(!options.backend_metrics);
    assert_eq!(options.service_address, Ipv4Addr::new(169, 254, 96, 7));
    assert_eq!(options.feed_port, 9600, "the flag has precedence");
    assert_eq!(options.uplinks, ["eth0"], "a list is not merged");
    assert_eq!(options.geneve_port, 6081, "the default stays");
}

#[test]
fn an_unknown_key_names_the_nearest_known_one() {
    assert_refused(
        "metrics_listen = 'off'",
        &["'metrics_listen'", "'metrics-listen'"],
    );
    assert_refused("uplinks = ['eth0']", &["'uplinks'", "'uplink'"]);
    assert_refused("config = 'other.toml'", &["unknown key 'config'"]);
    assert_refused("[datapath]\nkind = 'ebpf'", &["'datapath' must be a string"]);
}

#[test]
fn a_value_is_checked_like_its_flag() {
    assert_refused("feed-port = 0", &["--feed-port", "1..=65535"]);
    assert_refused("service-address = '127.0.0.1'", &["--service-address", "unicast"]);
    assert_refused("xdp = 'fast'", &["--xdp", "native"]);
    assert_refused("feed-port = 1979-05-27", &["'feed-port' must be a string"]);
    assert_refused("feed-port = ", &["not valid TOML"]);
}

#[test]
fn an_error_names_the_line() {
    let content = "# The edge.\npolicy = [\n    'allow 443/tcp',\n    'deny 80/sctp',\n    'deny any',\n]\n";
    assert_refused(content, &[", line 4: ", "'80/sctp' is no port", "--policy"]);
    let content = "policy = ['allow 443']\n\nfeed-port = 0\n";
    assert_refused(content, &[", line 3: ", "--feed-port"]);
    assert_refused("\nmetrics_listen = 'off'", &[", line 2: unknown key"]);
    assert_refused("\n\n[policy]\nallow = 443", &[", line 3: 'policy' must be"]);
    assert_refused(
        "policy = [\n'allow 443'\n'deny any'",
        &["line 3", "not valid TOML"],
    );
}

#[test]
fn the_nodes_policy_is_a_list_of_rules() {
    let content = "policy = ['allow 443/tcp; allow from 10.0.0.0/8', 'deny any']";
    let texts = |options: RunOptions| options.policy.iter().map(ToString::to_string).collect::<Vec<_>>();
    let rules = ["allow 443/tcp", "allow from 10.0.0.0/8", "deny any"];
    assert_eq!(texts(options(content, &["run"])), rules);
    assert_eq!(
        texts(options(content, &["run", "--policy=deny any"])),
        ["deny any"]
    );
}

#[test]
fn a_bad_policy_leaves_the_one_in_force() {
    let (file, settings) = program("policy = ['allow 443']", &["run"]);
    let matches = settings.matches().unwrap();
    let mut reloader = Reloader::new(settings, &matches);
    fs::write(file.path(), "policy = ['allow 444', 'dany 80']").unwrap();
    let error = reloader
        .reload(|name, _| panic!("{name} is applied"))
        .unwrap_err();
    assert!(error.to_string().contains("not with 'dany'"), "{error}");
    fs::write(file.path(), "policy = ['allow 444']").unwrap();
    let mut applied = Vec::new();
    let waiting = reloader.reload(|name, new| {
        applied.push((name.to_owned(), new.policy[0].to_string()));
        true
    });
    assert!(waiting.unwrap().is_empty());
    assert_eq!(applied, [("policy".to_owned(), "allow 444".to_owned())]);
}

#[cfg(feature = "orchestrator")]
#[test]
fn a_switch_is_true_or_false() {
    assert!(options("orchestrator = true", &["run"]).orchestrator.orchestrator);
    assert!(
        !options("orchestrator = false", &["run"])
            .orchestrator
            .orchestrator
    );
    assert_refused("orchestrator = 'yes'", &["'orchestrator' must be true or false"]);
}

#[test]
fn a_missing_file_is_an_error_only_where_it_was_named() {
    let settings = |arguments: &[&str]| {
        let command = <Program as clap::CommandFactory>::command();
        Settings::new(command, arguments.iter().map(OsString::from))
    };
    let error = settings(&["mesh-agent", "run", "--config=/nonexistent/agent.toml"]);
    let error = error.matches().unwrap_err();
    assert!(matches!(error, ConfigError::Read { .. }), "{error}");
    assert!(
        read(Path::new("/nonexistent/agent.toml"), false)
            .unwrap()
            .is_none()
    );
}

#[test]
fn an_error_of_the_command_line_is_not_blamed_on_the_file() {
    let (_file, settings) = program(FILE, &["run", "--xdp=fast"]);
    assert!(matches!(
        settings.matches().unwrap_err(),
        ConfigError::CommandLine(_)
    ));
    let (_file, settings) = program(FILE, &["run", "--help"]);
    let ConfigError::CommandLine(error) = settings.matches().unwrap_err() else {
        panic!("help is not shown");
    };
    assert_eq!(error.kind(), clap::error::ErrorKind::DisplayHelp);
}

#[test]
fn other_subcommands_take_what_they_know() {
    let content = "admin-socket = '/run/other.sock'\nfeed-port = 9500";
    let (_file, settings) = program(content, &["health"]);
    let program = Program::from_arg_matches(&settings.matches().unwrap()).unwrap();
    let Subcommand::Health { admin_socket } = program.command else {
        panic!("another subcommand");
    };
    assert_eq!(admin_socket, Path::new("/run/other.sock"));
}

#[test]
fn what_cannot_be_applied_while_the_agent_runs_is_named_until_it_restarts() {
    let (file, settings) = program(FILE, &["run", "--geneve-port=7000"]);
    let matches = settings.matches().unwrap();
    let mut reloader = Reloader::new(settings, &matches);
    let unchanged = reloader.reload(|name, _| panic!("{name} has not changed"));
    assert!(unchanged.unwrap().is_empty());

    let content = FILE.replace("9500", "9501") + "log-level = 'debug'\ngeneve-port = 7001";
    fs::write(file.path(), content).unwrap();
    let mut level = String::new();
    let mut reload = |reloader: &mut Reloader| {
        let apply = |name: &str, new: &RunOptions| {
            level.clone_from(&new.log_level);
            name == "log-level"
        };
        reloader.reload(apply).unwrap()
    };
    let waiting: BTreeSet<_> = ["feed-port".to_owned()].into();
    assert_eq!(
        reload(&mut reloader),
        waiting,
        "a flag has precedence over the file"
    );
    assert_eq!(reload(&mut reloader), waiting);
    assert_eq!(level, "debug");

    fs::write(file.path(), "feed-prot = 1").unwrap();
    let mut never = |_: &str, _: &RunOptions| panic!("an invalid file changes nothing");
    assert!(reloader.reload(&mut never).is_err());
}
