//! Which payments go into which batch. Pure.
