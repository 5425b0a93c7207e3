//! The loops together, each behaviour on its own: a controller, a clock moved by hand, and what must follow.

mod life;
mod updates;
