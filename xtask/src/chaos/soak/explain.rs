//! What flow tables say: which replica a failed request was given, and which flows are left. Depends on
//! `outcome`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{
    chaos::outcome::{Failure, host},
    lab::Lab,
};

/// More flows than a round leaves.
const MOST_FLOWS: &str = "1000000";

/// The failed requests and broken connections whose replica is not gone, a sentence each. The flow of one
/// that is gone stays in the table for 5 minutes. That it was killed shortly before a request failed is
/// checked by the time.
pub(super) fn unexplained<'a>(lab: &Lab, failed: impl Iterator<Item = &'a Failure>) -> Result<Vec<String>> {
    let mut by_node: BTreeMap<&str, Vec<&Failure>> = BTreeMap::new();
    for failure in failed {
        by_node.entry(host(&failure.url)).or_default().push(failure);
    }
    let mut unexplained = Vec::new();
    for node in lab.nodes() {
        let address = lab.address(node)?;
        let Some(failed) = by_node.get(address.as_str()) else {
            continue;
        };
        let flows = flows(lab, node)?;
        for failure in failed {
            if let Err(reason) = explain(failure, &flows) {
                unexplained.push(format!("the failure of {failure:?} through {node}: {reason}"));
            }
        }
    }
    Ok(unexplained)
}

/// How many flows of each kind a node has, and for how long they have been idle.
pub(super) fn kinds(lab: &Lab, node: &str) -> Result<String> {
    let mut kinds: BTreeMap<String, (u64, u64, u64)> = BTreeMap::new();
    for flow in flows(lab, node)? {
        let backend = match &flow["backend"] {
            Value::Null => "a replica that is gone",
            _ => "a replica that is there",
        };
        let text = |field: &str| flow[field].as_str().unwrap_or_default().to_owned();
        let kind = format!(
            "protocol {}, {}, from {}, of {backend}",
            flow["protocol"],
            text("role"),
            text("origin")
        );
        let idle = flow["idle_seconds"].as_u64().unwrap_or_default();
        let (count, least, most) = kinds.entry(kind).or_insert((0, idle, idle));
        *count += 1;
        *least = idle.min(*least);
        *most = idle.max(*most);
    }
    let lines = kinds
        .iter()
        .map(|(kind, (count, least, most))| format!("{count} ({kind}), idle for {least} to {most} s"));
    Ok(lines.collect::<Vec<_>>().join("; "))
}

fn flows(lab: &Lab, node: &str) -> Result<Vec<Value>> {
    let arguments = ["datapath", "dump", "--flows", MOST_FLOWS, "--format", "json"];
    let mut dump: Value = serde_json::from_str(&lab.meshctl(node, &arguments)?).context("no JSON")?;
    match dump["dump"]["flows"].take() {
        Value::Array(flows) => Ok(flows),
        other => bail!("the flows of {node} are {other}"),
    }
}

fn explain(failure: &Failure, flows: &[Value]) -> Result<(), String> {
    let own = failure.own.ok_or("its own port is not known")?.to_string();
    let protocol = if failure.url.starts_with("udp:") { 17 } else { 6 };
    let flow = flows
        .iter()
        .find(|flow| flow["source"] == *own && flow["protocol"] == protocol && flow["role"] == "forward");
    match flow.map(|flow| &flow["backend"]) {
        None => Err("it has no flow".to_owned()),
        Some(Value::Null) => Ok(()),
        Some(backend) => Err(format!("its replica, {backend}, is still there")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_end_of_its_own_replica_explains_a_failure() {
        let failure = |url: &str| Failure {
            url: url.to_owned(),
            own: Some("10.0.0.9:40000".parse().unwrap()),
            ..Failure::default()
        };
        let flow = |protocol: u8, source: &str, backend: Value| json!({"protocol": protocol, "source": source, "role": "forward", "backend": backend});
        let flows = [
            flow(6, "10.0.0.9:40000", Value::Null),
            flow(17, "10.0.0.9:40000", json!("10.0.0.5")),
            flow(6, "10.0.0.9:40001", json!("10.0.0.5")),
        ];
        assert_eq!(explain(&failure("http://10.0.0.1:9200/"), &flows), Ok(()));
        let of_udp = explain(&failure("udp://10.0.0.1:9201"), &flows).unwrap_err();
        assert!(of_udp.contains("10.0.0.5"), "{of_udp}");
        assert!(explain(&failure("http://10.0.0.1:9200/"), &flows[2..]).is_err());
        assert!(explain(&Failure::default(), &flows).is_err());
    }
}
