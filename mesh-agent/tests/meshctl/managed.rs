//! `meshctl managed`: the agents as a service of their own.

use anyhow::{Result, ensure};
use mesh_orchestrator::spec::TaskRuntime;

use crate::server::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agents_are_deployed_updated_listed_and_left_alone() -> Result<()> {
    let server = Server::start().await?;
    let output = server.fails("managed deploy load-balancer", 1).await?;
    ensure!(output.contains("--image"), "{output}");
    let output = server
        .run("managed deploy load-balancer --image mesh-agent:2")
        .await?;
    ensure!(
        output.code == Some(0) && output.out.starts_with("load-balancer\n"),
        "{output:?}"
    );
    ensure!(
        output.out.contains("overall progress: 1 out of 1 tasks\n"),
        "{output:?}"
    );
    server.cluster.read(|state| {
        let service = state.service_named("load-balancer");
        ensure!(service.is_some_and(|service| service.spec.task_template.runtime == TaskRuntime::Agent));
        Ok(())
    })?;
    let listed = server.ok("managed ls").await?;
    ensure!(
        listed
            == "NAME            IMAGE          REPLICAS   UPDATE\n\
                load-balancer   mesh-agent:2   1/1        \n",
        "{listed:?}"
    );
    // Once more is another revision, so that a tag that means something else by now is looked up.
    server.ok("managed deploy load-balancer -q").await?;
    let history = server
        .ok("service history load-balancer --format '{{.Revision}}'")
        .await?;
    ensure!(history.lines().count() == 2, "{history}");
    // One that cannot run is a failure, though the nodes go on.
    let output = server
        .fails("managed deploy load-balancer --image broken:1", 1)
        .await?;
    ensure!(
        output.contains("rolled back") && output.contains("alpha: no such image: broken:1"),
        "{output}"
    );
    let listed = server.ok("managed ls --format '{{.Image}} {{.Update}}'").await?;
    ensure!(listed == "mesh-agent:2 rollback completed\n", "{listed}");

    ensure!(server.ok("managed rm load-balancer").await? == "load-balancer\n");
    ensure!(server.ok("managed ls -q").await?.is_empty());
    let output = server.fails("managed rm load-balancer", 1).await?;
    ensure!(output.contains("not deployed"), "{output}");

    server
        .ok("service create -q --name load-balancer --update-monitor 50ms haproxy")
        .await?;
    let output = server
        .fails("managed deploy load-balancer --image mesh-agent:2", 1)
        .await?;
    ensure!(output.contains("a service of containers"), "{output}");
    Ok(())
}
