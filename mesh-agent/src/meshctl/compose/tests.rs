//! Whole compose files: what becomes of them, and what is refused where.

use mesh_orchestrator::spec::{MountKind, Probe, Replicated, ReplicatedJob, ServiceMode, UpdateOrder};
use proptest::prelude::*;

use super::stack::*;
use crate::meshctl::flags::testing::surroundings;

fn stack(text: &str) -> Result<Stack, String> {
    let files = [("compose.yml".into(), text.as_bytes().to_vec())];
    read(&files, "shop", &surroundings()).map_err(|error| error.to_string())
}

/// A file with one service `web`, which has an image and these lines.
fn web(lines: &str) -> Result<Stack, String> {
    let indented: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    stack(&format!("services:\n  web:\n    image: nginx:1\n{indented}"))
}

const WHOLE: &str = r#"
version: "3.8"
x-defaults: &defaults
  stop_grace_period: 30s
  logging: {driver: json-file, options: {max-size: 10m, max-file: 3}}
services:
  web:
    <<: *defaults
    image: nginx:${TAG:-1.27}
    command: ["nginx", "-g", "daemon off;"]
    environment:
      MODE: production
      HOME:
    env_file: app.env
    ports:
      - "8080:80"
      - target: 53
        published: 53
        protocol: udp
        mode: host
    volumes:
      - ./site:/srv:ro
      - data:/data
      - type: tmpfs
        target: /tmp
        tmpfs: {size: 64m}
    secrets:
      - key
      - source: key
        target: other
        mode: 0400
    configs: [settings]
    healthcheck:
      test: curl -f localhost
      interval: 5s
    depends_on:
      db: {condition: service_healthy}
    restart: always
    labels: {app: web}
    deploy:
      replicas: 3
      labels: [tier=front]
      update_config: {parallelism: 2, order: start-first, delay: 1s}
      restart_policy: {condition: on-failure, max_attempts: 3}
      resources:
        limits: {cpus: "0.5", memory: 512M}
        reservations: {memory: 64M}
      placement:
        constraints: [node.role == worker]
        preferences: [{spread: node.labels.zone}]
        max_replicas_per_node: 2
  db:
    image: postgres
    networks: [backend]
    deploy: {mode: global}
networks:
  backend: {external: true, name: db-net}
volumes:
  data:
secrets:
  key: {file: ./key}
configs:
  settings: {content: "a=1"}
"#;

#[test]
fn a_whole_file_becomes_specifications() {
    let stack = stack(WHOLE).unwrap();
    assert_eq!(stack.ignored, ["services.web.restart"]);
    let names: Vec<&str> = stack.services.iter().map(|spec| spec.name.as_str()).collect();
    assert_eq!(names, ["shop_db", "shop_web"]);
    let (db, web) = (&stack.services[0], &stack.services[1]);
    assert!(matches!(db.mode, ServiceMode::Global(_)));
    assert_eq!(db.task_template.networks, ["db-net"]);
    assert_eq!(db.task_template.container_spec.image, "postgres:latest");
    assert_eq!(web.mode, ServiceMode::Replicated(Replicated { replicas: 3 }));
    assert_eq!(web.depends_on, ["shop_db"]);
    assert_eq!(web.labels["com.docker.stack.namespace"], "shop");
    assert_eq!(web.labels["tier"], "front");
    assert_eq!(web.update_config.order, UpdateOrder::StartFirst);
    let task = &web.task_template;
    let container = &task.container_spec;
    assert_eq!(container.image, "nginx:1.27");
    assert_eq!(container.args, ["nginx", "-g", "daemon off;"]);
    let environment: std::collections::BTreeSet<&str> = container.env.iter().map(String::as_str).collect();
    assert_eq!(environment, ["HOME=/root", "MODE=production"].into());
    assert_eq!(container.labels["app"], "web");
    let mounts: Vec<(MountKind, &str)> = container
        .mounts
        .iter()
        .map(|mount| (mount.kind, mount.source.as_str()))
        .collect();
    assert_eq!(
        mounts,
        [
            (MountKind::Bind, "/work/site"),
            (MountKind::Volume, "shop_data"),
            (MountKind::Tmpfs, "")
        ]
    );
    assert_eq!(container.secrets[0].source, "shop_key");
    assert_eq!(container.secrets[0].target.as_deref(), Some("key"));
    assert_eq!(container.secrets[1].mode, 0o400);
    assert_eq!(container.configs[0].source, "shop_settings");
    assert_eq!(
        container.healthcheck.as_ref().unwrap().test,
        Probe::Shell("curl -f localhost".into())
    );
    assert_eq!(container.stop_grace_period.unwrap().as_secs(), 30);
    assert_eq!(task.log_driver.as_ref().unwrap().options["max-file"], "3");
    assert_eq!(task.resources.limits.memory_bytes, 512 << 20);
    assert_eq!(task.placement.max_replicas_per_node, 2);
    assert_eq!(web.endpoint_spec.ports.len(), 2);
    let files: Vec<(FileKind, &str, usize)> = stack
        .files
        .iter()
        .map(|file| (file.kind, file.name.as_str(), file.size))
        .collect();
    assert_eq!(
        files,
        [
            (FileKind::Secret, "shop_key", 6),
            (FileKind::Config, "shop_settings", 3)
        ]
    );
    assert_eq!(stack.files[0].data.expose(), "c2VjcmV0");
    assert!(!format!("{stack:?}").contains("c2VjcmV0"));
}

