//! A registry in a lab that requires a password, with images in it.

use std::{
    fs::{self, File},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use xtask::{
    command::run_with_input,
    lab::{Lab, engine::SERVER_IMAGE, wait_until},
};

/// Its address: Docker uses plain HTTP with registries on its own machine, and TLS with others.
pub(crate) const ADDRESS: &str = "127.0.0.1:5000";
/// The image, by its tag.
pub(crate) const IMAGE: &str = "127.0.0.1:5000/team/web:stable";
/// The only user.
pub(crate) const USER: &str = "carol";
/// Its base64 has characters that differ between the alphabets.
pub(crate) const PASSWORD: &str = "op~n?ses~me>4711";
/// The file with the registry's pid as its node counts.
const PID_FILE: &str = "/run/registry.pid";
/// The minimum: this password protects nothing.
const BCRYPT_COST: u32 = 4;
const NODE: &str = "node1";

/// The registry of a lab's first node.
#[derive(Debug)]
pub(crate) struct Registry<'a> {
    lab: &'a Lab,
    folder: PathBuf,
}

impl<'a> Registry<'a> {
    /// Starts it empty.
    pub(crate) fn start(lab: &'a Lab) -> Result<Self> {
        let folder = lab.state().data.join("registry");
        fs::create_dir_all(&folder)?;
        let hash = bcrypt::hash(PASSWORD, BCRYPT_COST).context("could not hash the password")?;
        fs::write(folder.join("htpasswd"), format!("{USER}:{hash}\n"))?;
        // YAML is a superset of JSON.
        let configuration = json!({
            "version": "0.1",
            "storage": {"filesystem": {"rootdirectory": folder.join("images")}},
            "http": {"addr": ADDRESS},
            "auth": {"htpasswd": {"realm": "lab", "path": folder.join("htpasswd")}}
        });
        fs::write(folder.join("config.yml"), configuration.to_string())?;
        let registry = Self { lab, folder };
        registry.resume()?;
        Ok(registry)
    }

    /// Starts it again with its images.
    pub(crate) fn resume(&self) -> Result<()> {
        let script = format!("echo $$ > {PID_FILE}; exec docker-registry serve \"$1\"");
        let configuration = self.file("config.yml")?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))?;
        // It ends with its node's namespaces at the latest.
        self.lab
            .command(NODE, ["sh", "-euc", &script, "sh", &configuration])?
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()?;
        wait_until("the registry", Duration::from_secs(20), || {
            let reply = self.lab.connect(NODE, ADDRESS)?;
            if reply.outcome != "answered" {
                let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
                let last = log.lines().last().unwrap_or_default();
                bail!(
                    "{}; `cargo xtask setup` installs it; end of its log: {last}",
                    reply.error
                );
            }
            Ok(())
        })
    }

    /// Kills it, as in an outage.
    pub(crate) fn stop(&self) -> Result<()> {
        self.lab
            .run(NODE, ["sh", "-euc", &format!("kill -KILL $(cat {PID_FILE})")])
            .map(drop)
    }

    /// Pushes an image of a release, removes it from the engine, and returns its digest.
    pub(crate) fn push(&self, release: &str) -> Result<String> {
        let folder = self.file("docker-cli")?;
        let mut login = self
            .lab
            .command(NODE, ["docker", "--config", &folder, "login", "--username", USER])?;
        login.args(["--password-stdin", ADDRESS]);
        run_with_input(&mut login, PASSWORD.as_bytes())?;
        let container = self.lab.docker(NODE, ["create", SERVER_IMAGE])?;
        let change = format!("ENV RELEASE={release}");
        self.lab
            .docker(NODE, ["commit", "--change", &change, &container, IMAGE])?;
        self.lab.docker(NODE, ["rm", &container])?;
        self.lab
            .docker(NODE, ["--config", &folder, "push", "--quiet", IMAGE])?;
        let format = "{{index .RepoDigests 0}}";
        let name = self
            .lab
            .docker(NODE, ["image", "inspect", "--format", format, IMAGE])?;
        let (_, digest) = name
            .split_once('@')
            .with_context(|| format!("no digest in {name}"))?;
        ensure!(digest.starts_with("sha256:"), "{name}");
        self.forget()?;
        Ok(digest.to_owned())
    }

    /// Removes the tag from the engine.
    pub(crate) fn forget(&self) -> Result<()> {
        self.lab.docker(NODE, ["rmi", IMAGE]).map(drop)
    }

    fn file(&self, name: &str) -> Result<String> {
        let path = self.folder.join(name);
        let text = path.to_str().map(str::to_owned);
        text.context("the lab's path is not UTF-8")
    }
}
