//! `service ls` and `stack services`: docker's columns. Pure.

use mesh_orchestrator::{
    api::types::ServiceView,
    objects::EndpointPort,
    spec::{Protocol, PublishMode, ServiceMode},
};
use serde_json::Value;

use super::filter::Filter;
use crate::meshctl::output::{
    Layout,
    people::{image, natural, short_id},
};

/// Docker's fields and columns.
pub(crate) const LAYOUT: Layout = Layout {
    fields: &[
        ("ID", "ID"),
        ("Name", "NAME"),
        ("Mode", "MODE"),
        ("Replicas", "REPLICAS"),
        ("Image", "IMAGE"),
        ("Ports", "PORTS"),
    ],
    table: r"{{.ID}}\t{{.Name}}\t{{.Mode}}\t{{.Replicas}}\t{{.Image}}\t{{.Ports}}",
    quiet: "{{.ID}}",
    raw: &[
        ("id", "ID"),
        ("name", "Name"),
        ("mode", "Mode"),
        ("replicas", "Replicas"),
        ("image", "Image"),
        ("ports", "Ports"),
    ],
};

/// What services can be filtered by.
pub(crate) const FILTERS: [&str; 4] = ["id", "label", "mode", "name"];

/// One row for each service that passes, by name.
pub(crate) fn rows(mut services: Vec<ServiceView>, filter: &Filter) -> Vec<Value> {
    services.retain(|service| {
        filter.begins("id", service.id.as_str())
            && filter.begins("name", &service.spec.name)
            && filter.labels("label", &service.spec.labels)
            && filter.any("mode", |mode| mode.replace('-', " ") == service.spec.mode.name())
    });
    services.sort_by(|left, right| natural(&left.spec.name, &right.spec.name));
    services.iter().map(row).collect()
}

fn row(service: &ServiceView) -> Value {
    LAYOUT.row([
        short_id(service.id.as_str()).into(),
        service.spec.name.as_str().into(),
        service.spec.mode.name().into(),
        replicas(service).into(),
        image(&service.spec.task_template.container_spec.image).into(),
        ports(&service.ports).into(),
    ])
}

/// `2/3`, with what docker says besides of jobs and of a limit per node.
pub(crate) fn replicas(service: &ServiceView) -> String {
    let (running, desired) = (service.running, service.desired);
    let completed = service.completed.unwrap_or(0);
    let most = service.spec.task_template.placement.max_replicas_per_node;
    match service.spec.mode {
        ServiceMode::ReplicatedJob(job) => {
            format!(
                "{running}/{desired} ({completed}/{} completed)",
                job.total_completions
            )
        }
        ServiceMode::GlobalJob(_) => {
            format!(
                "{running}/{desired} ({completed}/{} completed)",
                desired + completed
            )
        }
        ServiceMode::Replicated(_) if most > 0 => format!("{running}/{desired} (max {most} per node)"),
        ServiceMode::Replicated(_) | ServiceMode::Global(_) => format!("{running}/{desired}"),
    }
}

/// A run of published ports, to one target port or to as many in a row.
struct Run {
    protocol: Protocol,
    published: (u16, u16),
    target: (u16, u16),
}

/// Ports that every node answers on: `*:80->8080/tcp, *:8000-8002->90-92/udp`.
fn ports(ports: &[EndpointPort]) -> String {
    let mut ingress: Vec<&EndpointPort> = ports
        .iter()
        .filter(|port| port.publish_mode == PublishMode::Ingress)
        .collect();
    ingress.sort_by_key(|port| (port.protocol, port.published_port));
    let mut runs: Vec<Run> = Vec::new();
    for port in ingress {
        let (published, target) = (port.published_port, port.target_port);
        let last = runs.last_mut().filter(|run| {
            run.protocol == port.protocol
                && published == run.published.1.saturating_add(1)
                && (target == run.target.1.saturating_add(1)
                    || (target == run.target.1 && run.target.0 == run.target.1))
                // A run of published ports to one target does not become one to several.
                && !(target != run.target.1
                    && run.target.0 == run.target.1
                    && run.published.0 != run.published.1)
        });
        match last {
            Some(run) => {
                run.published.1 = published;
                run.target.1 = target;
            }
            None => runs.push(Run {
                protocol: port.protocol,
                published: (published, published),
                target: (target, target),
            }),
        }
    }
    let range = |(first, last): (u16, u16)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let texts: Vec<String> = runs
        .iter()
        .map(|run| {
            format!(
                "*:{}->{}/{}",
                range(run.published),
                range(run.target),
                run.protocol
            )
        })
        .collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meshctl::{
        output::Format,
        views::testing::{port, service},
    };

    #[test]
    fn the_table_is_dockers() {
        let mut services = vec![service("web-10"), service("web-2"), service("job")];
        services[0].ports = vec![port(80, 8080), port(81, 8081)];
        let spec = std::sync::Arc::make_mut(&mut services[2].spec);
        spec.mode = ServiceMode::ReplicatedJob(mesh_orchestrator::spec::ReplicatedJob {
            max_concurrent: 2,
            total_completions: 5,
        });
        services[2].completed = Some(3);
        let text = LAYOUT
            .render(&rows(services, &Filter::default()), &Format::Table, false)
            .unwrap();
        assert_eq!(
            text,
            "ID             NAME      MODE             REPLICAS              IMAGE        PORTS\n\
             0123456789ab   job       replicated job   1/2 (3/5 completed)   nginx:1.27   \n\
             0123456789ab   web-2     replicated       1/2                   nginx:1.27   \n\
             0123456789ab   web-10    replicated       1/2                   nginx:1.27   *:80-81->8080-8081/tcp\n"
        );
    }

    #[test]
    fn a_limit_per_node_is_said() {
        let mut view = service("web");
        let spec = std::sync::Arc::make_mut(&mut view.spec);
        std::sync::Arc::make_mut(&mut spec.task_template)
            .placement
            .max_replicas_per_node = 2;
        assert_eq!(replicas(&view), "1/2 (max 2 per node)");
    }

    #[test]
    fn ports_in_a_row_are_one_range() {
        for (given, expected) in [
            (vec![(80, 80), (81, 80)], "*:80-81->80/tcp"),
            (vec![(80, 80), (81, 81)], "*:80-81->80-81/tcp"),
            (
                vec![(80, 80), (81, 81), (82, 80)],
                "*:80-81->80-81/tcp, *:82->80/tcp",
            ),
            (vec![(80, 80), (82, 82)], "*:80->80/tcp, *:82->82/tcp"),
            (vec![(90, 80), (80, 80)], "*:80->80/tcp, *:90->80/tcp"),
            (vec![], ""),
        ] {
            let given: Vec<_> = given
                .into_iter()
                .map(|(published, target)| port(published, target))
                .collect();
            assert_eq!(ports(&given), expected);
        }
        let mut host = port(80, 80);
        host.publish_mode = PublishMode::Host;
        assert_eq!(ports(&[host]), "");
    }

    #[test]
    fn filters_choose() {
        let filter = |text: &str| Filter::parse(&[text.to_owned()], &FILTERS).unwrap();
        let names = |text: &str| rows(vec![service("web"), service("db")], &filter(text)).len();
        assert_eq!(names("name=we"), 1);
        assert_eq!(names("mode=replicated"), 2);
        assert_eq!(names("mode=global"), 0);
        assert_eq!(names("label=tier=front"), 2);
        assert_eq!(names("id=0123"), 2);
    }
}
