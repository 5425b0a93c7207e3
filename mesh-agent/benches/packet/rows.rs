//! Measurements to rows: medians and spreads, and the table of them.

use anyhow::{Result, ensure};
use serde::Serialize;

/// One line of the result.
#[derive(Serialize)]
pub(crate) struct Row {
    name: &'static str,
    /// Flows that the packets belong to; 0 where each packet is a new one's.
    flows: u32,
    /// Nanoseconds per packet: the median.
    ns: f64,
    /// Nanoseconds that the dearest single step of the path takes alone.
    floor_ns: f64,
    /// Between the fastest and the slowest run, nanoseconds.
    spread: f64,
}

/// One measurement of one run.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) flows: u32,
    pub(crate) ns: f64,
}

/// Medians and spreads, in the order of first appearance.
pub(crate) fn rows(samples: &[Sample]) -> Result<Vec<Row>> {
    let mut rows: Vec<Row> = Vec::new();
    for sample in samples {
        if rows
            .iter()
            .any(|row| row.name == sample.name && row.flows == sample.flows)
        {
            continue;
        }
        let values = values_of(samples, sample.name, sample.flows);
        let floor = match sample.name {
            "established remote"
            | "established local (tc)"
            | "established local, IPv6 (tc)"
            | "established local (XDP before tc)"
            | "decapsulation" => values_of(samples, "floor: hash look-up", sample.flows),
            "not the mesh's" | "not the mesh's (container)" => values_of(samples, "floor: parse", 1),
            "new flow" | "new flow, while `monitor` watches" => values_of(samples, "floor: LRU insert", 0),
            _ => values_of(samples, "floor: empty program", 1),
        };
        rows.push(Row {
            name: sample.name,
            flows: sample.flows,
            ns: median(&values),
            floor_ns: median(&floor),
            spread: values.last().copied().unwrap_or_default() - values.first().copied().unwrap_or_default(),
        });
    }
    ensure!(!rows.is_empty(), "nothing was measured");
    Ok(rows)
}

/// The measurements of a row, smallest first.
fn values_of(samples: &[Sample], name: &str, flows: u32) -> Vec<f64> {
    let mut values: Vec<f64> = samples
        .iter()
        .filter(|sample| sample.name == name && sample.flows == flows)
        .map(|sample| sample.ns)
        .collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

pub(crate) fn print_table(rows: &[Row]) {
    println!(
        "{:<36} {:>8} {:>9} {:>9} {:>9}",
        "name", "flows", "ns", "floor_ns", "spread"
    );
    for row in rows {
        let flows = if row.flows == 0 {
            "each new".to_owned()
        } else {
            row.flows.to_string()
        };
        println!(
            "{:<36} {:>8} {:>9.1} {:>9.1} {:>9.1}",
            row.name, flows, row.ns, row.floor_ns, row.spread
        );
    }
}
