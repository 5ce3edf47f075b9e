//! Writes what Postgres says into Redis: live, after a flush, after a reorg, always by the same code.