#[test]
fn what_it_cannot_do_names_service_and_key() {
    for (lines, reason) in [
        (
            "privileged: true",
            "services.web.privileged: this is not supported: use cap_add",
        ),
        ("dns: 1.1.1.1", "services.web.dns: this is not supported"),
        ("ports: ['127.0.0.1:80:80']", "services.web.ports[0]: "),
        (
            "ports: [{target: 80, host_ip: 127.0.0.1}]",
            "services.web.ports[0].host_ip: ",
        ),
        (
            "networks: [backend]",
            "services.web.networks[0]: \"backend\" is not among the file's networks",
        ),
        (
            "volumes: ['data:/data']",
            "services.web.volumes[0]: \"data\" is not among the file's volumes",
        ),
        (
            "secrets: [key]",
            "services.web.secrets[0]: \"key\" is not among the file's secrets",
        ),
        (
            "depends_on: [db]",
            "services.web.depends_on[0]: \"db\" is not among the file's services",
        ),
        ("depends_on: [web]", "services.web: depends_on[0]"),
        (
            "imgae: x",
            "services.web.imgae: no compose file has such a key: did you mean \"image\"?",
        ),
        (
            "deploy: {replicas: many}",
            "services.web.deploy.replicas: a number is needed, not \"many\"",
        ),
        (
            "deploy: {mode: global, replicas: 2}",
            "services.web.deploy.replicas: ",
        ),
        (
            "deploy: {endpoint_mode: dnsrr}",
            "services.web.deploy.endpoint_mode: ",
        ),
        (
            "deploy: {resources: {reservations: {devices: []}}}",
            "reservations.devices: this is not supported",
        ),
        (
            "deploy: {update_config: {delay: 5}}",
            "services.web.deploy.update_config.delay: ",
        ),
        (
            "healthcheck: {interval: 1s}",
            "services.web.healthcheck: times need a test",
        ),
        ("healthcheck: {test: [CURL]}", "services.web.healthcheck.test: "),
        (
            "env_file: missing.env",
            "services.web.env_file: the environment file /work/missing.env",
        ),
        (
            "volumes: ['/a:/b:z']",
            "services.web.volumes[0]: the option \"z\"",
        ),
        ("image: '${NONE:?}'", "compose.yml"),
        ("network_mode: 'service:db'", "services.web.network_mode: "),
        (
            "extra_hosts: ['a:b']",
            "services.web.extra_hosts[0]: \"b\" is no IP address",
        ),
    ] {
        let error = web(lines).unwrap_err();
        assert!(error.contains(reason), "{lines}: {error}");
    }
    for (text, reason) in [
        ("services: {web: {}}", "services.web: an image is needed"),
        ("services: {web: {build: .}}", "services.web: an image is needed"),
        ("services:", "services: there is no service"),
        ("- a", "its top is no map"),
        ("services: [", "compose.yml"),
        (
            "servces: {}",
            "servces: no compose file has such a key: did you mean \"services\"?",
        ),
        ("include: [a.yml]", "include: this is not supported"),
        (
            "services: {a: {image: x, networks: [b]}}\nnetworks: {b: }",
            "services.a.networks[0]: the network \"b\" would have to be made",
        ),
        (
            "services: {a: {image: x}}\nvolumes: {v: {driver: nfs}}",
            "volumes.v.driver: ",
        ),
        (
            "services: {a: {image: x}}\nsecrets: {s: {}}",
            "secrets.s: say where it comes from",
        ),
        (
            "services: {a: {image: x}}\nsecrets: {s: {file: missing}}",
            "could not read /work/missing",
        ),
        (
            "services: {a: {image: x, depends_on: [b]}, b: {image: x, depends_on: [a]}}",
            "is a cycle",
        ),
    ] {
        let error = stack(text).unwrap_err();
        assert!(error.contains(reason), "{text}: {error}");
    }
}

