//! Where `meshctl` is meant to differ from `docker`, each with the reason. Everything else is a fault. Plain data.

/// Where the difference is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Where {
    /// Only docker says this.
    Docker,
    /// Only meshctl says this.
    Meshctl,
    /// The exit code.
    Code,
    /// Whether anything is on standard error.
    Stderr,
}

/// A difference that is meant.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Meant {
    /// Part of the command line.
    pub(crate) line: &'static str,
    /// Where the difference is.
    pub(crate) place: Where,
    /// How the column, the key's path or the line of the output begins.
    pub(crate) piece: &'static str,
    /// Why.
    #[expect(dead_code, reason = "for whoever reads the table")]
    pub(crate) why: &'static str,
}

/// All of them.
pub(crate) const MEANT: &[Meant] = &[];
