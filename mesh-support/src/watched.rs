//! Reads tokio's watch channels without keeping them locked.
//!
//! The guard that `borrow` returns lives until the end of its statement. While a sender waits for it, a
//! second `borrow` in the same statement waits for the sender: for ever. So the workspace's clippy.toml
//! allows `borrow` here only, and everything else reads by these methods, which return no guard.

use tokio::sync::watch::{Receiver, Sender};

/// A channel whose newest value can be read.
pub trait Watched<T> {
    /// What a function makes of the newest value. It must not read the same channel.
    fn read<R>(&self, function: impl FnOnce(&T) -> R) -> R;

    /// A copy of the newest value.
    fn current(&self) -> T
    where
        T: Clone,
    {
        self.read(T::clone)
    }
}

impl<T> Watched<T> for Sender<T> {
    #[expect(clippy::disallowed_methods, reason = "the guard does not leave this function")]
    fn read<R>(&self, function: impl FnOnce(&T) -> R) -> R {
        function(&self.borrow())
    }
}

impl<T> Watched<T> for Receiver<T> {
    #[expect(clippy::disallowed_methods, reason = "the guard does not leave this function")]
    fn read<R>(&self, function: impl FnOnce(&T) -> R) -> R {
        function(&self.borrow())
    }
}

/// A receiver, which knows whether it has seen the newest value.
pub trait Newest<T> {
    /// A copy of the newest value, which counts as seen from then on.
    fn newest(&mut self) -> T
    where
        T: Clone;
}

impl<T> Newest<T> for Receiver<T> {
    #[expect(clippy::disallowed_methods, reason = "the guard does not leave this function")]
    fn newest(&mut self) -> T
    where
        T: Clone,
    {
        self.borrow_and_update().clone()
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    #[test]
    fn a_read_value_does_not_keep_a_sender_waiting() {
        let (sender, mut receiver) = watch::channel(1);
        let seen = (
            receiver.current(),
            sender.send_replace(2),
            receiver.newest(),
            sender.current(),
        );
        assert_eq!(seen, (1, 1, 2, 2));
        assert!(!receiver.has_changed().unwrap());
    }
}
