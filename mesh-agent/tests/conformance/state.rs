//! What a node has in its kernel, as text, to be compared between two moments. Depends on `netns`.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use crate::netns::{Netns, run};

/// A node's interfaces, addresses, routes, rules, neighbours, filters, tables, virtual services, settings and
/// pins, one on each line, without what changes by itself.
pub(crate) fn state(netns: &Netns) -> Result<Vec<String>> {
    netns
        .enter(read_state)
        .with_context(|| format!("could not read the state of {}", netns.name))
}

/// The lines that are gone, and those that are new.
pub(crate) fn difference(before: &[String], after: &[String]) -> String {
    let lost = before.iter().filter(|line| !after.contains(line));
    let found = after.iter().filter(|line| !before.contains(line));
    lost.map(|line| format!("- {line}\n"))
        .chain(found.map(|line| format!("+ {line}\n")))
        .collect()
}

fn read_state() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut add = |what: &str, text: &str| {
        lines.extend(
            text.lines()
                .filter(|line| !line.trim().is_empty())
                .map(|line| format!("{what}: {}", line.trim_end())),
        );
    };
    let links = run("ip", &["-d", "-o", "link"])?;
    add("link", &without_timers(&links));
    add("address", &run("ip", &["-o", "address"])?);
    add("route", &run("ip", &["route", "show", "table", "all"])?);
    add("rule", &run("ip", &["rule"])?);
    add(
        "neighbour",
        &run("ip", &["neighbour", "show", "nud", "permanent"])?,
    );
    let addresses = run("bridge", &["fdb", "show"])?;
    add(
        "forwarding",
        &lines_with(&addresses, &["permanent", "static", "self"]),
    );
    // Without counters.
    add(
        "nft",
        &run("nft", &["--stateless", "--handle", "list", "ruleset"])?,
    );
    let qdiscs = run("tc", &["qdisc", "show"])?;
    add("qdisc", &qdiscs);
    for device in with_filters(&qdiscs) {
        // An `ingress` qdisc has no egress hook.
        for hook in ["ingress", "egress"] {
            if let Ok(filters) = run("tc", &["filter", "show", "dev", device, hook]) {
                add(&format!("filter {device} {hook}"), &filters);
            }
        }
    }
    if let Ok(services) = fs::read_to_string("/proc/thread-self/net/ip_vs") {
        add("ipvs", &without_connections(&services));
    }
    walk(Path::new("/proc/sys/net"), &mut |path| {
        // Some are write-only, and some are counters.
        if let Ok(value) = fs::read_to_string(path)
            && !path.ends_with("nf_conntrack_count")
        {
            add(&path.display().to_string(), &value);
        }
    });
    walk(Path::new("/sys/fs/bpf"), &mut |path| {
        // The kernel itself puts `maps.debug` and `progs.debug` into every bpf file system.
        if path.extension().is_none_or(|extension| extension != "debug") {
            add("pin", &path.display().to_string());
        }
    });
    Ok(lines)
}

/// The interfaces that can have filters, of the lines `qdisc clsact ffff: dev eth0 parent ffff:fff1`.
fn with_filters(qdiscs: &str) -> impl Iterator<Item = &str> {
    qdiscs.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let kind = fields.nth(1)?;
        fields
            .skip_while(|field| *field != "dev")
            .nth(1)
            .filter(|_| matches!(kind, "clsact" | "ingress"))
    })
}

/// Leaves out `gc_timer 123.45` and the like, and `state UP`: a bridge's state may change from unknown to up
/// long after the bridge was made.
fn without_timers(links: &str) -> String {
    let mut text = String::new();
    for line in links.lines() {
        let mut fields = line.split_whitespace();
        while let Some(field) = fields.next() {
            if field.ends_with("_timer") || field == "state" {
                fields.next();
            } else {
                text.push_str(field);
                text.push(' ');
            }
        }
        text.push('\n');
    }
    text
}

/// Leaves out the last two columns of destinations, which count their connections.
fn without_connections(services: &str) -> String {
    services
        .lines()
        .map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let kept = if fields.first() == Some(&"->") {
                4
            } else {
                fields.len()
            };
            fields[..kept.min(fields.len())].join(" ") + "\n"
        })
        .collect()
}

fn lines_with(text: &str, fields: &[&str]) -> String {
    text.lines()
        .filter(|line| line.split_whitespace().any(|field| fields.contains(&field)))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn walk(folder: &Path, visit: &mut impl FnMut(&Path)) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            walk(&path, visit);
        } else {
            visit(&path);
        }
    }
}
