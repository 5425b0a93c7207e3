//! From single measurements to a table: medians, and ratios to the reference round by round. Pure; depends on
//! what is measured.

use std::collections::{BTreeMap, BTreeSet};

use comfy_table::{Table, presets};
use serde::Serialize;

use super::{contender::Contender, fixture::Replica};

/// A figure that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Metric {
    /// New connections, each with one request, per second.
    ConnectionsPerSecond,
    /// Half of the new connections had their answer within this many microseconds.
    ConnectionMedian,
    /// 99 of 100 had.
    ConnectionP99,
    /// Processor time of the whole machine per new connection, in microseconds.
    ConnectionCpu,
    /// Requests on connections that stay open, per second.
    RequestsPerSecond,
    /// Processor time per request, in microseconds.
    RequestCpu,
    /// From the client, MB/s.
    Upload,
    /// To the client, MB/s.
    Download,
}

impl Metric {
    fn title(self) -> &'static str {
        match self {
            Self::ConnectionsPerSecond => "new connections/s",
            Self::ConnectionMedian => "  median, µs",
            Self::ConnectionP99 => "  p99, µs",
            Self::ConnectionCpu => "  CPU, µs each",
            Self::RequestsPerSecond => "kept-alive requests/s",
            Self::RequestCpu => "  CPU, µs each",
            Self::Upload => "upload, MB/s",
            Self::Download => "download, MB/s",
        }
    }
}

/// One figure of one round.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// Which replica it was measured to.
    pub(super) replica: Replica,
    /// What it is.
    pub(super) metric: Metric,
    /// What was measured.
    pub(super) contender: Contender,
    /// Which round.
    pub(super) round: usize,
    /// The figure.
    pub(super) value: f64,
}

/// All rounds of one figure.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Row {
    /// Which replica it was measured to.
    pub(super) replica: Replica,
    /// What it is.
    pub(super) metric: Metric,
    /// What was measured.
    pub(super) contender: Contender,
    /// Round by round.
    pub(super) values: Vec<f64>,
    /// Their median.
    pub(super) median: f64,
    /// To the reference's figure of the same round; `None` where the reference has none.
    pub(super) ratio: Option<Ratio>,
}

/// A ratio to the reference, over the rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Ratio {
    /// The median.
    pub(super) median: f64,
    /// The least.
    pub(super) least: f64,
    /// The most.
    pub(super) most: f64,
}

/// Groups the samples, in the order of replica, metric and contenders.
#[must_use]
pub(super) fn rows(samples: &[Sample], contenders: &[Contender], reference: Contender) -> Vec<Row> {
    let mut groups: BTreeMap<(Replica, Metric, Contender), BTreeMap<usize, f64>> = BTreeMap::new();
    for sample in samples {
        let key = (sample.replica, sample.metric, sample.contender);
        groups.entry(key).or_default().insert(sample.round, sample.value);
    }
    let subjects: BTreeSet<(Replica, Metric)> = groups.keys().map(|key| (key.0, key.1)).collect();
    let mut rows = Vec::new();
    for (replica, metric) in subjects {
        for &contender in contenders {
            let Some(rounds) = groups.get(&(replica, metric, contender)) else {
                continue;
            };
            let references = groups.get(&(replica, metric, reference));
            let ratios: Vec<f64> = rounds
                .iter()
                .filter_map(|(round, value)| {
                    let reference = *references?.get(round)?;
                    (reference > 0.0).then_some(value / reference)
                })
                .collect();
            let values: Vec<f64> = rounds.values().copied().collect();
            rows.push(Row {
                replica,
                metric,
                contender,
                median: median(&values).unwrap_or_default(),
                ratio: ratio(&ratios),
                values,
            });
        }
    }
    rows
}

fn ratio(ratios: &[f64]) -> Option<Ratio> {
    Some(Ratio {
        median: median(ratios)?,
        least: ratios.iter().copied().reduce(f64::min)?,
        most: ratios.iter().copied().reduce(f64::max)?,
    })
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        count if count % 2 == 1 => Some(sorted[middle]),
        _ => Some(f64::midpoint(sorted[middle - 1], sorted[middle])),
    }
}

/// One table: a line for each figure, a column for each contender.
#[must_use]
pub(super) fn table(rows: &[Row], contenders: &[Contender]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let header = ["REPLICA".to_owned(), "FIGURE".to_owned()];
    table.set_header(
        header
            .into_iter()
            .chain(contenders.iter().map(|name| name.to_string().to_uppercase())),
    );
    let subjects: BTreeSet<(Replica, Metric)> = rows.iter().map(|row| (row.replica, row.metric)).collect();
    for (replica, metric) in subjects {
        let mut line = vec![replica.to_string(), metric.title().to_owned()];
        for &contender in contenders {
            let row = rows
                .iter()
                .find(|row| (row.replica, row.metric, row.contender) == (replica, metric, contender));
            line.push(row.map_or_else(|| "-".to_owned(), cell));
        }
        table.add_row(line);
    }
    table.to_string()
}

fn cell(row: &Row) -> String {
    let value = if row.median < 100.0 {
        format!("{:.1}", row.median)
    } else {
        format!("{:.0}", row.median)
    };
    match row.ratio {
        Some(ratio) => format!(
            "{value}  {:.2}x [{:.2}-{:.2}]",
            ratio.median, ratio.least, ratio.most
        ),
        None => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(contender: Contender, round: usize, value: f64) -> Sample {
        Sample {
            replica: Replica::Remote,
            metric: Metric::ConnectionsPerSecond,
            contender,
            round,
            value,
        }
    }

    #[test]
    fn ratios_are_of_the_same_round() {
        let samples = [
            sample(Contender::Docker, 0, 100.0),
            sample(Contender::Docker, 1, 50.0),
            sample(Contender::Docker, 2, 80.0),
            sample(Contender::Dsr, 0, 200.0),
            sample(Contender::Dsr, 1, 150.0),
            sample(Contender::Dsr, 2, 200.0),
        ];
        let rows = rows(&samples, &[Contender::Docker, Contender::Dsr], Contender::Docker);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[1].median, 200.0);
        assert_eq!(
            rows[1].ratio,
            Some(Ratio {
                median: 2.5,
                least: 2.0,
                most: 3.0
            })
        );
    }

    #[test]
    fn without_a_reference_there_is_no_ratio() {
        let samples = [sample(Contender::Dsr, 0, 200.0), sample(Contender::Dsr, 1, 100.0)];
        let rows = rows(&samples, &[Contender::Dsr], Contender::Docker);
        assert_eq!((rows[0].median, rows[0].ratio), (150.0, None));
    }

    #[test]
    fn a_table_has_a_column_for_each_contender() {
        let contenders = [Contender::Docker, Contender::Tunnel];
        let samples = [
            sample(Contender::Docker, 0, 100.0),
            sample(Contender::Tunnel, 0, 250.0),
        ];
        let text = table(&rows(&samples, &contenders, Contender::Docker), &contenders);
        assert!(
            text.contains("DOCKER") && text.contains("TUNNEL") && text.contains("2.50x [2.50-2.50]"),
            "{text}"
        );
    }
}
