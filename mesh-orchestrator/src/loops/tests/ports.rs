//! Published ports of several services.

use crate::{
    commands::{self, CommandError},
    loops::testing::{Cluster, spec},
    objects::ObjectChange,
    spec::ServiceSpec,
};

fn publishing(name: &str, mode: &str) -> ServiceSpec {
    spec(name, |json| {
        json["endpoint_spec"] = serde_json::json!({
            "ports": [{"target_port": 80, "published_port": 8080, "publish_mode": mode}]
        });
    })
}

fn create(cluster: &Cluster, spec: ServiceSpec) -> Result<Vec<ObjectChange>, CommandError> {
    commands::create_service(cluster.state(), "second".into(), spec, cluster.now)
}

#[test]
fn a_port_is_not_published_on_hosts_and_by_the_mesh() {
    for (first, second, is_refused) in [
        ("host", "ingress", true),
        ("ingress", "host", true),
        ("ingress", "ingress", true),
        // Their tasks run on different nodes.
        ("host", "host", false),
    ] {
        let mut cluster = Cluster::of(2);
        cluster.create(publishing("first", first));
        let created = create(&cluster, publishing("second", second));
        assert_eq!(created.is_err(), is_refused, "{first}, {second}");
        if let Err(error) = created {
            let error = format!("{error:?}");
            assert!(
                error.contains("8080") && error.contains("service first"),
                "{error}"
            );
        }
    }
}

#[test]
fn a_service_may_change_how_it_publishes_its_own_port() {
    let mut cluster = Cluster::of(1);
    cluster.create(publishing("web", "ingress"));
    for mode in ["host", "ingress"] {
        cluster.update("web", |json| {
            json["endpoint_spec"]["ports"][0]["publish_mode"] = mode.into();
        });
        assert_eq!(cluster.service("web").ports[0].published_port, 8080);
    }
}
