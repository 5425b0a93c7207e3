//! The commands of a docker user's session, from an empty engine to an empty engine. Each is run twice: as it
//! is, and with `meshctl` instead of `docker`. Plain data.

/// One step of the session.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    /// A shell command, whose outcome is compared.
    Type(&'static str),
    /// A shell command that is repeated until it prints this.
    Until(&'static str, &'static str),
}

use Step::{Type, Until};

/// A service with the usual settings.
const CREATE: &str = "docker service create --detach --no-resolve-image --name web --replicas 2 -p 9200:80 \
     --label tier=front --label plain --container-label role=web --env MODE=fast --env LEVEL=2 \
     --constraint node.role==manager --placement-pref spread=node.labels.zone --replicas-max-per-node 4 \
     --limit-cpu 0.5 --limit-memory 64M --limit-pids 50 --reserve-cpu 0.1 --reserve-memory 16M \
     --secret key --config source=settings,target=/etc/settings,mode=0440 --mount type=tmpfs,target=/scratch \
     --update-delay 1s --update-parallelism 2 --update-order start-first --update-monitor 1s \
     --update-failure-action rollback --rollback-delay 1m --rollback-monitor 2s --rollback-order start-first \
     --restart-delay 1s --restart-condition any --restart-max-attempts 3 --stop-grace-period 1s --stop-signal SIGTERM \
     --health-cmd 'busybox true' --health-interval 500ms --health-retries 4 --health-timeout 5s --health-start-period 1s \
     --log-driver json-file --log-opt max-size=1m --cap-add NET_ADMIN --cap-drop CHOWN --user 0 --workdir /tmp \
     --hostname '{{.Task.Name}}' mesh-lab/server:latest serve";

/// A service that says something and stays.
const TALK: &str = "docker service create --detach --no-resolve-image --name talk --stop-grace-period 1s \
     --entrypoint '/bin/busybox sh -c' mesh-lab/server:latest 'echo out; echo err >&2; exec sleep 1000'";

