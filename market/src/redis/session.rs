//! Sessions as other applications share them.
