//! The queue as Redis sees it: which jobs a node might claim. A hint; Postgres decides.
