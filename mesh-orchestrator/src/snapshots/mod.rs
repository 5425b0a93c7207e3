//! Consistent copies of the whole store in one file each.
