//! What the rules let pass, each with its reason.

use super::{Rule, Violation};

/// The files below a path, a rule, and why it does not hold for them.
struct Exception {
    path: &'static str,
    rule: Rule,
    #[expect(dead_code, reason = "it is for readers")]
    reason: &'static str,
}

const fn exception(path: &'static str, rule: Rule, reason: &'static str) -> Exception {
    Exception { path, rule, reason }
}

const COPIES_DOCKER: &str = "copies docker's command line; replaced by Docker's API";

const EXCEPTIONS: &[Exception] = &[
    exception("mesh-agent/src/meshctl/compose/", Rule::Circles, COPIES_DOCKER),
    exception("mesh-agent/src/meshctl/flags/", Rule::Glossary, COPIES_DOCKER),
    exception("mesh-agent/src/meshctl/compose/", Rule::Glossary, COPIES_DOCKER),
    exception(
        "mesh-agent/src/meshctl/output/template/",
        Rule::Glossary,
        COPIES_DOCKER,
    ),
    exception("mesh-agent/src/meshctl/views/", Rule::Glossary, COPIES_DOCKER),
    exception("mesh-agent/src/meshctl/progress/", Rule::Glossary, COPIES_DOCKER),
    exception(
        "mesh-agent/src/meshctl/progress.rs",
        Rule::Glossary,
        COPIES_DOCKER,
    ),
    exception("mesh-agent/src/meshctl/commands/", Rule::Glossary, COPIES_DOCKER),
    exception(
        "xtask/src/tidy/glossary.rs",
        Rule::Glossary,
        "lists what is not written",
    ),
    exception(
        "xtask/src/tidy/started.rs",
        Rule::Programs,
        "its tests run programs that do not exist",
    ),
    exception(
        "xtask/src/tidy/shell.rs",
        Rule::Programs,
        "its tests run programs that do not exist",
    ),
    exception(
        "xtask/src/tidy/shell.rs",
        Rule::Glossary,
        "the shell's grammar has one of these terms",
    ),
    exception("CHANGELOG.md", Rule::Glossary, "names what was renamed"),
];

pub(super) fn allows(violation: &Violation) -> bool {
    EXCEPTIONS
        .iter()
        .any(|exception| exception.rule == violation.rule && violation.path.starts_with(exception.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exception_is_for_one_rule_below_one_path() {
        let violation = |path: &str, rule| Violation {
            path: path.into(),
            line: 1,
            rule,
            message: String::new(),
        };
        let path = "mesh-agent/src/meshctl/flags/create.rs";
        assert!(allows(&violation(path, Rule::Glossary)));
        assert!(!allows(&violation(path, Rule::Length)));
        assert!(!allows(&violation("mesh-agent/src/plan.rs", Rule::Glossary)));
    }
}
