//! An etcd cluster in a lab: a member on each node, with TLS between members and to agents.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use xtask::lab::{Lab, wait_until};

use crate::certificates::Authority;

/// The file with a member's pid as its node counts.
const PID_FILE: &str = "/run/etcd.pid";
/// A member's data as its node sees it: in memory, as a disk that others write to makes etcd so slow that it
/// elects another leader.
const DATA: &str = "/run/etcd.data";
/// How long the members may take to find each other.
const BOOT: Duration = Duration::from_secs(60);

/// The members' certificates and data.
#[derive(Debug)]
pub(crate) struct Etcd {
    folder: PathBuf,
}

impl Etcd {
    /// Starts a member on each node of a lab.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let folder = lab.state().data.join("etcd");
        fs::create_dir_all(&folder)?;
        let authority = Authority::new("lab")?;
        fs::write(folder.join("ca.pem"), authority.pem())?;
        for node in lab.nodes() {
            let addresses = vec![lab.address(node)?, "127.0.0.1".to_owned()];
            let issued = authority.issue(node, addresses)?;
            fs::write(folder.join(format!("{node}.pem")), issued.certificate)?;
            fs::write(folder.join(format!("{node}.key")), issued.key)?;
        }
        let etcd = Self { folder };
        for node in lab.nodes() {
            etcd.start_member(lab, node)?;
        }
        etcd.wait_for_health(lab, "node1")?;
        Ok(etcd)
    }

    /// The agent's arguments to use it.
    pub(crate) fn arguments(&self, lab: &Lab, node: &str) -> Result<Vec<String>> {
        let endpoints = lab
            .nodes()
            .into_iter()
            .map(|node| Ok(format!("https://{}:2379", lab.address(node)?)))
            .collect::<Result<Vec<_>>>()?;
        Ok(vec![
            "--etcd".to_owned(),
            endpoints.join(","),
            "--etcd-ca".to_owned(),
            self.file("ca.pem")?,
            "--etcd-certificate".to_owned(),
            self.file(&format!("{node}.pem"))?,
            "--etcd-key".to_owned(),
            self.file(&format!("{node}.key"))?,
        ])
    }

    /// The file with the authority that etcd trusts.
    pub(crate) fn authority(&self) -> Result<String> {
        self.file("ca.pem")
    }

    /// Starts a member, with an empty disk or with its old data.
    pub(crate) fn start_member(&self, lab: &Lab, node: &str) -> Result<()> {
        let address = lab.address(node)?;
        let peers = lab
            .nodes()
            .into_iter()
            .map(|node| Ok(format!("{node}=https://{}:2380", lab.address(node)?)))
            .collect::<Result<Vec<_>>>()?
            .join(",");
        let (client, peer) = (
            format!("https://{address}:2379"),
            format!("https://{address}:2380"),
        );
        let ca = self.file("ca.pem")?;
        let (certificate, key) = (
            self.file(&format!("{node}.pem"))?,
            self.file(&format!("{node}.key"))?,
        );
        let script = format!("echo $$ > {PID_FILE}; exec \"$@\"");
        let mut arguments = vec!["sh", "-euc", &script, "sh", "etcd", "--name", node];
        arguments.extend(["--initial-cluster", &peers, "--initial-cluster-state", "new"]);
        arguments.extend(["--heartbeat-interval", "100", "--election-timeout", "1000"]);
        // The default since 3.5: a member that was cut off does not depose the leader when it is back.
        arguments.push("--pre-vote");
        arguments.extend([
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
        ]);
        arguments.extend([
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
        ]);
        arguments.extend(["--client-cert-auth", "--peer-client-cert-auth", "--logger", "zap"]);
        arguments.extend(["--trusted-ca-file", &ca, "--peer-trusted-ca-file", &ca]);
        arguments.extend(["--cert-file", &certificate, "--peer-cert-file", &certificate]);
        arguments.extend(["--key-file", &key, "--peer-key-file", &key, "--data-dir", DATA]);
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.folder.join(format!("{node}.log")))?;
        // It ends with its node's namespaces at the latest.
        lab.command(node, arguments)?
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("could not start etcd; `cargo xtask setup` installs it")?;
        Ok(())
    }

    /// Kills a member, as a lost machine would be.
    pub(crate) fn kill_member(&self, lab: &Lab, node: &str) -> Result<()> {
        lab.run(node, ["sh", "-euc", &format!("kill -KILL $(cat {PID_FILE})")])
            .map(drop)
    }

    /// Waits until the member of a node answers, which needs a quorum.
    pub(crate) fn wait_for_health(&self, lab: &Lab, node: &str) -> Result<()> {
        let endpoint = format!("https://{}:2379", lab.address(node)?);
        let (ca, certificate) = (self.file("ca.pem")?, self.file(&format!("{node}.pem"))?);
        let key = self.file(&format!("{node}.key"))?;
        wait_until(&format!("etcd on {node}"), BOOT, || {
            let arguments = ["env", "ETCDCTL_API=3", "etcdctl", "--endpoints", &endpoint];
            let tls = ["--cacert", &ca, "--cert", &certificate, "--key", &key];
            let healthy = lab.run(
                node,
                arguments.into_iter().chain(tls).chain(["endpoint", "health"]),
            );
            match healthy {
                Ok(_) => Ok(()),
                Err(error) => bail!("{error:#}; end of its log: {}", self.log_tail(node)),
            }
        })
    }

    fn log_tail(&self, node: &str) -> String {
        let log = fs::read_to_string(self.folder.join(format!("{node}.log"))).unwrap_or_default();
        log.lines().last().unwrap_or_default().to_owned()
    }

    fn file(&self, name: &str) -> Result<String> {
        text(&self.folder.join(name))
    }
}

fn text(path: &Path) -> Result<String> {
    let text = path.to_str().map(str::to_owned);
    let text = text.context("the lab's path is not UTF-8")?;
    ensure!(!text.contains(','), "the lab's path has a comma");
    Ok(text)
}
