//! The facts of one gateway in memory.
