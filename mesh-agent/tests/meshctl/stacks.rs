//! `meshctl stack`: compose files deployed, changed, pruned and removed.

use anyhow::{Result, ensure};

use crate::server::Server;

const FILE: &str = "
x-quick: &quick
  deploy: {update_config: {monitor: 50ms, parallelism: 0}, replicas: 2}
services:
  web:
    <<: *quick
    image: nginx:${TAG:-1}
    ports: ['8080:80']
    secrets: [key]
    configs: [settings]
    depends_on: [db]
    restart: always
  db:
    image: postgres:16
    deploy: {update_config: {monitor: 50ms}}
secrets: {key: {file: ./key}}
configs: {settings: {content: a=1}}
";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stack_is_deployed_changed_pruned_and_removed() -> Result<()> {
    let server = Server::start().await?;
    server.file("compose.yml", FILE)?;
    server.file("key", "hunter2")?;
    let output = server.run("stack deploy -c compose.yml shop").await?;
    ensure!(output.code == Some(0), "{output:?}");
    ensure!(
        output.out.starts_with(
            "Creating secret shop_key\nCreating config shop_settings\nCreating service shop_db\nCreating service shop_web\n"
        ),
        "{output:?}"
    );
    ensure!(
        output
            .err
            .starts_with("WARNING: ignoring keys that have no effect here: services.web.restart\n"),
        "{output:?}"
    );
    ensure!(output.out.contains("2 out of 2 tasks"), "{output:?}");
    ensure!(server.ok("stack ls").await? == "NAME      SERVICES\nshop      2\n");
    let services = server
        .ok("stack services shop --format '{{.Name}} {{.Replicas}} {{.Ports}}'")
        .await?;
    ensure!(
        services == "shop_db 1/1 \nshop_web 2/2 *:8080->80/tcp\n",
        "{services}"
    );
    let tasks = server.ok("stack ps shop --format '{{.Name}}'").await?;
    ensure!(tasks == "shop_db.1\nshop_web.1\nshop_web.2\n", "{tasks}");

    // The same again changes nothing.
    let output = server.run("stack deploy -c compose.yml shop").await?;
    ensure!(
        output.code == Some(0) && output.out.contains("Updating service shop_web (id: "),
        "{output:?}"
    );
    ensure!(server.ok("service history shop_web -q").await?.lines().count() == 1);

    server.file(
        "web.yml",
        "services: {web: {image: 'nginx:2', deploy: {replicas: 1, update_config: {monitor: 50ms}}}}",
    )?;
    let output = server.run("stack deploy -c web.yml --prune shop").await?;
    ensure!(
        output.code == Some(0) && output.out.contains("Removing service shop_db"),
        "{output:?}"
    );
    let services = server
        .ok("stack services shop --format '{{.Name}} {{.Image}} {{.Replicas}}'")
        .await?;
    ensure!(services == "shop_web nginx:2 1/1\n", "{services}");

    server.file("key", "a longer one")?;
    let error = server.fails("stack deploy -c compose.yml shop", 1).await?;
    ensure!(
        error.contains("secret shop_key exists with other content") && !error.contains("longer"),
        "{error}"
    );

    let output = server.run("stack rm shop").await?;
    ensure!(output.code == Some(0), "{output:?}");
    for line in [
        "Removing service shop_web",
        "Removing secret shop_key",
        "Removing config shop_settings",
    ] {
        ensure!(output.out.contains(line), "{output:?}");
    }
    ensure!(server.ok("stack ls -q").await?.is_empty() && server.ok("secret ls -q").await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_file_asks_for_in_vain_changes_nothing() -> Result<()> {
    let server = Server::start().await?;
    server.file("bad.yml", "services: {web: {image: nginx, privileged: true}}")?;
    let error = server.fails("stack deploy -c bad.yml shop", 1).await?;
    ensure!(
        error.contains("meshctl: services.web.privileged: this is not supported"),
        "{error}"
    );
    server.file(
        "external.yml",
        "services: {web: {image: nginx, secrets: [key]}}\nsecrets: {key: {external: true}}",
    )?;
    let error = server.fails("stack deploy -c external.yml shop", 1).await?;
    ensure!(
        error.contains("secret key is external and does not exist"),
        "{error}"
    );
    server.fails("stack deploy -c missing.yml shop", 1).await?;
    server.fails("stack deploy shop", 1).await?;
    ensure!(server.ok("service ls -q").await?.is_empty());
    let output = server.run("stack services shop").await?;
    ensure!(
        output.code == Some(0) && output.err == "Nothing found in stack: shop\n",
        "{output:?}"
    );
    let from_stdin = server
        .run_with("stack deploy -d -c - shop", "services: {web: {image: nginx}}")
        .await?;
    ensure!(from_stdin.out == "Creating service shop_web\n", "{from_stdin:?}");
    Ok(())
}
