//! Types and pure packet logic shared by kernel and agent.
#![no_std]