#[test]
fn what_is_ignored_is_named() {
    let stack = web("build: .\ncontainer_name: web\nexpose: [80]\ntty: true\nx-mine: 1\nnetworks: {default: {aliases: [w]}}").unwrap();
    assert_eq!(
        stack.ignored,
        [
            "services.web.build",
            "services.web.container_name",
            "services.web.expose",
            "services.web.networks.default.aliases",
            "services.web.tty"
        ]
    );
}

#[test]
fn environment_files_need_not_be_there_if_told() {
    let stack = web("env_file: [{path: missing.env, required: false}, app.env]").unwrap();
    assert_eq!(
        stack.services[0].task_template.container_spec.env,
        ["MODE=file", "HOME=/root"]
    );
}

#[test]
fn external_files_are_asked_for_by_their_own_name() {
    let stack =
        stack("services: {a: {image: x, secrets: [s]}}\nsecrets: {s: {external: true, name: real}}").unwrap();
    assert_eq!(stack.external, [(FileKind::Secret, "real".to_owned())]);
    assert_eq!(
        stack.services[0].task_template.container_spec.secrets[0].source,
        "real"
    );
}

#[test]
fn later_files_are_put_on_top() {
    let files = [
        (
            "a.yml".into(),
            b"services: {web: {image: nginx, deploy: {replicas: 1}}}".to_vec(),
        ),
        (
            "b.yml".into(),
            b"services: {web: {deploy: {replicas: 5}}}".to_vec(),
        ),
    ];
    let stack = read(&files, "shop", &surroundings()).unwrap();
    assert_eq!(
        stack.services[0].mode,
        ServiceMode::Replicated(Replicated { replicas: 5 })
    );
    assert!(read(&files, "no good", &surroundings()).is_err());
}

proptest! {
    #[test]
    fn no_file_makes_the_reader_panic(lines in "[a-z0-9:{}\\[\\], \n\"'-]{0,60}") {
        let _ = web(&lines);
        let _ = stack(&lines);
    }
}

#[test]
fn a_service_that_others_wait_for_to_complete_is_a_job() {
    let file = |restart: &str| {
        let wait = "{db: {condition: service_started}, migrate: {condition: service_completed_successfully}}";
        stack(&format!(
            "services: {{web: {{image: a, depends_on: {wait}}}, db: {{image: b}}, migrate: {{image: c{restart}}}}}"
        ))
    };
    let stack = file("").unwrap();
    let mode = |name: &str| stack.services.iter().find(|spec| spec.name == name).unwrap().mode;
    let once = ReplicatedJob {
        max_concurrent: 1,
        total_completions: 1,
    };
    assert_eq!(mode("shop_migrate"), ServiceMode::ReplicatedJob(once));
    assert_eq!(
        mode("shop_db"),
        ServiceMode::Replicated(Replicated { replicas: 1 })
    );
    let restarts = |condition: &str| {
        file(&format!(
            ", deploy: {{restart_policy: {{condition: {condition}}}}}"
        ))
    };
    assert!(restarts("none").is_ok());
    let error = restarts("any").unwrap_err();
    assert!(error.contains("shop_migrate is to complete"), "{error}");
}
