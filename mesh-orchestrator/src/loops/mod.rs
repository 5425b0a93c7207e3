//! The control loops: pure functions from (now, state, events) to changes. Import `objects` and `spec`.
