//! `meshctl node`, `secret`, `config`, `registry`, `webhook`, `backup` and `token`.

use anyhow::{Result, ensure};

use crate::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_are_listed_drained_and_labelled() -> Result<()> {
    let server = Server::start().await?;
    let listed = server.ok("node ls").await?;
    let mut lines = listed.lines();
    ensure!(
        lines.next()
            == Some("ID          HOSTNAME   STATUS    AVAILABILITY   MANAGER STATUS   ENGINE VERSION"),
        "{listed}"
    );
    ensure!(
        lines.next() == Some("node1id *   alpha      Ready     Active         Leader           29.3.1"),
        "{listed}"
    );
    server
        .ok("service create -q --name web --update-monitor 50ms nginx")
        .await?;
    ensure!(server.ok("node ps --format '{{.Name}}'").await? == "web.1\n");
    ensure!(
        server
            .ok("node update alpha --availability drain --label-add zone=a --label-add x")
            .await?
            == "alpha\n"
    );
    ensure!(server.ok("node update --label-rm x self").await? == "self\n");
    let shown = server
        .ok("node inspect self --format '{{.Spec.Availability}} {{json .Spec.Labels}}'")
        .await?;
    ensure!(shown == "drain {\"zone\":\"a\"}\n", "{shown}");
    let pretty = server.ok("node inspect alpha --pretty").await?;
    ensure!(
        pretty.contains("Labels:\n - zone=a\n") && pretty.contains(" Memory:\t\t16GiB\n"),
        "{pretty}"
    );
    ensure!(server.fails("node rm alpha", 1).await?.contains("not down"));
    ensure!(
        server
            .fails("node rm --force alpha", 1)
            .await?
            .contains("not down")
    );
    ensure!(server.ok("node ls -f role=worker -q").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_and_passwords_are_never_shown() -> Result<()> {
    let server = Server::start().await?;
    let output = server
        .run_with("secret create -l tier=front key -", "hunter2")
        .await?;
    ensure!(
        output.code == Some(0) && output.out.lines().count() == 1,
        "{output:?}"
    );
    let id = output.out.trim().to_owned();
    let listed = server.ok("secret ls").await?;
    ensure!(
        listed.starts_with("ID ") && listed.contains("DRIVER    CREATED") && listed.contains(&id),
        "{listed}"
    );
    let output = server
        .run_with(
            "registry login -u me --password-stdin https://registry.example.com:5000/v2/",
            "hunter2\n",
        )
        .await?;
    ensure!(output.code == Some(0), "{output:?}");
    ensure!(
        server
            .ok("registry ls --format '{{.Registry}} {{.Username}}'")
            .await?
            == "registry.example.com:5000 me\n"
    );
    let output = server.run("registry login -u me -p hunter2 ghcr.io").await?;
    ensure!(
        output.err == "WARNING: Using --password via the CLI is insecure. Use --password-stdin.\n",
        "{output:?}"
    );
    ensure!(
        server
            .fails("registry login ghcr.io", 1)
            .await?
            .contains("--password-stdin")
    );
    let refused = server.fails("registry login -u me -p wrong ghcr.io", 1).await?;
    ensure!(refused.contains("incorrect username or password"), "{refused}");
    server
        .ok("registry login --unchecked -u me -p wrong unreachable.example")
        .await?;
    for line in [
        "secret inspect key",
        "secret inspect --pretty key",
        "registry ls --format json",
        "secret ls --format json",
    ] {
        ensure!(!server.ok(line).await?.contains("hunter2"), "{line}");
    }
    server
        .ok("service create -q --name web --update-monitor 50ms --secret key nginx")
        .await?;
    ensure!(server.fails("secret rm key", 1).await?.contains("web"));
    server.ok("service rm web").await?;
    let rotated = server.ok("secret rotate-key").await?;
    ensure!(rotated.contains("is in use"), "{rotated}");
    ensure!(server.ok("secret rm key").await? == "key\n");
    server.ok("registry logout ghcr.io").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn configs_show_what_is_in_them() -> Result<()> {
    let server = Server::start().await?;
    server.file("settings.conf", "a=1\n")?;
    server.ok("config create settings settings.conf").await?;
    let pretty = server.ok("config inspect --pretty settings").await?;
    ensure!(pretty.ends_with("Data:\na=1\n\n"), "{pretty}");
    ensure!(server.ok("config ls --format '{{.Name}}'").await? == "settings\n");
    ensure!(server.ok("config rm settings").await? == "settings\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_tokens_and_backups() -> Result<()> {
    let server = Server::start().await?;
    server
        .ok("service create -q --name web --update-monitor 50ms nginx:1")
        .await?;
    let url = server.ok("webhook create web ci").await?;
    ensure!(url.starts_with("https://mesh.example/v1/webhooks/"), "{url}");
    ensure!(server.ok("webhook disable web ci").await? == "ci\n");
    let listed = server.ok("webhook ls web").await?;
    ensure!(
        listed.contains("ci        false     ") && listed.contains("never       https://mesh.example/"),
        "{listed}"
    );
    ensure!(server.ok("webhook rm web ci").await? == "ci\n");

    let token = server
        .ok("token create ci --scope services:write,nodes:read --allow bind:/srv --ports 443,8000-8009 --expires 24h")
        .await?;
    ensure!(token.trim().len() > 20, "{token}");
    let tokens = server
        .ok("token ls --format '{{.Name}} {{.Scopes}} {{.Allow}} {{.Ports}} {{.ExpiresAt}}'")
        .await?;
    ensure!(
        tokens.starts_with("ci ") && tokens.contains("services:write bind:/srv 443,8000-8009 in 2"),
        "{tokens}"
    );
    ensure!(server.ok("token rm ci").await? == "ci\n");

    let name = server.ok("backup create").await?;
    ensure!(name.starts_with("manual-"), "{name}");
    ensure!(server.ok("backup ls -q").await? == name);
    let pretty = server
        .ok(&format!("backup inspect --pretty {}", name.trim()))
        .await?;
    ensure!(pretty.contains("Services:\n web\n"), "{pretty}");
    ensure!(
        server
            .fails(&format!("backup restore {}", name.trim()), 1)
            .await?
            .contains("--replace")
    );
    server.ok("service create -d --name late nginx").await?;
    let restore = format!("backup restore --replace {}", name.trim());
    let asked = server.run_with(&restore, "n\n").await?;
    ensure!(
        asked.code == Some(1) && asked.out.ends_with("not in it: late\n  - all changes since the backup was created\nAre you sure you want to continue? [y/N] "),
        "{asked:?}"
    );
    ensure!(asked.err.contains("nothing was changed"), "{asked:?}");
    ensure!(server.ok("service ls --format '{{.Name}}'").await? == "late\nweb\n");
    let answered = server.run_with(&restore, "y\n").await?;
    ensure!(
        answered.code == Some(0) && answered.out.ends_with(&name),
        "{answered:?}"
    );
    ensure!(server.ok("service ls --format '{{.Name}}'").await? == "web\n");
    ensure!(server.ok(&format!("{restore} --force")).await? == name);
    Ok(())
}
