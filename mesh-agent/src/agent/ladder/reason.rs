//! Errors as reasons: one line each, of limited length.

use mesh_support::error_chain;

use crate::datapath::DatapathError;

/// The longest reason, in characters: a verifier's log is long.
const REASON_CHARACTERS: usize = 400;

/// An error in one line of limited length.
pub(super) fn one_line(error: &DatapathError) -> String {
    shortened(&error_chain(error))
}

/// The first line, and the last meaningful one, which holds a verifier's reason.
pub(super) fn shortened(text: &str) -> String {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default();
    let last = lines.rfind(|line| !line.starts_with("processed ") && !line.starts_with("verification time"));
    // Some errors repeat their causes.
    let mut parts: Vec<&str> = first.split(": ").collect();
    parts.dedup();
    let first = parts.join(": ");
    let line = match last {
        Some(last) => format!("{first} … {last}"),
        None => first,
    };
    match line.char_indices().nth(REASON_CHARACTERS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verifiers_log_becomes_one_line() {
        let log = "load mesh_xdp: refused. Verifier output: 0: R1=ctx()\n1: (b7) r0 = 0\nR5 !read_ok\n\
                   verification time 12 usec\nprocessed 3 insns (limit 1000000)\n";
        assert_eq!(
            shortened(log),
            "load mesh_xdp: refused. Verifier output: 0: R1=ctx() … R5 !read_ok"
        );
        assert_eq!(shortened("plain"), "plain");
        assert_eq!(shortened("load it: make it: make it: no"), "load it: make it: no");
        assert!(shortened(&"ä".repeat(5_000)).chars().count() <= REASON_CHARACTERS + 1);
    }
}
