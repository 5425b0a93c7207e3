//! Checks that the managers' agents serve this node, and that their clocks agree with this machine's.
//! Connects to each manager as the agent does.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
};

use futures_util::future::join_all;
use mesh_support::error_chain;

use super::{Check, Outcome};
use crate::{
    docker::{Docker, EngineInfo},
    source::{CheckError, NodeIdentity, Served, check},
};

/// Clocks that differ by more are reported.
const SKEW_LIMIT_MILLISECONDS: u64 = 5_000;

/// One check for each other manager, and one for the clocks.
pub(super) async fn checks(docker: &Docker, info: &EngineInfo, certificates: &Path, port: u16) -> Vec<Check> {
    let managers = info
        .remote_managers
        .iter()
        .filter(|manager| manager.node != info.node)
        .map(|manager| SocketAddr::new(IpAddr::V4(manager.address), port));
    let managers: Vec<_> = managers.collect();
    if managers.is_empty() {
        return Vec::new();
    }
    let identity = match NodeIdentity::load(certificates, docker).await {
        Ok(identity) => identity,
        // The files themselves are another check's.
        Err(error) => {
            return vec![Check::fail(
                "feed of the managers",
                error_chain(&error),
                "repair what the check of the node certificates says; without them nothing can be tried",
            )];
        }
    };
    let tried = managers.into_iter().map(|manager| {
        let identity = &identity;
        async move { (manager, check(manager, identity).await) }
    });
    judge(info.manager, &join_all(tried).await)
}

/// What the attempts show. A worker that no manager serves cannot work.
fn judge(is_manager: bool, tried: &[(SocketAddr, Result<Served, CheckError>)]) -> Vec<Check> {
    let none_serves = tried.iter().all(|(_, result)| result.is_err());
    let failed = if none_serves && !is_manager {
        Outcome::Fail
    } else {
        Outcome::Warn
    };
    let mut checks: Vec<_> = tried
        .iter()
        .map(|(manager, result)| {
            let name = format!("feed of manager {}", manager.ip());
            match result {
                Ok(_) => Check::ok(&name, format!("TCP {manager}: it serves this node")),
                Err(error) => Check::new(
                    &name,
                    failed,
                    format!("TCP {manager}: {}", error_chain(error)),
                    remedy(error, *manager),
                ),
            }
        })
        .collect();
    let clocks = tried
        .iter()
        .filter_map(|(manager, result)| Some((*manager, result.as_ref().ok()?.clock_ahead?)));
    checks.extend(clock(clocks));
    checks
}

fn remedy(error: &CheckError, manager: SocketAddr) -> String {
    match error {
        CheckError::Connect(source) if source.kind() == io::ErrorKind::ConnectionRefused => format!(
            "nothing listens there: start the agent on that manager, and give all agents the same --feed-port \
             (here {})",
            manager.port()
        ),
        CheckError::Connect(_) => format!(
            "allow TCP {} from the nodes' addresses in the manager's firewall (nftables, ufw, the provider's \
             security groups), and check the route with `ip route get {}`",
            manager.port(),
            manager.ip()
        ),
        CheckError::Handshake(_) => "compare the clocks of both machines (certificates are valid for a limited time), \
             and check that both are in one Swarm (`docker info`) and that no other program listens on the port"
            .to_owned(),
        CheckError::Greeting(_) => "run the same release of the agent on every node, or the one before; if it does not \
             know this node, check that `docker node ls` lists it"
            .to_owned(),
    }
}

/// The clock that differs most. `None` if no manager sent its time.
fn clock(ahead: impl Iterator<Item = (SocketAddr, i64)>) -> Option<Check> {
    const NAME: &str = "clock";
    let (manager, ahead) = ahead.max_by_key(|(_, ahead)| ahead.unsigned_abs())?;
    let seconds = ahead.unsigned_abs() as f64 / 1_000.0;
    if ahead.unsigned_abs() <= SKEW_LIMIT_MILLISECONDS {
        return Some(Check::ok(
            NAME,
            format!("within {seconds:.1} s of the managers' clocks"),
        ));
    }
    let direction = if ahead < 0 { "ahead of" } else { "behind" };
    Some(Check::warn(
        NAME,
        format!(
            "this machine is {seconds:.0} s {direction} manager {}: node certificates may count as expired or not yet \
             valid, and the times of logs and histories do not match",
            manager.ip()
        ),
        "set both clocks by NTP (`timedatectl set-ntp true`, or chrony), and check them with `timedatectl`",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manager(last: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, last], 9468))
    }

    fn serves(ahead: i64) -> Result<Served, CheckError> {
        Ok(Served {
            clock_ahead: Some(ahead),
        })
    }

    fn refuses(kind: io::ErrorKind) -> Result<Served, CheckError> {
        Err(CheckError::Connect(kind.into()))
    }

    #[test]
    fn a_worker_needs_one_manager_that_serves_it() {
        let outcome = |is_manager, tried: [Result<Served, CheckError>; 2]| {
            let [first, second] = tried;
            let checks = judge(is_manager, &[(manager(1), first), (manager(2), second)]);
            checks.iter().map(|check| check.outcome).max().unwrap()
        };
        let refused = || refuses(io::ErrorKind::ConnectionRefused);
        assert_eq!(outcome(false, [serves(0), serves(0)]), Outcome::Ok);
        assert_eq!(outcome(false, [serves(0), refused()]), Outcome::Warn);
        assert_eq!(outcome(false, [refused(), refused()]), Outcome::Fail);
        assert_eq!(outcome(true, [refused(), refused()]), Outcome::Warn);
    }

    #[test]
    fn each_fault_names_what_was_tried_and_its_own_remedy() {
        let remedies = [
            (refuses(io::ErrorKind::ConnectionRefused), "--feed-port"),
            (refuses(io::ErrorKind::TimedOut), "firewall"),
            (
                Err(CheckError::Handshake(io::ErrorKind::InvalidData.into())),
                "clocks",
            ),
            (
                Err(CheckError::Greeting("it refuses this node".into())),
                "same release",
            ),
        ];
        for (result, expected) in remedies {
            let check = judge(false, &[(manager(1), result)]).remove(0);
            assert!(check.detail.starts_with("TCP 192.0.2.1:9468: "), "{check:?}");
            assert!(check.remedy.contains(expected), "{check:?}");
        }
    }

    #[test]
    fn the_clock_that_differs_most_counts() {
        let clock_of = |ahead: &[i64]| {
            let tried: Vec<_> = ahead
                .iter()
                .zip(1..)
                .map(|(ahead, last)| (manager(last), serves(*ahead)))
                .collect();
            judge(false, &tried).pop().unwrap()
        };
        assert_eq!(clock_of(&[5_000, -400]).outcome, Outcome::Ok);
        let behind = clock_of(&[100, 5_001]);
        assert_eq!(behind.outcome, Outcome::Warn);
        assert!(
            behind.detail.contains("5 s behind manager 192.0.2.2"),
            "{behind:?}"
        );
        let ahead = clock_of(&[-60_000, 100]);
        assert!(
            ahead.detail.contains("60 s ahead of manager 192.0.2.1"),
            "{ahead:?}"
        );
    }

    #[test]
    fn managers_that_do_not_tell_the_time_are_no_clocks() {
        let silent = Ok(Served { clock_ahead: None });
        assert_eq!(judge(false, &[(manager(1), silent)]).len(), 1);
    }
}
