//! Swarm services in the lab. Depends on `engine` and `wait`.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::{Lab, engine::SERVER_IMAGE, wait::wait_until};

/// A task of a service that runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceTask {
    /// Its name with its slot, e.g. `web.3`.
    pub name: String,
    /// The node it runs on.
    pub node: String,
}

impl Lab {
    /// Creates a service of the test server and waits until all its tasks run. `ports` are as `-p` takes
    /// them: `9200:80`, `9300:81/udp`. The server answers HTTP on port 80 and echoes UDP on port 81.
    ///
    /// # Errors
    /// When the engine refuses it or its tasks do not run in time.
    pub fn create_service(&self, name: &str, replicas: usize, ports: &[&str], more: &[&str]) -> Result<()> {
        let count = replicas.to_string();
        let mut arguments = vec![
            "service",
            "create",
            "--detach",
            "--no-resolve-image",
            "--name",
            name,
            "--replicas",
            &count,
        ];
        for port in ports {
            arguments.extend(["-p", port]);
        }
        arguments.extend([
            "--env",
            "TASK={{.Service.Name}}.{{.Task.Slot}}",
            "--restart-delay",
            "500ms",
        ]);
        arguments.extend(["--stop-grace-period", "3s"]);
        arguments.extend(more);
        arguments.push(SERVER_IMAGE);
        self.docker("node1", arguments)?;
        self.wait_for_tasks(name, replicas).map(drop)
    }

    /// Changes how many tasks a service has and returns at once.
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn scale(&self, name: &str, replicas: usize) -> Result<()> {
        self.docker(
            "node1",
            ["service", "scale", "--detach", &format!("{name}={replicas}")],
        )
        .map(drop)
    }

    /// Waits until exactly this many tasks run and no other is on its way in or out; returns them in
    /// the order of their names.
    ///
    /// # Errors
    /// When that is not so within 60 s.
    pub fn wait_for_tasks(&self, name: &str, replicas: usize) -> Result<Vec<ServiceTask>> {
        wait_until(
            &format!("{replicas} running tasks of {name}"),
            Duration::from_secs(60),
            || {
                let tasks = self.running_tasks(name)?;
                if tasks.len() != replicas {
                    bail!(
                        "running: {tasks:?}; all: {}",
                        self.docker("node1", ["service", "ps", "--no-trunc", name])?
                    );
                }
                Ok(tasks)
            },
        )
    }

    /// The tasks of a service that run and are meant to run.
    ///
    /// # Errors
    /// When the engine cannot list them.
    pub fn running_tasks(&self, name: &str) -> Result<Vec<ServiceTask>> {
        let format = "{{.Name}} {{.Node}} {{.DesiredState}} {{.CurrentState}}";
        let filter = [
            "service",
            "ps",
            "--filter",
            "desired-state=running",
            "--format",
            format,
            name,
        ];
        let list = self.docker("node1", filter)?;
        let mut tasks: Vec<ServiceTask> = list.lines().filter_map(parse_task).collect();
        tasks.sort();
        Ok(tasks)
    }

    /// The id of the container of a task that runs. A container that the engine still stops is not of such
    /// a task, although the engine lists it.
    ///
    /// # Errors
    /// When the task's node has no container for it.
    pub fn container_of(&self, task: &ServiceTask) -> Result<String> {
        // The newest container of the slot is listed first.
        let filter = format!("name=^{}\\.", task.name.replace('.', "\\."));
        let list = self.docker(&task.node, ["ps", "--quiet", "--filter", &filter])?;
        let first = list.lines().next();
        first
            .map(str::to_owned)
            .with_context(|| format!("{} has no container for {}", task.node, task.name))
    }

    /// Removes a service, if it is there, and waits until its containers are gone.
    ///
    /// # Errors
    /// When they are not gone within 60 s.
    pub fn remove_service(&self, name: &str) -> Result<()> {
        let filter = format!("name={name}");
        let list = self.docker(
            "node1",
            ["service", "ls", "--filter", &filter, "--format", "{{.Name}}"],
        )?;
        if list.lines().any(|line| line == name) {
            self.docker("node1", ["service", "rm", name])?;
        }
        let label = format!("label=com.docker.swarm.service.name={name}");
        for node in self.nodes() {
            wait_until(
                &format!("the end of {name} on {node}"),
                Duration::from_secs(60),
                || match self
                    .docker(node, ["ps", "--all", "--quiet", "--filter", &label])?
                    .lines()
                    .count()
                {
                    0 => Ok(()),
                    count => bail!("{count} containers are left"),
                },
            )?;
        }
        Ok(())
    }
}

fn parse_task(line: &str) -> Option<ServiceTask> {
    let mut fields = line.split(' ');
    let task = ServiceTask {
        name: fields.next()?.to_owned(),
        node: fields.next()?.to_owned(),
    };
    (fields.next()? == "Running" && fields.next()? == "Running").then_some(task)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tasks_that_run_and_are_meant_to_count() {
        assert_eq!(
            parse_task("web.1 node2 Running Running 2 seconds ago"),
            Some(ServiceTask {
                name: "web.1".into(),
                node: "node2".into()
            })
        );
        assert_eq!(parse_task("web.1 node2 Running Preparing 2 seconds ago"), None);
        assert_eq!(parse_task("web.1 node2 Shutdown Running 2 seconds ago"), None);
    }
}
