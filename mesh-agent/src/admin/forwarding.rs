//! What of the kernel's forwarding an operator has to know: from the agent's view. Pure.

use super::View;
use crate::first_few::first_few;

/// A line names so many interfaces.
const SHOWN: usize = 4;

/// A line that names the interfaces on which the kernel does not forward IPv4; none if it does on all.
#[must_use]
pub(crate) fn forwarding_line(view: &View) -> Option<String> {
    let all = &view.not_forwarding;
    (!all.is_empty()).then(|| {
        format!(
            "the kernel does not forward IPv4 on {}, so answers to clients are lost: set net.ipv4.ip_forward to 1, and \
             see which file in /etc/sysctl.d sets it to 0",
            first_few(all, SHOWN, ", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::{status::status, view::fixture};

    #[test]
    fn interfaces_that_do_not_forward_are_a_problem_of_the_status() {
        let (mut view, _) = fixture::two_nodes();
        assert_eq!(forwarding_line(&view), None);
        view.not_forwarding = (0..6).map(|number| format!("eth{number}")).collect();
        let line = forwarding_line(&view).unwrap();
        assert!(
            line.contains("on eth0, eth1, eth2, eth3 and 2 more, so"),
            "{line}"
        );
        let errors = status(&view, view.started).errors;
        assert!(errors.contains(&format!("network: {line}")), "{errors:?}");
    }
}
