//! `meshctl service`: from creation to removal, and what goes wrong between.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_orchestrator::{objects::TaskState, spec::ServiceMode};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::UnixDatagram,
    time::timeout,
};

use crate::server::{PATIENCE, Server};

/// Flags with which nothing takes long.
const QUICK: &str =
    "--update-monitor 50ms --rollback-monitor 50ms --restart-delay 100ms --update-parallelism 0";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_lives_as_a_docker_user_expects() -> Result<()> {
    let server = Server::start().await?;
    let output = server
        .run(&format!(
            "service create --name web --replicas 2 -p 8080:80 {QUICK} nginx:1 nginx -g 'daemon off;'"
        ))
        .await?;
    ensure!(output.code == Some(0), "{output:?}");
    let id = output.out.lines().next().unwrap_or_default().to_owned();
    ensure!(id.len() == 25 && output.err.is_empty(), "{output:?}");
    ensure!(
        output.out.contains("overall progress: 2 out of 2 tasks\n"),
        "{output:?}"
    );
    ensure!(
        output.out.ends_with(&format!("verify: Service {id} converged\n")),
        "{output:?}"
    );

    let short = &id[..12];
    let listed = server.ok("service ls").await?;
    ensure!(
        listed
            == format!(
                "ID             NAME      MODE         REPLICAS   IMAGE     PORTS\n\
                 {short}   web       replicated   2/2        nginx:1   *:8080->80/tcp\n"
            ),
        "{listed}"
    );
    ensure!(server.ok("service ls -q").await? == format!("{short}\n"));
    ensure!(
        server
            .ok("service ls -f name=other --format '{{.Name}}'")
            .await?
            .is_empty()
    );

    let tasks = server
        .ok("service ps web --format '{{.Name}} {{.Image}} {{.Node}} {{.DesiredState}}'")
        .await?;
    ensure!(
        tasks == "web.1 nginx:1 alpha Running\nweb.2 nginx:1 alpha Running\n",
        "{tasks}"
    );

    let scaled = server.run("service scale web=3").await?;
    ensure!(
        scaled.out.starts_with("web scaled to 3\n") && scaled.code == Some(0),
        "{scaled:?}"
    );
    ensure!(scaled.out.contains("3 out of 3 tasks"), "{scaled:?}");

    ensure!(
        server
            .ok("service update web --image nginx:2 --env-add A=1 -q")
            .await?
            == "web\n"
    );
    let image = server.ok("service inspect web -f '{{.Spec.TaskTemplate.ContainerSpec.Image}} {{.Spec.TaskTemplate.ContainerSpec.Env}}'").await?;
    ensure!(
        image.starts_with("nginx:2@sha256:") && image.ends_with(" [A=1]\n"),
        "{image}"
    );
    let past = server.ok("service ps web --filter desired-state=shutdown --no-trunc --format '{{.Image}} {{.CurrentState}}'").await?;
    ensure!(
        past.lines().count() == 3 && past.starts_with("nginx:1@sha256:") && past.contains(" Shutdown "),
        "{past}"
    );

    let history = server
        .ok("service history web --format '{{.By}} {{.Action}}'")
        .await?;
    ensure!(
        history == "root update\nroot scale to 3\nroot create\n",
        "{history}"
    );
    let differences = server.ok("service diff web").await?;
    ensure!(
        differences.contains("task_template.container_spec.image"),
        "{differences}"
    );
    let from_first = server.ok("service diff web 1 2").await?;
    ensure!(
        from_first.contains("mode.replicated.replicas   2         3\n"),
        "{from_first}"
    );

    ensure!(server.ok("service rollback web -q").await? == "web\n");
    ensure!(
        server
            .ok("service inspect web -f '{{.Spec.TaskTemplate.ContainerSpec.Image}}'")
            .await?
            .starts_with("nginx:1@sha256:")
    );
    let pretty = server.ok("service inspect --pretty web").await?;
    ensure!(
        pretty.contains("\nName:\t\tweb\n")
            && pretty.contains("UpdateStatus:\n State:\t\trollback_completed\n"),
        "{pretty}"
    );

    ensure!(server.ok("service pause web -q").await? == "web\n");
    ensure!(server.ok("service ls --format '{{.Replicas}}'").await? == "0/0\n");
    ensure!(server.ok("service resume web -q").await? == "web\n");
    ensure!(server.ok("service ls --format '{{.Replicas}}'").await? == "3/3\n");
    ensure!(server.ok("service rebalance web -q").await? == "web\n");

    ensure!(server.ok("service rm web").await? == "web\n");
    ensure!(server.ok("service ls -q").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_update_ends_with_one_and_its_reason() -> Result<()> {
    let server = Server::start().await?;
    server
        .ok(&format!(
            "service create --name web {QUICK} --update-failure-action rollback nginx:1"
        ))
        .await?;
    let output = server
        .run("service update web --image broken:1 --fail-on-rollback")
        .await?;
    ensure!(output.code == Some(1), "{output:?}");
    ensure!(
        output.err.contains("meshctl: service web was rolled back: "),
        "{output:?}"
    );
    // Docker counts that as a success; so does meshctl without the flag.
    let output = server.run("service update web --image broken:2").await?;
    ensure!(
        output.code == Some(0) && output.out.contains("rollback: "),
        "{output:?}"
    );
    server
        .ok("service update web --update-failure-action pause")
        .await?;
    let error = server.fails("service update web --image broken:3", 1).await?;
    ensure!(error.contains("meshctl: service update paused: "), "{error}");
    let tasks = server
        .ok("service ps web -f desired-state=shutdown --no-trunc --format '{{.Error}}'")
        .await?;
    ensure!(tasks.contains("\"no such image: broken:3@sha256:"), "{tasks}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_waited_for_until_they_have_completed() -> Result<()> {
    let server = Server::start().await?;
    let output = server
        .run("service create --name job --mode replicated-job --replicas 3 busybox true")
        .await?;
    ensure!(
        output.code == Some(0) && output.out.ends_with("verify: job complete\n"),
        "{output:?}"
    );
    let listed = server.ok("service ls --format '{{.Mode}} {{.Replicas}}'").await?;
    ensure!(
        listed == "replicated job 0/0 (3/3 completed)\n" || listed == "replicated job 0/3 (3/3 completed)\n",
        "{listed}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_flag_ends_with_125_and_what_is_refused_with_1() -> Result<()> {
    let server = Server::start().await?;
    server.ok("service create -d --name web -p 8080:80 nginx").await?;
    for (line, code, reason) in [
        ("service create --dns 1.1.1.1 nginx", 125, "--dns"),
        ("service create", 1, "IMAGE"),
        (
            "service create --mode global --replicas 2 nginx",
            1,
            "replicas can only be used",
        ),
        ("service scale web", 1, "SERVICE=REPLICAS"),
        ("service ls -f colour", 125, "id, label, mode, name"),
        ("service ls -f colour=red", 1, "id, label, mode, name"),
        (
            "service ls --format '{{.Nmae}}'",
            1,
            ".ID, .Image, .Mode, .Name, .Ports, .Replicas",
        ),
        (
            "service update web --rollback --force",
            1,
            "other flags may not be combined with --rollback",
        ),
        ("service ps nothing", 1, "no such service: nothing"),
        ("service inspect nothing", 1, "no such service: nothing"),
        ("service logs nothing", 1, "no such task or service: nothing"),
        ("service create --name web nginx", 1, "web"),
        (
            "service create --name other -p 8080:80 nginx",
            1,
            "service web already publishes",
        ),
        (
            "service create --name other 'NGINX'",
            1,
            "task_template.container_spec.image",
        ),
        ("service rollback web", 1, "web"),
        ("service rm nothing", 1, "nothing"),
        ("service diff web", 1, "one revision only"),
    ] {
        let error = server.fails(line, code).await?;
        ensure!(error.contains(reason), "{line}: {error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_agent_every_command_says_how_to_start_one() -> Result<()> {
    let server = Server::start().await?;
    for line in [
        "service ls",
        "service create nginx",
        "node ls",
        "secret inspect key",
        "backup create",
        "service attach web",
    ] {
        let mut command = server.command(line);
        command.env("MESH_ADMIN_SOCKET", "/nonexistent/admin.sock");
        let output = timeout(PATIENCE, command.output()).await??;
        let error = String::from_utf8(output.stderr)?;
        ensure!(
            output.status.code() == Some(1),
            "{line}: {:?} {error}",
            output.status
        );
        ensure!(
            error.contains("the mesh agent is not running (nothing answers on /nonexistent/admin.sock)")
                && error.contains("mesh-agent run")
                && error.contains("its log says what it waits for"),
            "{line}: {error}"
        );
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_services_are_listed_at_once() -> Result<()> {
    let server = Server::start().await?;
    let names: Vec<String> = (0..100).map(|number| format!("web-{number}")).collect();
    for name in &names {
        server
            .ok(&format!("service create -d --name {name} --replicas 2 nginx"))
            .await?;
    }
    server
        .until("all tasks run", |state| {
            let running = state
                .tasks()
                .values()
                .filter(|task| task.status.state == TaskState::Running);
            running.count() == 200
        })
        .await?;
    for (line, rows) in [
        ("service ls".to_owned(), 100),
        (format!("service ps {}", names.join(" ")), 200),
        ("node ps".to_owned(), 200),
    ] {
        let began = Instant::now();
        let listed = server.ok(&line).await?;
        let took = began.elapsed();
        println!("{:.20}: {} ms", line, took.as_millis());
        ensure!(listed.lines().count() == rows + 1, "{listed}");
        ensure!(took < Duration::from_secs(5), "{line} took {took:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_wait_goes_on_in_the_background() -> Result<()> {
    let server = Server::start().await?;
    let mut child = server.command("service create --name web slow:1").spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("it has a standard output")?).lines();
    let mut seen = String::new();
    while !seen.contains("1/1: starting") {
        let line = timeout(PATIENCE, lines.next_line()).await??;
        seen += &line.with_context(|| format!("it ended too early: {seen}"))?;
    }
    let id = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .context("it runs")?;
    kill(Pid::from_raw(id), Signal::SIGINT)?;
    while let Some(line) = lines.next_line().await? {
        seen = seen + "\n" + &line;
    }
    let status = timeout(PATIENCE, child.wait()).await??;
    ensure!(status.code() == Some(130), "{status:?}: {seen}");
    ensure!(
        seen.contains("Operation continuing in background.\nUse `meshctl service ps "),
        "{seen}"
    );
    ensure!(server.ok("service ls --format '{{.Name}} {{.Replicas}}'").await? == "web 0/1\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_of_all_tasks_have_their_names_in_front() -> Result<()> {
    let server = Server::start().await?;
    server
        .ok(&format!("service create --name web --replicas 10 {QUICK} nginx"))
        .await?;
    let output = server.run("service logs --no-task-ids -t --tail 1 web").await?;
    ensure!(output.code == Some(0) && output.out.is_empty(), "{output:?}");
    ensure!(
        output
            .err
            .contains("2026-11-21T19:00:02.000000001Z web.1@alpha     | goes on\n"),
        "{output:?}"
    );
    ensure!(output.err.contains("web.10@alpha    | goes on\n"), "{output:?}");
    let output = server.run("service logs web").await?;
    ensure!(
        output.out.lines().count() == 10 && output.err.lines().count() == 10,
        "{output:?}"
    );
    let task = server.ok("service ps web --no-trunc -q -f name=web.3").await?;
    let output = server.run(&format!("service logs --raw {}", task.trim())).await?;
    ensure!(
        output.out == "begins\n" && output.err == "goes on\n",
        "{output:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unit_is_ready_when_the_service_is_and_pauses_it_at_its_end() -> Result<()> {
    let server = Server::start().await?;
    server
        .ok("service create -d --name web --replicas 2 --update-monitor 50ms nginx")
        .await?;
    server.ok("service pause web").await?;
    let unit = server.ok("systemd generate web").await?;
    ensure!(
        unit.contains("Type=notify\n") && unit.contains("service attach web\n"),
        "{unit}"
    );

    let notified = server.folder.path().join("notify.sock");
    let socket = UnixDatagram::bind(&notified)?;
    let mut child = server
        .command("service attach web")
        .env("NOTIFY_SOCKET", &notified)
        .spawn()?;
    let mut message = [0; 64];
    let length = timeout(PATIENCE, socket.recv(&mut message)).await??;
    ensure!(
        &message[..length] == b"READY=1\n" || &message[..length] == b"READY=1",
        "{:?}",
        &message[..length]
    );
    ensure!(server.ok("service ls --format '{{.Replicas}}'").await? == "2/2\n");
    let id = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .context("it runs")?;
    kill(Pid::from_raw(id), Signal::SIGTERM)?;
    let status = timeout(PATIENCE, child.wait()).await??;
    ensure!(status.success(), "{status:?}");
    server
        .until("the service is paused", |state| {
            let service = state.service_named("web");
            service.is_some_and(|service| matches!(service.spec.mode, ServiceMode::Replicated(settings) if settings.replicas == 0))
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pipe_that_is_closed_is_no_failure() -> Result<()> {
    let server = Server::start().await?;
    server
        .ok(&format!("service create --name web {QUICK} nginx"))
        .await?;
    let mut child = server.command("service logs -f web").spawn()?;
    drop(child.stdout.take());
    drop(child.stderr.take());
    let status = timeout(Duration::from_secs(20), child.wait()).await??;
    ensure!(status.code() == Some(0), "{status:?}");
    Ok(())
}
