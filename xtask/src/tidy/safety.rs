//! Every `unsafe` block and implementation has a comment that proves it. Clippy has the same lint, which does
//! not see what is compiled for other targets or behind features.

use super::{
    Rule, Scanned, Violation,
    scan::{Kind, Token},
};

pub(super) fn check(file: &Scanned<'_>) -> Vec<Violation> {
    let tokens = &file.tokens;
    (0..tokens.len())
        .filter(|at| {
            tokens[*at].is_name("unsafe") && needs_proof(&tokens[at + 1..]) && !is_proven(tokens, *at)
        })
        .map(|at| {
            file.source.violation(
                tokens[at].line,
                Rule::Safety,
                "`unsafe` without a proof; say in a comment `// SAFETY: …` before it why it holds",
            )
        })
        .collect()
}

/// Functions and traits hand the duty to their callers; blocks and implementations fulfil it.
fn needs_proof(after: &[Token<'_>]) -> bool {
    after
        .iter()
        .find(|token| token.kind != Kind::Comment)
        .is_some_and(|token| token.is("{") || token.is_name("impl"))
}

/// Whether a comment of the same statement says `SAFETY`.
fn is_proven(tokens: &[Token<'_>], at: usize) -> bool {
    tokens[..at]
        .iter()
        .rev()
        .take_while(|token| !(token.is(";") || token.is("{") || token.is("}")))
        .any(|token| token.kind == Kind::Comment && token.text.contains("SAFETY:"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tidy::found_in;

    fn lines(text: &str) -> Vec<usize> {
        found_in(text, check)
            .iter()
            .map(|violation| violation.line)
            .collect()
    }

    #[test]
    fn a_block_needs_a_proof_in_its_own_statement() {
        assert_eq!(lines("fn f() {\n    unsafe { g() };\n}"), [2]);
        assert_eq!(
            lines("fn f() {\n    // SAFETY: g is fine\n    a(); unsafe { g() };\n}"),
            [3]
        );
        assert!(
            lines("fn f() {\n    // SAFETY: g is fine.\n    let x = h(1, unsafe { g() });\n}").is_empty()
        );
    }

    #[test]
    fn an_implementation_needs_one_and_a_function_does_not() {
        assert_eq!(lines("unsafe impl Send for X {}"), [1]);
        assert!(lines("/// # Safety\nunsafe fn f() {}").is_empty());
    }
}