/// The whole session.
pub(crate) const SESSION: &[Step] = &[
    // Nothing is there yet.
    Type("docker service ls"),
    Type("docker service ls -q"),
    Type("docker service ls --format '{{.Name}}'"),
    Type("docker stack ls"),
    Type("docker secret ls"),
    Type("docker config ls"),
    Type("docker node ps"),
    // Secrets and configs.
    Type("printf sesame | docker secret create --label tier=front --label plain key -"),
    Type("printf 'listen 80' | docker config create --label tier=front settings -"),
    Type("printf sesame | docker secret create key -"),
    Type("printf again | docker config create settings -"),
    Type("docker secret ls"),
    Type("docker secret ls -q"),
    Type("docker secret ls --filter name=ke"),
    Type("docker secret ls --filter label=tier=back"),
    Type("docker secret ls --format json"),
    Type(r#"docker secret ls --format '{{.Name}} {{.Driver}} {{.Label "tier"}}'"#),
    Type(r"docker secret ls --format 'table {{.Name}}\t{{.CreatedAt}}'"),
    Type("docker secret inspect key"),
    Type("docker secret inspect --pretty key"),
    Type("docker secret inspect --format '{{.Spec.Name}} {{json .Spec.Labels}}' key"),
    Type("docker secret inspect nothing"),
    Type("docker config ls"),
    Type("docker config ls -q"),
    Type("docker config ls --format json"),
    Type(r#"docker config ls --format '{{.Name}} {{.Label "tier"}}'"#),
    Type("docker config inspect settings"),
    Type("docker config inspect --pretty settings"),
    Type("docker config inspect --format '{{json .Spec.Data}}' settings"),
    // Services.
    Type(CREATE),
    Type(CREATE),
    Type(TALK),
    Until(
        "docker service ls --format '{{.Name}} {{.Replicas}}'",
        "talk 1/1\nweb 2/2 (max 4 per node)\n",
    ),
    Type("docker service ls"),
    Type("docker service list -q"),
    Type("docker service ls --filter name=we"),
    Type("docker service ls --filter label=tier=front --filter mode=replicated"),
    Type("docker service ls --filter mode=global"),
    Type("docker service ls --format json"),
    Type("docker service ls --format '{{.Name}}: {{.Mode}} {{.Replicas}} {{.Image}} {{.Ports}}'"),
    Type(r"docker service ls --format 'table {{.Name}}\t{{upper .Mode}}\t{{.Ports}}'"),
    Type("docker service ls --format raw"),
    Type("docker service ps web"),
    Type("docker service ps web talk"),
    Type("docker service ps --no-trunc web"),
    Type("docker service ps -q web"),
    Type("docker service ps --no-resolve --format '{{.Image}} {{.DesiredState}}' web"),
    Type("docker service ps --filter desired-state=running --filter name=web.1 web"),
    Type("docker service ps --filter desired-state=shutdown web"),
    Type("docker service ps --filter node=node1 web"),
    Type("docker service ps --format json web"),
    Type("docker service ps web nothing"),
    Type("docker service inspect web"),
    Type("docker service inspect --pretty web"),
    Type("docker service inspect --pretty web talk"),
    Type("docker service inspect --format '{{.Spec.Name}} {{.Spec.Mode.Replicated.Replicas}}' web talk"),
    Type("docker service inspect --format '{{json .Spec.Labels}}' web"),
    Type("docker service inspect --format '{{.Spec.TaskTemplate.ContainerSpec.Image}}' web"),
    Type("docker service inspect --format '{{json .Endpoint.Ports}}' web"),
    Type(
        "docker service inspect --format '{{range .Endpoint.Ports}}{{.PublishedPort}}/{{.Protocol}}{{end}}' web",
    ),
    Type("docker service inspect --format '{{.Spec.TaskTemplate.Resources.Limits.MemoryBytes}}' web"),
    Type(
        "docker service inspect --format '{{.Spec.UpdateConfig.Parallelism}} {{.Spec.UpdateConfig.Delay}}' web",
    ),
    Type("docker service inspect --format json web"),
    Type("docker service inspect web nothing"),
    Type("docker service inspect nothing"),
    // Its output.
    Until("docker service logs talk 2>&1 | wc -l", "2\n"),
    Type("docker service logs talk"),
    Type("docker service logs --raw talk"),
    Type("docker service logs --no-task-ids talk"),
    Type("docker service logs --timestamps --tail 2 talk"),
    Type("docker service logs nothing"),
    // Changes.
    Type("docker service update --detach --env-rm LEVEL --env-add MODE=slow --label-add tier=back web"),
    Until(
        "docker service inspect --format '{{.UpdateStatus.State}}' web",
        "completed\n",
    ),
    Type("docker service ps --filter desired-state=running web"),
    Type("docker service inspect --pretty web"),
    Type("docker service scale --detach web=3"),
    Until(
        "docker service ls --filter name=web --format '{{.Replicas}}'",
        "3/3 (max 4 per node)\n",
    ),
    Type("docker service scale --detach web=1 talk=2"),
    Until(
        "docker service ls --format '{{.Name}} {{.Replicas}}'",
        "talk 2/2\nweb 1/1 (max 4 per node)\n",
    ),
    Type("docker service rollback --detach web"),
    Type("docker service update --detach --force talk"),
    Type(
        "docker service create --no-resolve-image --name steady --update-monitor 1s --stop-grace-period 1s mesh-lab/server:latest",
    ),
    // Nodes.
    Type("docker node ls"),
    Type("docker node ls -q"),
    Type("docker node ls --filter role=manager"),
    Type("docker node ls --filter name=other"),
    Type("docker node ls --format json"),
    Type(
        "docker node ls --format '{{.Hostname}} {{.Status}} {{.Availability}} {{.ManagerStatus}} {{.Self}}'",
    ),
    Type("docker node update --label-add zone=a node1"),
    Type("docker node ls --filter node.label=zone=a"),
    Type("docker node ps --filter name=steady"),
    Type("docker node ps --format '{{.Name}} {{.Node}}' --filter name=steady self"),
    Type("docker node inspect node1"),
    Type("docker node inspect --pretty self"),
    Type(
        "docker node inspect --format '{{.Description.Hostname}} {{.Spec.Availability}} {{.Status.State}}' node1",
    ),
    Type("docker node inspect nothing"),
    Type("docker node update --availability pause node1"),
    Type("docker node ls"),
    Type("docker node update --availability active --label-rm zone node1"),
    Type("docker node rm node1"),
    // Ends of services.
    Type("docker service rm steady talk nothing"),
    Type("docker secret rm key"),
    Type("docker service rm web"),
    // Stacks.
    Type("docker stack deploy --detach --resolve-image never -c compose.yml shop"),
    Until(
        "docker stack services --format '{{.Name}} {{.Replicas}}' shop",
        "shop_api 1/1\nshop_front 2/2\n",
    ),
    Type("docker stack ls"),
    Type("docker stack ls --format json"),
    Type("docker stack ls --format '{{.Name}} {{.Services}}'"),
    Type("docker stack ps shop"),
    Type("docker stack ps -q shop"),
    Type("docker stack ps --no-trunc --filter name=shop_api shop"),
    Type("docker stack ps --format '{{.Name}} {{.DesiredState}}' shop"),
    Type("docker stack services shop"),
    Type("docker stack services -q shop"),
    Type("docker stack services --filter name=shop_front shop"),
    Type("docker stack services --format json shop"),
    Type("docker stack deploy --detach --resolve-image never -c compose.yml shop"),
    Type("docker stack ps nothing"),
    Type("docker stack services nothing"),
    Type("docker stack rm nothing"),
    Type("docker stack rm shop"),
    Type("docker secret rm key nothing"),
    Type("docker config rm settings"),
    Until(
        "docker service ls -q; docker config ls -q; docker secret ls -q",
        "",
    ),
    // Invalid commands.
    Type("docker service"),
    Type("docker service nothing"),
    Type("docker nothing"),
    Type("docker service ls extra"),
    Type("docker service ls --nothing"),
    Type("docker service ls --filter name"),
    Type("docker service ls --filter colour=red"),
    Type("docker service ls --format '{{.Nothing'"),
    Type("docker service ps"),
    Type("docker service ps --filter colour=red web"),
    Type("docker service create --update-order sideways mesh-lab/server:latest"),
    Type("docker service create --restart-condition sometimes mesh-lab/server:latest"),
    Type("docker node update --availability gone node1"),
    Type("docker service inspect"),
    Type("docker service inspect --pretty --format x web"),
    Type("docker service create"),
    Type("docker service create --nothing mesh-lab/server:latest"),
    Type("docker service create --env"),
    Type("docker service create --replicas many mesh-lab/server:latest"),
    Type("docker service create --limit-memory lots mesh-lab/server:latest"),
    Type("docker service create --publish x mesh-lab/server:latest"),
    Type("docker service create --mount x mesh-lab/server:latest"),
    Type("docker service create --mode best mesh-lab/server:latest"),
    Type("docker service create --mode global --replicas 2 mesh-lab/server:latest"),
    Type("docker service create --constraint 'node.id ~ 1' mesh-lab/server:latest"),
    Type("docker service create --secret nothing mesh-lab/server:latest"),
    Type("docker service create --name 'not a name' mesh-lab/server:latest"),
    Type("docker service update"),
    Type("docker service update one two"),
    Type("docker service update --force nothing"),
    Type("docker service scale"),
    Type("docker service scale web"),
    Type("docker service scale web=many"),
    Type("docker service scale nothing=2"),
    Type("docker service rollback"),
    Type("docker service rollback nothing"),
    Type("docker service rm"),
    Type("docker service rm nothing"),
    Type("docker service logs"),
    Type("docker service logs one two"),
    Type("docker node inspect"),
    Type("docker node update"),
    Type("docker node update --label-add zone=a nothing"),
    Type("docker node ps nothing"),
    Type("docker stack deploy shop"),
    Type("docker stack deploy -c missing.yml shop"),
    Type("docker stack deploy -c compose.yml"),
    Type("docker stack rm"),
    Type("docker secret create"),
    Type("docker secret create key"),
    Type("docker secret create key missing"),
    Type("printf '' | docker secret create key -"),
    Type("docker secret inspect"),
    Type("docker secret rm nothing"),
    Type("docker config create settings"),
    Type("docker config create settings missing"),
    Type("docker config rm nothing"),
];

/// The file of the stack.
pub(crate) const COMPOSE: &str = r#"version: "3.8"
services:
  front:
    image: mesh-lab/server:latest
    stop_grace_period: 1s
    ports: ["9300:80"]
    configs: [page]
    deploy: {replicas: 2, update_config: {order: start-first}}
  api:
    image: mesh-lab/server:latest
    stop_grace_period: 1s
    environment: {MODE: fast}
configs:
  page: {file: ./page.txt}
"#;
