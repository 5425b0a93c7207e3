//! Metric families on whether IPv6 is served. Pure.

use prometheus::proto::MetricFamily;

use super::samples::{gauge, sample};
use crate::admin::View;

pub(super) fn families(view: &View) -> [MetricFamily; 2] {
    let mut addresses = gauge(
        "mesh_ipv6_addresses",
        "IPv6 addresses of this node at which published ports are answered; 0 where IPv6 is not served.",
    );
    sample(&mut addresses, Vec::new(), view.desired.own_ipv6.len() as u64);
    let mut left = gauge(
        "mesh_ipv6_not_served",
        "1 while IPv6 is not served; the label says why.",
    );
    if let Some(reason) = &view.ipv6_left {
        sample(&mut left, vec![("reason", reason.clone())], 1);
    }
    [addresses, left]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::view::fixture;

    #[test]
    fn there_is_a_reason_while_ipv6_is_not_served() {
        let (mut view, _) = fixture::two_nodes();
        let [addresses, left] = families(&view);
        assert_eq!(addresses.get_metric()[0].get_gauge().get_value(), 1.0);
        assert!(left.get_metric().is_empty());
        view.ipv6_left = Some("the chain INPUT".to_owned());
        let [_, left] = families(&view);
        assert_eq!(left.get_metric()[0].get_label()[0].value(), "the chain INPUT");
    }
}
